"""Every pre-training setting with its type, range, default and description.

Flat on the command line (`learning_rate=2e-5`), grouped in code (`settings.optim.learning_rate`); no name occurs in two groups.
The defaults are the paper's recipe; `presets.py` holds the others.
"""

from collections.abc import Sequence
from dataclasses import field, fields
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

from mg3d.settings.objectives import OBJECTIVES

DatasetName = Literal["ct_rate", "ctrg", "rad_chestct", "custom"]
"""Data sets that the preparation writes."""
Wiring = Literal["paper", "intended", "released"]
"""See `ModelSettings.wiring`."""
PatchMerging = Literal["legacy", "monai", "monai_v2"]
"""legacy: MG-3D and early MONAI; monai: MONAI's current `merging`; monai_v2: its `mergingv2` (neighbours in another order)."""
Fraction = Annotated[float, Field(ge=0, le=1)]

settings_group = dataclass(
    frozen=True, kw_only=True, config=ConfigDict(strict=True, use_attribute_docstrings=True, allow_inf_nan=False)
)
"""Decorator: a frozen dataclass that validates types and ranges; the docstring under each field is its description."""


@settings_group
class DataSettings:
    """Data sets, and how a study becomes a training sample."""

    data_root: str = "data/pretrain_arrows"
    """Folder or URL (s3://, gs://, hf://, ...) of the Arrow files written by prepro/prepro_pretraining_data.py."""
    cache_dir: str = "data/cache"
    """Local cache of files from a `data_root` URL."""
    datasets: tuple[DatasetName, ...] = ("ct_rate", "ctrg")
    """Data sets to mix. Each needs its train and val index in data_root; validation is skipped if all val splits are empty."""
    dataset_weights: tuple[NonNegativeFloat, ...] = ()
    """Sampling weight of each data set, in the order of `datasets`. Empty: proportional to the number of studies."""
    image_size: Annotated[int, Field(ge=32)] = 128
    """Volume size along z and x in voxels; y is three quarters of it. 128 means 128 x 96 x 128 (z, y, x)."""
    volume_size: tuple[int, ...] = ()
    """Volume size along z, y, x in voxels, multiples of 32. Overrides image_size; empty uses image_size."""
    window_hu: tuple[float, float] = (-1000.0, 1000.0)
    """Intensity window in HU, mapped to [0, 1]."""
    max_text_len: Annotated[int, Field(ge=8)] = 250
    """Maximum tokens per report, including special tokens. Longer reports are truncated."""
    text_unit: Literal["clause", "sentence"] = "clause"
    """Text span that SAL, DCL and SSM treat as one sentence. clause: also split at commas, as in the published code."""
    sentence_views: NonNegativeInt = 2
    """Extra views of one to three sentences per report, contrasted with the volume like the full report. 0 disables them."""
    negated_view_fraction: Fraction = 0.25
    """Fraction of views that start with a negated finding; the others start with a positive one."""
    shuffle_reports: bool = False
    """Negative control: pair every training volume with another patient's report. Such a run must learn nothing."""
    num_workers: NonNegativeInt = 4
    """Data-loader processes per rank. 0 loads in the training process."""


