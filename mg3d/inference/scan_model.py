"""A trained model for inference: embed scans and reports, classify, retrieve, ground sentences, generate reports."""

import hashlib
import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from mg3d.datasets.studies import ReportText
from mg3d.evaluation.encoder import MG3DEncoder, as_sentence
from mg3d.evaluation.zero_shot import zero_shot_scores
from mg3d.glossary import LABELS, PROMPTS, prompts
from mg3d.inference.outputs import FindingScore, FindingScores, GroundingMap, Neighbours
from mg3d.inference.scan import Preprocessing, Scan, read_scan, scan_of_array
from mg3d.inference.search_index import SearchIndex
from mg3d.models.grounding import attention_maps, occlusion_maps
from mg3d.models.mg3d import MG3D
from mg3d.models.vision.registry import VisionEncoder
from mg3d.precision import full_precision, inference
from mg3d.report_sections import split_report
from mg3d.sentence_spans import build_report
from mg3d.settings.schema import Settings

JOINT, IMAGE_ONLY = "image and report", "image only"
"""Values of `ScanModel.space`."""


class VolumeEmbedder(nn.Module):
    """Volumes [B, 1, D, H, W] in [0, 1] -> unit-length embeddings [B, E].

    The embeddings of CML; for models without them, the mean of the image encoder's last feature map.
    """

    def __init__(self, model: MG3D | VisionEncoder) -> None:
        super().__init__()
        is_mg3d = isinstance(model, MG3D)
        self.is_joint = is_mg3d and model.has_joint_embedding
        self.network = model.vision if is_mg3d and not self.is_joint else model
        self.voxels = model.voxels if is_mg3d and not self.is_joint else None

    def forward(self, volume: Tensor) -> Tensor:
        """See the class."""
        if self.is_joint:
            return self.network.embed_volume(volume)
        normalized = volume if self.voxels is None else self.voxels(volume)
        return F.normalize(full_precision(self.network.encode(normalized)).mean((2, 3, 4)), dim=-1)


