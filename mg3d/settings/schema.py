"""Every setting of pre-training, once: its type, its default, its unit and meaning.

Flat on the command line (`learning_rate=2e-5`), grouped in code (`config.optim.learning_rate`); no name occurs in two groups.
The defaults are the paper's recipe with the objective `mg3d`; `presets.py` holds the other recipes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Literal

from mg3d.settings.objectives import OBJECTIVES

DatasetName = Literal["ct_rate", "ctrg", "rad_chestct", "custom"]
"""Data sets that the preparation writes."""
Wiring = Literal["paper", "intended", "released"]
"""See `ModelSettings.wiring`."""
PatchMerging = Literal["legacy", "monai", "monai_v2"]
"""MG-3D's and early MONAI's; MONAI's present default `merging`; its `mergingv2` (the same neighbours in another order)."""


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Where the data lie and how a study becomes a sample."""

    data_root: str = "data/pretrain_arrows"
    """Folder with the Arrow files that prepro/prepro_pretraining_data.py wrote, or the URL of one (s3://, gs://, hf://, ...)."""
    cache_dir: str = "data/cache"
    """Where files of a data_root that is a URL are kept, each copied whole when it is first read."""
    datasets: tuple[DatasetName, ...] = ("ct_rate", "ctrg")
    """Data sets to mix; each needs its `_train` and `_val` file in data_root. All `_val` files empty: nothing is validated."""
    dataset_weights: tuple[float, ...] = ()
    """Share of each data set in the draws, in the order of `datasets`; empty = by number of studies."""
    image_size: int = 128
    """Voxels along z and x; y has three quarters of it. 128 means a volume of (128, 96, 128) voxels along z, y, x."""
    volume_size: tuple[int, ...] = ()
    """Voxels along z, y and x, multiples of 32; empty = as image_size says."""
    window_hu: tuple[float, float] = (-1000.0, 1000.0)
    """HU that become 0 and 1."""
    max_text_len: int = 250
    """Most tokens of a report, special tokens included; longer ones are cut before their [SEP]."""
    text_unit: Literal["clause", "sentence"] = "clause"
    """What counts as one sentence in SAL, DCL and SSM. The original cuts at commas too: clause."""
    sentence_views: int = 2
    """Views of each report, of one to three sentences, that the image-text contrast sees beside the whole; 0 = none."""
    negated_view_fraction: float = 0.25
    """Share of views that begin with a sentence that denies a finding; the others begin with one that states something."""
    shuffle_reports: bool = False
    """Negative control: pair every training volume with another patient's report. Such a run must learn nothing."""
    num_workers: int = 4
    """Loader processes per rank; 0 loads in the training process."""


@dataclass(frozen=True, kw_only=True)
class AugmentSettings:
    """Random changes of training volumes, drawn anew for each study and epoch; off by default, as in the paper."""

    augment_crop: tuple[float, float] = (1.0, 1.0)
    """Smallest and largest side of a box somewhere in the volume, as share of the volume's; the box is enlarged to the volume's
    size. What it leaves out may still be in the report."""
    augment_rotation_deg: float = 0.0
    """Largest turn in the axial plane, to either side; taken as if voxels were equally large along y and x."""
    augment_flip: bool = False
    """Exchange left and right in half of the volumes. Reports say left and right: only for a training without them."""
    augment_shift: float = 0.0
    """Largest shift of the intensity window up or down, as share of its width."""
    augment_width: float = 0.0
    """Largest change of the intensity window's width, as share of it."""
    augment_noise: float = 0.0
    """Largest deviation of normal noise, for intensities in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class VisionSettings:
    """The volume encoder. encoders.py says which of these each kind reads; the others are not read by it."""

    vision_encoder: Literal["swin", "unet", "nnunet"] = "swin"
    """Kind of encoder, a name of mg3d/models/vision/registry.py."""
    embed_dim: int = 48
    """Channels of the patch embedding or first map, doubled by each stage. All published sizes 48, but Swin-L 96."""
    patch_size: int = 2
    """Voxels per side of an embedded patch."""
    window_size: int = 7
    """Tokens per side of an attention window."""
    depths: tuple[int, ...] = (2, 2, 2, 2)
    """Blocks per stage; each stage ends in a merging that halves every axis."""
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    """Attention heads per stage."""
    standardise_voxels: bool = False
    """The encoder sees every voxel minus its mean over training volumes, divided by its deviation; what sets a patient apart is
    then not drowned in what all chests share. The released weights want volumes in [0, 1] as they are."""
    patch_merging: PatchMerging = "legacy"
    """legacy: the merging the released weights were trained with. Equal keys and shapes, other features: never mix."""
    token_projection: bool = False
    """Swin: three layers bring the last map to hidden_size channels (Swin-L: 1536 -> 768), as the original pre-trained Swin-L."""
    norm_statistics: Literal["batch", "instance"] = "batch"
    """U-Net: what its norms measure, in evaluation too. batch: all volumes of the rank's batch (the original); instance: each."""
    gradient_checkpointing: bool = False
    """Compute the encoder's blocks again in the backward pass: less memory, about a third more time, equal gradients."""


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """The report encoder."""

    text_encoder: str = "StanfordAIMI/RadBERT"
    """A local directory, a hub id, or `tiny`: a small BERT from scratch with a vocabulary of the training reports."""
    freeze_text: bool = True
    """Keep the text encoder's weights, in eval mode and without gradient."""
    text_cache: str = ""
    """Folder with the frozen text encoder's features of every unmasked report, made by tools/cache_text.py; empty = it reads each
    report anew. Masked reports and views of one to three sentences are drawn each time, and always read anew."""
    tiny_text_width: int = 128
    """Width of the `tiny` text encoder."""
    tiny_text_layers: int = 2
    """Layers of the `tiny` text encoder."""
    tiny_text_heads: int = 4
    """Heads of the `tiny` text encoder."""
    tiny_vocabulary: int = 1500
    """Most WordPiece entries of the `tiny` text encoder."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Fusion, pooling, heads and objectives."""

    hidden_size: int = 768
    """Joint width of image and report tokens."""
    embedding_size: int = 768
    """Width of the contrastive embeddings."""
    wiring: Wiring = "paper"
    """How image and report are joined. paper: as the paper describes it; released: as the published code computes it;
    intended: the published code with its two wiring mistakes corrected. docs/fidelity.md lists the differences."""
    fusion_layers: int = 2
    """Fusion layers."""
    fusion_heads: int = 12
    """Attention heads of fusion, pooling and report decoder; must divide hidden_size."""
    pool_queries: int = 1
    """Learned queries of every attention pool."""
    image_pool: Literal["attention", "positional"] = "attention"
    """Pooling of image tokens for CML and DCL. attention: any volume size. positional: one linear map per grid position, for a
    fixed volume size; learns several times faster from few volumes."""
    contrast: Literal["infonce", "sigmoid"] = "infonce"
    """Loss of CML and DCL. infonce: softmax over all rows. sigmoid (SigLIP): binary loss per pair, with a learned bias."""
    mim_decoder: Literal["conv", "linear"] = "conv"
    """conv: the up-sampling decoder of the published code. linear: one linear layer per token, for small models."""
    mim_patch_size: int = 16
    """Voxels per side of a masked patch."""
    mim_mask_ratio: float = 0.5
    """Fraction of patches masked."""
    mlm_probability: float = 0.15
    """Fraction of tokens masked in masked report modelling."""
    ssm_same_above: float = 0.9
    """Sentences with at least this text cosine are positives of SSM."""
    ssm_differ_below: float = 0.6
    """Sentences with at most this text cosine are negatives of SSM; in between they are ignored."""
    caption_layers: int = 2
    """Layers of the report decoder (weight_captioning); its width is hidden_size, its heads fusion_heads."""
    caption_label_smoothing: float = 0.0
    """Label smoothing of captioning."""


LossSettings = make_dataclass(
    "LossSettings",
    [
        (f"weight_{name}", float, field(default=row.weight, metadata={"help": row.help}))
        for name, row in OBJECTIVES.items()
    ],
    frozen=True,
    kw_only=True,
)
LossSettings.__module__ = __name__  # so that instances can be pickled
LossSettings.__doc__ = "Weight of every objective (settings/objectives.py) in the total loss; 0 turns it off."


@dataclass(frozen=True, kw_only=True)
class OptimSettings:
    """Optimiser and schedule."""

    learning_rate: float = 1e-4
    """Peak rate of encoder and fusion. Continue released weights with 1e-5."""
    head_lr_multiplier: float = 5.0
    """Heads and projections learn this many times faster."""
    weight_decay: float = 1e-8
    """Decoupled decay; none on biases, norms and one-dimensional parameters."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's running averages."""
    warmup_steps: int = 10_000
    """Optimiser steps of linear warm-up; smaller than max_steps. Original: 10,000 of 300,000."""
    max_steps: int = 300_000
    """Optimiser steps in all."""
    grad_clip: float = 1.0
    """Largest gradient norm; 0 does not clip."""
    grad_cache_chunk: int = 0
    """Volumes of a pass whose graph is held at a time; each is computed again in the backward pass, and all are contrasted with
    one another: per_gpu_batchsize=256 grad_cache_chunk=8. Equal gradients, one more forward pass. 0 = all at once."""
    text_negatives: int = 0
    """Extra report negatives of CML per volume, sampled from `text_cache` (no encoder pass). 0 disables them."""
    per_gpu_batchsize: int = 4
    """Most volumes per rank and pass. A rank takes fewer where its share of batch_size is smaller."""
    batch_size: int = 16
    """Volumes per optimiser step over all ranks, made up of passes of per_gpu_batchsize; what these cannot make up is refused."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Machine, output, validation."""

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to train."""
    devices: int = 0
    """Processes on this node; 0 = every GPU, or one CPU process."""
    num_nodes: int = 1
    """Nodes."""
    precision: Literal["auto", "32-true", "64-true", "16-mixed", "bf16-mixed"] = "auto"
    """auto: bf16 where the GPU has it, fp16 on other GPUs, 32 bits on CPU."""
    compile: bool = False
    """Train with the volume encoder compiled (`torch.compile`), forward and backward; its first passes wait for that. Validation
    and what reads the checkpoint are not compiled."""
    seed: int = 0
    """Seed of initialisation, order of data, masks and dropout."""
    log_dir: str = "result/pretrain"
    """Folder of logs, checkpoints, tokenizer and pages."""
    run_name: str = ""
    """Sub-folder of log_dir; empty = log_dir itself."""
    resume_from: str = ""
    """A checkpoint of this run to go on from; `last` = the newest of the run folder; `auto` = that where there is
    one, else start anew; empty = start anew."""
    load_path: str = ""
    """Weights to start from (not to resume): a released file, one of this package or of another. docs/checkpoints.md."""
    load_patch_merging: Literal["", PatchMerging] = ""
    """Patch merging that the weights of load_path were trained with, where the file does not tell."""
    load_entry: str = ""
    """Where in the file of load_path the tensors lie, such as `teacher`; empty = found by itself."""
    load_prefix: str = ""
    """What stands before the image encoder's names in the file of load_path; empty = found by itself."""
    load_minimum_coverage: float = 0.9
    """Least share of the image encoder's parameters that the file of load_path must hold; 0 = also none, as for METER's."""
    val_interval: int = 1000
    """Optimiser steps between validations and checkpoints."""
    val_batches: int = 0
    """Validation batches per rank; 0 = all."""
    log_interval: int = 50
    """Optimiser steps between two logged points."""
    evidence: bool = True
    """After training: zero-shot and retrieval on the held-out studies, trained beside untrained, and a page of them."""
    ground_truth_root: str = ""
    """Folder of a synthetic set's truth files; adds what only known truth can tell."""
    max_minutes: float = 0.0
    """Stop (with a checkpoint) after this many minutes of training, counted anew when a run goes on; 0 = no limit."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings, by group."""

    data: DataSettings = field(default_factory=DataSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    vision: VisionSettings = field(default_factory=VisionSettings)
    text: TextSettings = field(default_factory=TextSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    run: RunSettings = field(default_factory=RunSettings)


CROP = (0.88, 0.65625, 0.875)
"""Central share of each axis (z, y, x) of a scan that becomes the volume; 336 and 448 of 512 pixels, as the original."""


def volume_shape(image_size: int, volume_size: Sequence[int] = ()) -> tuple[int, int, int]:
    """Voxels (z, y, x) of a volume: `volume_size`, or without one the paper's 128 x 96 x 128, scaled to `image_size`."""
    depth, height, width = volume_size or (image_size, image_size * 3 // 4, image_size)
    return depth, height, width


def objective_weights(settings: LossSettings) -> dict[str, float]:
    """Objective -> weight of those that are on; `weight_ssm` is the weight of `ssm`."""
    weights = {entry.name.removeprefix("weight_"): getattr(settings, entry.name) for entry in fields(settings)}
    return {name: weight for name, weight in weights.items() if weight > 0}