@settings_group
class AugmentSettings:
    """Random augmentation of training volumes, drawn per study and epoch. Off by default, as in the paper."""

    augment_crop: tuple[float, float] = (1.0, 1.0)
    """Random resized crop: minimum and maximum side as fraction of the volume's side. Reports may describe what it cuts off."""
    augment_rotation_deg: NonNegativeFloat = 0.0
    """Maximum rotation in the axial plane, in degrees. Assumes equal voxel size along y and x."""
    augment_flip: bool = False
    """Mirror left and right with probability 0.5. Reports name sides: only for training without them."""
    augment_shift: Fraction = 0.0
    """Maximum shift of the intensity window, as fraction of its width."""
    augment_width: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Maximum change of the width of the intensity window, as fraction of it."""
    augment_noise: Fraction = 0.0
    """Maximum standard deviation of Gaussian noise on intensities in [0, 1]."""


@settings_group
class VisionSettings:
    """Volume encoder. Each kind reads a subset of these settings (settings/encoders.py)."""

    vision_encoder: Literal["swin", "vit", "unet", "nnunet"] = "swin"
    """Architecture, a key of mg3d/models/vision/registry.py."""
    embed_dim: PositiveInt = 48
    """Channels of the first stage, doubled by each further stage; ViT: of every block. Published: 48, Swin-L 96."""
    patch_size: PositiveInt | tuple[PositiveInt, PositiveInt, PositiveInt] = 2
    """Swin, ViT: side of the patch embedding in voxels, one number or [z,y,x]."""
    window_size: PositiveInt = 7
    """Swin: side of an attention window in tokens."""
    depths: tuple[int, ...] = (2, 2, 2, 2)
    """Swin: blocks per stage. Each stage ends with patch merging, which halves every axis. ViT: one stage."""
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    """Swin, ViT: attention heads per stage."""
    standardise_voxels: bool = False
    """Standardise each voxel position by its mean and standard deviation over training volumes, and predict masked voxels as
    deviations from the mean. Not for released weights, which expect volumes in [0, 1]."""
    patch_merging: PatchMerging = "legacy"
    """Swin: variant of patch merging. Names and shapes are equal in all three, features are not. legacy: released weights."""
    token_projection: bool = False
    """Swin: project the last stage to hidden_size with a three-layer MLP (Swin-L: 1536 -> 768), as published."""
    norm_statistics: Literal["batch", "instance"] = "batch"
    """U-Net: statistics of the norm layers, in training and evaluation. batch: over the rank's batch (published); instance: per
    volume."""
    gradient_checkpointing: bool = False
    """Recompute encoder blocks in the backward pass: less memory, about a third slower, identical gradients."""


@settings_group
class TextSettings:
    """Report encoder."""

    text_encoder: str = "StanfordAIMI/RadBERT"
    """Local folder or Hugging Face id of a BERT, or `tiny`: a small BERT trained from scratch with its own vocabulary."""
    freeze_text: bool = True
    """Freeze the text encoder and keep it in eval mode."""
    text_cache: str = ""
    """Folder with cached features of all unmasked training reports (tools/cache_text.py). Needs freeze_text. Empty: no cache.
    Masked reports and sentence views are random and are always encoded."""
    tiny_text_width: PositiveInt = 128
    """Hidden size of the `tiny` text encoder."""
    tiny_text_layers: PositiveInt = 2
    """Layers of the `tiny` text encoder."""
    tiny_text_heads: PositiveInt = 4
    """Attention heads of the `tiny` text encoder."""
    tiny_vocabulary: Annotated[int, Field(ge=50)] = 1500
    """Maximum WordPiece vocabulary of the `tiny` text encoder, trained on the training reports."""


@settings_group
class ModelSettings:
    """Fusion, pooling, heads and objectives."""

    hidden_size: PositiveInt = 768
    """Joint width of image and report tokens."""
    embedding_size: PositiveInt = 768
    """Width of the contrastive embeddings."""
    wiring: Wiring = "paper"
    """How image and report are joined. paper: as the paper describes it; released: as the published code computes it;
    intended: the published code with its two wiring mistakes corrected. docs/fidelity.md lists the differences."""
    fusion_layers: PositiveInt = 2
    """Fusion layers."""
    fusion_heads: PositiveInt = 12
    """Attention heads of fusion, pooling and report decoder; must divide hidden_size."""
    pool_queries: PositiveInt = 1
    """Learned queries of every attention pool."""
    image_pool: Literal["attention", "positional"] = "attention"
    """Pooling of image tokens for CML and DCL. attention: any volume size. positional: one linear map per grid position, for a
    fixed volume size; learns several times faster from few volumes."""
    contrast: Literal["infonce", "sigmoid"] = "infonce"
    """Loss of CML and DCL. infonce: softmax over all rows. sigmoid (SigLIP): binary loss per pair, with a learned bias."""
    mim_decoder: Literal["conv", "linear"] = "conv"
    """conv: the up-sampling decoder of the published code. linear: one linear layer per token, for small models."""
    mim_patch_size: PositiveInt = 16
    """Voxels per side of a masked patch."""
    mim_mask_ratio: Fraction = 0.5
    """Fraction of patches masked."""
    mlm_probability: Fraction = 0.15
    """Fraction of tokens masked in masked report modelling."""
    ssm_same_above: Fraction = 0.9
    """Sentences with at least this text cosine are positives of SSM."""
    ssm_differ_below: Fraction = 0.6
    """Sentences with at most this text cosine are negatives of SSM; in between they are ignored."""
    caption_layers: PositiveInt = 2
    """Layers of the report decoder (weight_captioning); its width is hidden_size, its heads fusion_heads."""
    caption_label_smoothing: Fraction = 0.0
    """Label smoothing of captioning."""


LossSettings = settings_group(
    type("LossSettings", (), {
        "__module__": __name__,
        "__doc__": "Weight of every objective (settings/objectives.py) in the total loss; 0 turns it off.",
        "__annotations__": {f"weight_{name}": NonNegativeFloat for name in OBJECTIVES},
        **{f"weight_{name}": Field(row.weight, description=row.help) for name, row in OBJECTIVES.items()},
    })
)  # fmt: skip


@settings_group
class OptimSettings:
    """Optimiser, schedule and batch size."""

    learning_rate: NonNegativeFloat = 1e-4
    """Peak learning rate of encoders and fusion. Use 1e-5 to continue from released weights."""
    head_lr_multiplier: NonNegativeFloat = 5.0
    """Learning-rate multiplier of heads and projections."""
    weight_decay: NonNegativeFloat = 1e-8
    """AdamW weight decay; not applied to biases, norms and other one-dimensional parameters."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """AdamW betas."""
    warmup_steps: NonNegativeInt = 10_000
    """Optimiser steps of linear warm-up, fewer than max_steps; then linear decay to 0."""
    max_steps: PositiveInt = 300_000
    """Optimiser steps."""
    grad_clip: NonNegativeFloat = 1.0
    """Maximum gradient norm. 0 disables clipping."""
    grad_cache_chunk: NonNegativeInt = 0
    """GradCache: volumes encoded at once, so that memory follows this number and not per_gpu_batchsize. Identical gradients, one
    more forward pass. Example: per_gpu_batchsize=256 grad_cache_chunk=8. 0 disables it."""
    text_negatives: NonNegativeInt = 0
    """Extra report negatives of CML per volume, sampled from `text_cache` (no encoder pass). 0 disables them."""
    per_gpu_batchsize: PositiveInt = 4
    """Maximum micro-batch per rank in volumes. Contrastive losses compare the volumes of one micro-batch over all ranks."""
    batch_size: PositiveInt = 16
    """Volumes per optimizer step over all ranks, reached by gradient accumulation."""


@settings_group
class RunSettings:
    """Hardware, output, checkpoints and validation."""

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Device to train on."""
    devices: NonNegativeInt = 0
    """Processes on this node. 0: every GPU, or one CPU process."""
    num_nodes: PositiveInt = 1
    """Number of nodes."""
    precision: Literal["auto", "32-true", "64-true", "16-mixed", "bf16-mixed"] = "auto"
    """auto: bf16-mixed on GPUs that support it, 16-mixed on other GPUs, 32-true on CPU."""
    float32_matmul_precision: Literal["highest", "high", "medium"] = "high"
    """Precision of float32 matrix products on a GPU. high: TF32."""
    compile: bool = False
    """Compile the volume encoder with torch.compile for training. Validation runs eagerly."""
    seed: NonNegativeInt = 0
    """Seed of initialisation, data order, masks and dropout."""
    log_dir: str = "result/pretrain"
    """Output folder: logs, checkpoints, tokenizer, evaluation."""
    run_name: str = ""
    """Subfolder of log_dir for this run. Empty: log_dir."""
    resume_from: str = ""
    """Checkpoint to resume from. last: newest of this run; auto: newest if there is one, else start; empty: start."""
    load_path: str = ""
    """Weights to initialise from: an mg3d checkpoint, a released file or one of another program (docs/checkpoints.md)."""
    load_patch_merging: Literal["", PatchMerging] = ""
    """Patch merging of the weights in load_path, where the file does not store it."""
    load_entry: str = ""
    """Key of the state dict in the file of load_path, such as `teacher`. Empty: detected."""
    load_prefix: str = ""
    """Prefix of the image encoder's parameter names in the file of load_path. Empty: detected."""
    load_minimum_coverage: Fraction = 0.9
    """Minimum fraction of the image encoder's parameters that load_path must contain. 0 also accepts files without an encoder."""
    val_interval: PositiveInt = 1000
    """Optimiser steps between validations, each of which writes a checkpoint."""
    val_batches: NonNegativeInt = 0
    """Maximum validation batches per rank. 0: all."""
    log_interval: PositiveInt = 50
    """Optimiser steps between logged values."""
    evidence: bool = True
    """Evaluate after training: zero-shot classification and retrieval on the test split, against the untrained model."""
    ground_truth_root: str = ""
    """Folder of a synthetic data set with its ground truth, for metrics that need it."""
    max_minutes: NonNegativeFloat = 0.0
    """Save a checkpoint and stop after this many minutes of training, counted from each start. 0: no limit."""


@settings_group
class Settings:
    """All settings by group."""

    data: DataSettings = field(default_factory=DataSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    vision: VisionSettings = field(default_factory=VisionSettings)
    text: TextSettings = field(default_factory=TextSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    run: RunSettings = field(default_factory=RunSettings)


CROP = (0.88, 0.65625, 0.875)
"""Central fraction of each axis (z, y, x) of a scan that becomes the volume; 336 x 448 of 512 x 512 pixels, as published."""


def volume_shape(image_size: int, volume_size: Sequence[int] = ()) -> tuple[int, int, int]:
    """Volume size (z, y, x) in voxels: `volume_size` if given, else the paper's 128 x 96 x 128 scaled to `image_size`."""
    depth, height, width = volume_size or (image_size, image_size * 3 // 4, image_size)
    return depth, height, width


def objective_weights(settings: LossSettings) -> dict[str, float]:
    """Weights of the active objectives by name; `weight_ssm` is the weight of `ssm`."""
    weights = {entry.name.removeprefix("weight_"): getattr(settings, entry.name) for entry in fields(settings)}
    return {name: weight for name, weight in weights.items() if weight > 0}
