"""Every tensor that passes between two parts of mg3d, named once, with its axes.

Letters: B patients of this rank, T tokens, S most sentences of a patient in the batch (clauses, where `text_unit` says so),
N image tokens, K views of a report, R further reports, d model width, E width of an embedding that is contrasted, V vocabulary, M
labelled tokens of the batch, D H W voxels along z, y, x. Volume axes are always C D H W with +z superior,
+y posterior, +x patient left, spacing in mm.
NamedTuples, because Lightning moves them to the device field by field.
"""

from typing import NamedTuple

import numpy as np
from torch import Tensor


class Sample(NamedTuple):
    """One study as the dataset gives it to the collator; nothing random has been drawn from its report yet."""

    volume: np.ndarray
    """int16 or uint8 [1, D, H, W]: the stored numbers, read-only; a view of the mapped file where the shard is uncompressed."""
    window: tuple[float, float]
    """The stored numbers that become 0 and 1."""
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
    """[B, 1, D, H, W] stored numbers: uint8 when all volumes of the batch are, else int16."""
    window: Tensor
    """float32 [B, 2]: the stored numbers that become 0 and 1."""
    affine: Tensor
    """float32 [B, 3, 4]: from a place in the volume that the model sees to its place in the stored one, both x, y, z in [-1, 1]
    between the volume's outer faces; [B, 0, 4] where nothing is moved."""
    noise: Tensor
    """float32 [B, 1]: deviation of the noise added to intensities in [0, 1]; [B, 0] where none is."""
    noise_seed: list[int]
    """Seed of each volume's noise; on the host, for generators are seeded there."""


class Batch(NamedTuple):
    """Output of the collator; input of the model after `datasets.windowing.convert_volumes`, on the device."""

    volume: Tensor | StoredVolumes
    """float32 [B, 1, D, H, W] in [0, 1]; from the collator to the device StoredVolumes, a quarter or half of the bytes."""
    patch_mask: Tensor
    """bool [B, D/c, H/c, W/c], c = `mim_patch_size` voxels; True = hidden from the encoder in masked volume modelling."""
    report_ids: Tensor
    """int64 [B, T]: [CLS] report [SEP] padding, nothing masked."""
    attention_mask: Tensor
    """bool [B, T]; True = real token."""
    sentence_index: Tensor
    """int64 [B, T]; 0-based sentence of the token, -1 for CLS, SEP and padding."""
    sentence_mask: Tensor
    """bool [B, S]; True = real sentence with at least one token."""
    sentence_polarity: Tensor
    """int8 [B, S]: -1 the sentence denies, +1 it states; 0 on padding."""
    mlm_ids: Tensor
    """int64 [B, T]: `report_ids` with masked words."""
    mlm_labels: Tensor
    """int64 [B, T]; the word to recover, -100 where nothing is asked."""
    view_ids: Tensor
    """int64 [B, K, T']: what the image-text contrast sees beside the whole report: [CLS] one to three of its sentences [SEP]."""
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
    """float32 [B, T, text width]: the frozen text encoder's features of `report_ids`, from a cache; () = there is none."""
    negative_sentences: Tensor | tuple[()] = ()
    """float32 [B, R, S', text width]: sentence means of those features, of R reports of other studies; () = none were drawn."""
    negative_sentence_mask: Tensor | tuple[()] = ()
    """bool [B, R, S']."""
    negative_patient_key: Tensor | tuple[()] = ()
    """int64 [B, R]."""
    negative_report_key: Tensor | tuple[()] = ()
    """int64 [B, R]."""


class Features(NamedTuple):
    """What the model computes from a batch, under the names the losses ask for. None = no active objective needs it.

    Every `*_embedding` is L2-normalised.
    """

    mlm_token_loss: Tensor | None = None
    """[M], cross entropy at each labelled token."""
    sal_prediction: Tensor | None = None
    """[B, S, d'], sentence features recovered from the masked report with the volume's help."""
    sal_target: Tensor | None = None
    """[B, S, d'], features of the same sentences, unmasked."""
    captioning_logits: Tensor | None = None
    """[B, T - 1, V]: scores of the word that follows each word of the report."""
    captioning_targets: Tensor | None = None
    """int64 [B, T - 1]: the words that follow; -100 on padding."""
    mim_prediction: Tensor | None = None
    """[B, 1, D, H, W]."""
    mim_target: Tensor | None = None
    """[B, 1, D, H, W] in [0, 1]."""
    patch_mask: Tensor | None = None
    """bool [B, D/c, H/c, W/c]; True = was hidden."""
    cml_first_embedding: Tensor | None = None
    """[B, E]; preset mg3d: the image, unfused."""
    cml_second_embedding: Tensor | None = None
    """[B, E]; preset mg3d: the report, unfused."""
    cml_view_embedding: Tensor | None = None
    """[B, K, E]; views of the report, unfused; None where CML has none."""
    cml_logit_scale: Tensor | None = None
    """Scalar; 1 / temperature."""
    cml_logit_bias: Tensor | None = None
    """Scalar; None where CML is InfoNCE."""
    dcl_image_embedding: Tensor | None = None
    """[B, E]."""
    dcl_aggregate_embedding: Tensor | None = None
    """[B, E]; image features gathered sentence by sentence."""
    dcl_logit_scale: Tensor | None = None
    """Scalar; 1 / temperature."""
    dcl_logit_bias: Tensor | None = None
    """Scalar; None where DCL is InfoNCE."""
    ssm_visual: Tensor | None = None
    """[B, S, 128], the visual side of every sentence; not normalised."""
    ssm_text: Tensor | None = None
    """[B, S, d''], the text side of every sentence, without gradient; not normalised."""
    sentence_mask: Tensor | None = None
    """bool [B, S]."""
    sentence_polarity: Tensor | None = None
    """int8 [B, S]."""
    patient_key: Tensor | None = None
    """int64 [B]."""
    report_key: Tensor | None = None
    """int64 [B]."""
    view_key: Tensor | None = None
    """int64 [B, K]."""
    negative_embedding: Tensor | None = None
    """[B, R, E]: reports of other studies, unfused."""
    negative_patient_key: Tensor | None = None
    """int64 [B, R]."""
    negative_report_key: Tensor | None = None
    """int64 [B, R]."""