class ScanModel:
    """Result of `mg3d.load`. Methods take one scan and return one result, or take a sequence and return a list (or rows).

    Args:
        model: an MG3D model, or an image encoder.
        config: content of config.json; `preprocessing` is required.
        batch: maximum number of scans per forward pass.
        precision: see `mg3d.precision.autocast`.
    """

    def __init__(
        self,
        model: MG3D | VisionEncoder,
        *,
        settings: Settings,
        tokenizer: PreTrainedTokenizerBase | None,
        config: dict[str, Any],
        device: torch.device,
        batch: int = 4,
        precision: str = "32-true",
    ) -> None:
        self.model = model.to(device).eval()
        self.settings, self.tokenizer, self.config = settings, tokenizer, config
        self.device, self.batch, self.precision = device, batch, precision
        self.preprocessing = Preprocessing.from_config(config["preprocessing"])
        self.embedder = VolumeEmbedder(self.model).eval()

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.preprocessing.recipe.shape))
        vocabulary = f"vocabulary {len(self.tokenizer)}" if self.tokenizer is not None else "no tokenizer"
        parts = (self.settings.vision.vision_encoder, f"volumes {shape}", self.space, vocabulary, self.device, self.precision)
        return f"ScanModel({', '.join(map(str, parts))})"

    @property
    def vision(self) -> VisionEncoder:
        """The image encoder."""
        return self.model.vision if isinstance(self.model, MG3D) else self.model

    @property
    def space(self) -> str:
        """`image and report`: embeddings of scans and texts are comparable; `image only`: only those of scans exist."""
        return JOINT if self.embedder.is_joint else IMAGE_ONLY

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all weights and the preprocessing, so that embeddings of different models are never mixed."""
        digest = hashlib.sha256(repr(self.preprocessing).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    @cached_property
    def encoder(self) -> MG3DEncoder:
        """Encoder of texts and volumes; ValueError if this model cannot compare them."""
        if not isinstance(self.model, MG3D):
            raise ValueError("this is an image encoder without a text encoder. It can embed scans and find similar ones.")
        self._require_tokenizer()
        return MG3DEncoder(
            self.model, self.tokenizer, max_text_len=self.model.text.max_length, batch_size=8 * self.batch,
            precision=self.precision,
        )  # fmt: skip

    def _require_tokenizer(self) -> None:
        if self.tokenizer is None:
            raise ValueError("this model has no tokenizer. Pass tokenizer=<folder or hub name> to mg3d.load.")

    def read(self, source: str | Path | np.ndarray, *, spacing_mm: tuple[float, float, float] | None = None) -> Scan:
        """Read and preprocess a file, a folder of DICOM slices, or an array in HU [z, y, x] with its spacing.

        A warning on stderr says what is unusual: resampled, short, no chest.

        Raises:
            FileNotFoundError: the path does not exist.
            ValueError: the scan cannot be used, with the reason.
        """
        if isinstance(source, np.ndarray):
            scan = scan_of_array(source, self.preprocessing, spacing_mm=spacing_mm)
        else:
            scan = read_scan(source, self.preprocessing)
        if scan.note:
            print(f"mg3d: warning: a scan: {scan.note}", file=sys.stderr)  # not its name, which may be a patient's
        return scan

    def embed(self, scans: Scan | Sequence[Scan]) -> np.ndarray:
        """Unit-length embedding float32 [E], or [n, E]; see `VolumeEmbedder`."""
        if isinstance(scans, Scan):
            return self.embed([scans])[0]
        if not scans:
            raise ValueError("no scan to embed")
        with inference(self.precision, self.device):
            return np.concatenate([self.embedder(volume).float().cpu().numpy() for volume in self._batches(scans)])

    def embed_report(self, texts: str | Sequence[str]) -> np.ndarray:
        """Unit-length embedding float32 [E] of a report or sentence, or [n, E]; comparable with `embed`.

        Raises:
            ValueError: a text is empty, or this model has no text encoder.
        """
        if isinstance(texts, str):
            return self.embed_report([texts])[0]
        reports = [self._split_sentences(text) for text in texts]
        if not reports:
            raise ValueError("no text to embed")
        return self.encoder.embed_texts(reports).numpy()

    def sentences(self, report: str) -> list[str]:
        """The sentences (or clauses, as in training) of a report."""
        text, spans = self._split_sentences(report)
        return [text[start:end] for start, end in spans]

    def _split_sentences(self, report: str) -> ReportText:
        text, units = build_report(*split_report(report))
        kind = int(self.settings.data.text_unit == "clause")
        spans = tuple((unit.start, unit.end) for unit in units if unit.kind == kind)
        if not spans:
            raise ValueError("the text is empty; pass a sentence or a report")
        return ReportText(text, spans)

    def classify(
        self, scans: Scan | Sequence[Scan], findings: Sequence[str] = LABELS, *, wording: str = "there_is"
    ) -> FindingScores | list[FindingScores]:
        """Zero-shot scores of findings: similarity to "There is ..." against "There is no ...".

        findings: any names; by default the 18 of CT-RATE.
        wording: a key of `glossary.PROMPTS`.

        Raises:
            ValueError: no finding, an unknown wording, or a model without a text encoder.
        """
        pairs = self.prompts(findings, wording=wording)
        if isinstance(scans, Scan):
            return self.classify_embeddings(self.embed(scans)[None], findings, pairs)[0]
        return self.classify_embeddings(self.embed(scans), findings, pairs)

    def prompts(self, findings: Sequence[str], *, wording: str) -> list[tuple[str, str]]:
        """Prompt pair (present, absent) of each finding."""
        if isinstance(findings, str) or not findings or not all(isinstance(name, str) and name.strip() for name in findings):
            raise ValueError("findings must be a list of names such as ['Pleural effusion', 'Lung nodule']")
        if wording not in PROMPTS:
            raise ValueError(f"unknown wording {wording!r}. Choose one of {', '.join(PROMPTS)}.")
        return [prompts(name.strip(), wording=wording) for name in findings]

    def classify_embeddings(
        self, vectors: np.ndarray, names: Sequence[str], pairs: Sequence[tuple[str, str]]
    ) -> list[FindingScores]:
        """`classify` from embeddings [n, E] and the prompt pair of each name."""
        texts = [as_sentence(text) for pair in pairs for text in pair]
        embedded = self.encoder.embed_texts(texts).unflatten(0, (len(pairs), 2))
        scores = zero_shot_scores(torch.from_numpy(vectors), embedded, self.encoder.logit_scale)
        return [
            FindingScores(FindingScore(name, float(score), *pair) for name, score, pair in zip(names, row, pairs, strict=True))
            for row in scores
        ]

    def retrieve(
        self, query: Scan | str | np.ndarray, index: SearchIndex | str | Path, *, k: int = 10, kind: str | None = None
    ) -> Neighbours:
        """The `k` entries of an index nearest to a scan, a text, or an embedding [E].

        kind: restrict to `scan`, `report` or `sentence` entries.

        Raises:
            FileNotFoundError, ValueError: the index is missing, of another model, or has no entry of that kind.
        """
        index = index if isinstance(index, SearchIndex) else SearchIndex.load(index)
        index.require(self.fingerprint)
        if isinstance(query, str):
            query = self.embed_report(query)
        elif isinstance(query, Scan):
            query = self.embed(query)
        return index.search(query[None], k=k, kind=kind)[0]

    def generate(self, scans: Scan | Sequence[Scan], **decoding: Any) -> str | list[str]:
        """Generate the report of each scan; `decoding` goes to `ReportDecoder.generate` (num_beams, temperature ...).

        Raises:
            ValueError: the model has no captioning head.
        """
        if isinstance(scans, Scan):
            return self.generate([scans], **decoding)[0]
        self.require_captioning()
        tokenizer = self.tokenizer
        options = {
            "bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "max_length": min(self.settings.data.max_text_len, self.model.text.max_length),
            **decoding,
        }  # fmt: skip
        with inference(self.precision, self.device):
            rows = [row for volume in self._batches(scans) for row in self.model.generate_reports(volume, **options)]
        return [tokenizer.decode(row.tolist(), skip_special_tokens=True).strip() for row in rows]

    def require_captioning(self) -> None:
        """Raise ValueError if this model cannot generate reports."""
        if not isinstance(self.model, MG3D) or "captioning" not in self.model.branches:
            raise ValueError(
                "this model was trained without a captioning head, so it cannot generate reports. "
                "retrieve(scan, index, kind='report') finds similar ones."
            )
        self._require_tokenizer()

    def ground(self, scan: Scan, sentence: str, *, against: str | None = None, by: str = "contrast") -> GroundingMap:
        """Map the evidence for a sentence over the image tokens; a report of several sentences counts as one.

        Args:
            against: a contrasting text such as "There is no effusion."; evidence for both cancels.
            by: `contrast`: how much each token raises the cosine of scan and sentence; `attention`: attention of the sentence,
                for models with DCL or SSM.

        Raises:
            ValueError: an empty text, a model without a text encoder, or a method that the model does not have.
        """
        encoder, text = self.encoder, self._split_sentences(sentence).report
        with inference(self.precision, self.device):
            tokens = encoder.tokenize([as_sentence(text)])
            image = self.model.encode_volume(next(self._batches([scan])))
            report = self.model.embed_report(*tokens, max_sentences=1)
            if by == "contrast":
                negative = 0.0
                if against is not None:
                    tokens_against = encoder.tokenize([as_sentence(self._split_sentences(against).report)])
                    negative = self.model.embed_report(*tokens_against, max_sentences=1)
                fractions = occlusion_maps(self.model, image, report - negative)
            elif by == "attention" and against is None:
                fractions = attention_maps(self.model, image, tokens)
                if fractions is None:
                    raise ValueError("this model has no attention from sentences to the image. Use by='contrast'.")
            else:
                raise ValueError(f"by={by!r} must be 'contrast', or 'attention' without `against`")
            cells = (fractions[0, 0] * image.shape[1]).view(self.model.grid).float().cpu().numpy()
            similarity = float((self.model.contrast.embed_image(image) * report).sum())
        return GroundingMap(text, cells, tuple(int(voxels) for voxels in self.vision.stride), scan, similarity)

    def _batches(self, scans: Sequence[Scan]) -> Iterator[Tensor]:
        """Batches [b, 1, D, H, W] on the device."""
        dtype = next(self.model.parameters()).dtype
        for start in range(0, len(scans), self.batch):
            volumes = np.stack([scan.volume for scan in scans[start : start + self.batch]])
            yield torch.from_numpy(volumes)[:, None].to(self.device, dtype)
