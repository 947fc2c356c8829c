"""Data that passes between packages of mg3d, with the axes of every tensor.

B patients of this rank, T tokens, S maximum number of sentences per patient in the batch (clauses with text_unit=clause), N
image tokens, K views per report, R extra report negatives, d joint width, E embedding width, V vocabulary, M maximum number of
masked tokens per patient, D H W voxels along z, y, x. Volume axes are C D H W with +z superior, +y posterior, +x patient left,
spacing in mm. Batches are NamedTuples because Lightning moves those to the device field by field.
"""

from typing import NamedTuple, TypedDict

import numpy as np
from torch import Tensor


class Sample(NamedTuple):
    """One study as the dataset gives it to the collator; nothing random has been drawn from its report yet."""

    volume: np.ndarray
    """int16 or uint8 [1, D, H, W]: stored values, read-only; a view of the memory-mapped file if the shard is uncompressed."""
    window: tuple[float, float]
    """Stored values that map to 0 and 1."""
    report: str
    sentence_spans: tuple[tuple[int, int], ...]
    """Character offsets (start, end) of each sentence (or clause) in `report`, in order."""
    labels: np.ndarray
    """int8 [18]: 1 present, 0 absent, -1 not known; order of `glossary.LABELS`."""
    study_id: str
    patient_id: str
    seed: tuple[int, ...]
    """Seed of every random draw for this sample, (run seed, epoch, position); the same for any number of workers and ranks."""


class StoredVolumes(NamedTuple):
    """Stored voxels of a batch and the random transforms drawn for them; `datasets.windowing` turns them into model input."""

    voxels: Tensor
    """[B, 1, D, H, W] stored values: uint8 if all volumes of the batch are, else int16."""
    window: Tensor
    """float32 [B, 2]: stored values that map to 0 and 1."""
    affine: Tensor
    """float32 [B, 3, 4]: from coordinates in the model's volume to those in the stored volume, both x, y, z in [-1, 1] between
    the outer faces (as `grid_sample`); [B, 0, 4] without spatial augmentation."""
    noise: Tensor
    """float32 [B, 1]: standard deviation of noise added to intensities in [0, 1]; [B, 0] without noise."""
    noise_seed: list[int]
    """Seed of each volume's noise; on the host, where generators are seeded."""


class Batch(NamedTuple):
    """Output of the collator; input of the model after `datasets.windowing.convert_volumes`, on the device."""

    volume: Tensor | StoredVolumes
    """float32 [B, 1, D, H, W] in [0, 1]; StoredVolumes before conversion on the device, at a quarter or half of the bytes."""
    patch_mask: Tensor
    """bool [B, D/c, H/c, W/c], c = `mim_patch_size` voxels; True = masked in MIM."""
    report_ids: Tensor
    """int64 [B, T]: [CLS] report [SEP] padding, nothing masked."""
    attention_mask: Tensor
    """bool [B, T]; True = real token."""
    sentence_index: Tensor
    """int64 [B, T]; 0-based sentence of the token, -1 for CLS, SEP and padding."""
    sentence_mask: Tensor
    """bool [B, S]; True = real sentence with at least one token."""
    sentence_polarity: Tensor
    """int8 [B, S]: 1 affirmed, -1 negated, 2 uncertain (`mg3d.polarity`); 0 on padding."""
    mlm_ids: Tensor
    """int64 [B, T]: `report_ids` with masked tokens."""
    mlm_labels: Tensor
    """int64 [B, T]: original ids of masked tokens, -100 elsewhere."""
    mlm_positions: Tensor
    """int64 [B, M]: positions of masked tokens, ascending; 0 ([CLS], never masked) as padding. From `masking.label_positions`."""
    view_ids: Tensor
    """int64 [B, K, T']: views of the report for CML: [CLS] one to three of its sentences [SEP]."""
    view_attention_mask: Tensor
    """bool [B, K, T']."""
    view_sentence_index: Tensor
    """int64 [B, K, T'], as `sentence_index`."""
    patient_key: Tensor
    """int64 [B]; equal for volumes of one patient."""
    report_key: Tensor
    """int64 [B]; equal for equal normalised reports."""
    view_key: Tensor
    """int64 [B, K]; equal for equal normalised texts of views."""
    labels: Tensor
    """int8 [B, 18]; 1 present, 0 absent, -1 not known. No pre-training loss reads it; evaluation does."""
    study_id: list[str]
    text_features: Tensor | tuple[()] = ()
    """float32 [B, T, text width]: the frozen text encoder's features of `report_ids`, from the text cache; () without one."""
    negative_sentences: Tensor | tuple[()] = ()
    """float32 [B, R, S', text width]: sentence means of features of R reports of other studies; () if unused."""
    negative_sentence_mask: Tensor | tuple[()] = ()
    """bool [B, R, S']."""
    negative_patient_key: Tensor | tuple[()] = ()
    """int64 [B, R]."""
    negative_report_key: Tensor | tuple[()] = ()
    """int64 [B, R]."""


class Features(TypedDict, total=False):
    """Inputs of the losses, by name, as the branches of the model compute them; embeddings are L2-normalised.

    A new branch may add features under other names; all but scalars have the patients as first axis.
    """

    mlm_tokens: Tensor
    """int64 [B]: number of masked tokens."""
    mlm_token_loss: Tensor
    """[B, M]: cross entropy of each masked token; 0 at padding."""
    sal_prediction: Tensor
    """[B, S, d']: sentences recovered from the masked report with the help of the volume."""
    sal_target: Tensor
    """[B, S, d']: the same sentences, unmasked."""
    captioning_loss: Tensor
    """[B]: sum of the cross entropies of the tokens of a report."""
    captioning_tokens: Tensor
    """int64 [B]: number of these tokens."""
    mim_prediction: Tensor
    """[B, 1, D, H, W]."""
    mim_target: Tensor
    """[B, 1, D, H, W] in [0, 1]."""
    cml_image_embedding: Tensor
    """[B, E]."""
    cml_report_embedding: Tensor
    """[B, E]."""
    cml_view_embedding: Tensor
    """[B, K, E]: views of the report."""
    cml_logit_scale: Tensor
    """Scalar, 1 / temperature."""
    cml_logit_bias: Tensor
    """Scalar; with contrast=sigmoid."""
    negative_embedding: Tensor
    """[B, R, E]: reports of other studies."""
    negative_patient_key: Tensor
    """int64 [B, R]."""
    negative_report_key: Tensor
    """int64 [B, R]."""
    cml_multimodal_embedding: Tensor
    """[B, E], only in the released wirings: report and image after fusion."""
    cml_unimodal_embedding: Tensor
    """[B, E], only in the released wirings: report and image before fusion."""
    dcl_image_embedding: Tensor
    """[B, E]."""
    dcl_aggregate_embedding: Tensor
    """[B, E]: image features gathered sentence by sentence."""
    dcl_logit_scale: Tensor
    """Scalar, 1 / temperature."""
    dcl_logit_bias: Tensor
    """Scalar; with contrast=sigmoid."""
    ssm_visual: Tensor
    """[B, S, 128]: visual side of every sentence, not normalised."""
    ssm_text: Tensor
    """[B, S, d'']: text side of every sentence, without gradient, not normalised."""
    sentence_mask: Tensor
    """bool [B, S]; this and the following are fields of the batch."""
    sentence_polarity: Tensor
    """int8 [B, S]."""
    patch_mask: Tensor
    """bool [B, D/c, H/c, W/c]; True = masked."""
    patient_key: Tensor
    """int64 [B]."""
    report_key: Tensor
    """int64 [B]."""
    view_key: Tensor
    """int64 [B, K]."""
