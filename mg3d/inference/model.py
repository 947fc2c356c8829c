"""A trained model that answers: what is in a scan, what is near to it, what would be written of it, and where."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from mg3d.datasets.tokenizer import pad_reports
from mg3d.evaluation.encoder import MG3DEncoder, as_sentence
from mg3d.evaluation.zero_shot import zero_shot_scores
from mg3d.glossary import LABELS, PROMPTS, prompts
from mg3d.inference.index import SearchIndex
from mg3d.inference.results import Finding, Findings, Neighbours, Region, Report
from mg3d.inference.scans import Preprocessing, Scan, read_scan, scan_of_array
from mg3d.models.grounding import Texts, attention_maps, occlusion_maps
from mg3d.models.mg3d import MG3D
from mg3d.models.vision.registry import VisionEncoder
from mg3d.sentence_spans import clean_section, report_units
from mg3d.settings.schema import Settings

JOINT, IMAGE_ALONE = "image and report", "image alone"
"""Values of `ScanModel.space`."""
_NO_TOKENIZER = "no tokenizer was found with this model, so it knows no text; pass tokenizer=<folder or hub name> to mg3d.load"


class VolumeEmbedder(nn.Module):
    """Volumes [B, 1, D, H, W] in [0, 1] -> [B, E] of length 1: what CML contrasts, or where there is no such thing the mean of
    the image encoder's last map."""

    def __init__(self, model: MG3D | VisionEncoder) -> None:
        super().__init__()
        is_whole = isinstance(model, MG3D)
        self.is_joint = is_whole and model.has_joint_embedding
        self.network = model.vision if is_whole and not self.is_joint else model
        self.voxels = model.voxels if is_whole and not self.is_joint else None

    def forward(self, volume: Tensor) -> Tensor:
        """See the class."""
        if self.is_joint:
            return self.network.embed_volume(volume)
        standard = volume if self.voxels is None else self.voxels(volume)
        return F.normalize(self.network.encode(standard).mean((2, 3, 4)), dim=-1)


class ScanModel:
    """What `mg3d.load` gives. One scan gives one answer, a sequence of scans a list of them (or rows of an array).

    Args:
        model: the whole pre-training model, or an image encoder alone.
        config: `preprocessing` and what else a config.json says.
        batch: most scans in one pass.
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
    ) -> None:
        self.model = model.to(device).eval()
        self.settings, self.tokenizer, self.config = settings, tokenizer, config
        self.device, self.batch = device, batch
        self.preprocessing = Preprocessing.of(config["preprocessing"])
        self.embedder = VolumeEmbedder(self.model).eval()

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.preprocessing.recipe.shape))
        words = f"{len(self.tokenizer)} words" if self.tokenizer is not None else "no tokenizer"
        return f"ScanModel({self.settings.vision.vision_encoder}, volumes {shape}, {self.space}, {words}, {self.device})"

    @property
    def vision(self) -> VisionEncoder:
        """The image encoder."""
        return self.model.vision if isinstance(self.model, MG3D) else self.model

    @property
    def space(self) -> str:
        """image and report: embeddings of scans and of texts can be compared; image alone: only those of scans."""
        return JOINT if self.embedder.is_joint else IMAGE_ALONE

    @cached_property
    def fingerprint(self) -> str:
        """Changes with any weight and with the preprocessing, so that embeddings of two models are never mixed."""
        digest = hashlib.sha256(repr(self.preprocessing).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def read(self, source: str | Path | np.ndarray, *, spacing_mm: tuple[float, float, float] | None = None) -> Scan:
        """A scan of a file, of a folder of DICOM slices, or of HU [z, y, x] (with its spacing), as this model sees it.

        Raises:
            FileNotFoundError: there is nothing of that name.
            ValueError: it cannot be used; says why.
        """
        if isinstance(source, np.ndarray):
            return scan_of_array(source, self.preprocessing, spacing_mm=spacing_mm)
        return read_scan(source, self.preprocessing)

    @torch.inference_mode()
    def embed(self, scans: Scan | Sequence[Scan]) -> np.ndarray:
        """float32 [E] of length 1, or [n, E]: what the contrast compares; for `image alone` the mean of the last map."""
        if isinstance(scans, Scan):
            return self.embed([scans])[0]
        if not scans:
            raise ValueError("there is no scan to embed; give at least one")
        return np.concatenate([self.embedder(volume).float().cpu().numpy() for volume in self._volumes(scans)])

    @torch.inference_mode()
    def embed_report(self, texts: str | Sequence[str]) -> np.ndarray:
        """float32 [E] of length 1 of a report or sentence, or [n, E]; comparable with `embed`.

        Raises:
            ValueError: a text has no word, or this model reads none.
        """
        if isinstance(texts, str):
            return self.embed_report([texts])[0]
        rows = [self._units(text) for text in texts]
        model, tokenizer = self._reader()
        vectors = []
        for start in range(0, len(rows), 8 * self.batch):
            part = pad_reports(tokenizer, rows[start : start + 8 * self.batch], model.text.max_length)
            vectors.append(model.embed_report(*(field.to(self.device) for field in part)).float().cpu().numpy())
        if not vectors:
            raise ValueError("there is no text to embed; give at least one")
        return np.concatenate(vectors)

    def sentences(self, report: str) -> list[str]:
        """The units of a report that this model was trained to compare: sentences or clauses."""
        text, units = self._units(report)
        return [text[start:end] for start, end in units]

    def _units(self, report: str) -> tuple[str, tuple[tuple[int, int], ...]]:
        text, units = report_units(clean_section(report), None)
        kind = int(self.settings.data.text_unit == "clause")
        chosen = tuple((unit.start, unit.end) for unit in units if unit.kind == kind)
        if not chosen:
            raise ValueError("a text without a word cannot be embedded; give a sentence or a report")
        return text, chosen

    def classify(
        self, scans: Scan | Sequence[Scan], findings: Sequence[str] = LABELS, *, wording: str = "there_is"
    ) -> Findings | list[Findings]:
        """How much nearer a scan is to "there is ..." than to "there is no ...", for each finding.

        findings: any words; those of `glossary.LABELS` are what the field reports.
        wording: a key of `glossary.PROMPTS`.

        Raises:
            ValueError: no finding, a wording that is not known, or a model that reads no text.
        """
        pairs = self.prompts(findings, wording=wording)
        if isinstance(scans, Scan):
            return self.findings(self.embed(scans)[None], findings, pairs)[0]
        return self.findings(self.embed(scans), findings, pairs)

    def prompts(self, findings: Sequence[str], *, wording: str) -> list[tuple[str, str]]:
        """The pair (present, absent) of each finding."""
        if isinstance(findings, str) or not findings or not all(isinstance(name, str) and name.strip() for name in findings):
            raise ValueError("findings: expected a list of words such as ['Pleural effusion', 'Lung nodule']")
        if wording not in PROMPTS:
            raise ValueError(f"wording {wording!r} is not known; choose one of {', '.join(PROMPTS)}")
        return [prompts(name.strip(), wording=wording) for name in findings]

    @torch.inference_mode()
    def findings(self, vectors: np.ndarray, names: Sequence[str], pairs: Sequence[tuple[str, str]]) -> list[Findings]:
        """As `classify`, from embeddings [n, E] and the prompt pair of each name."""
        model, tokenizer = self._reader()
        encoder = MG3DEncoder(model, tokenizer, max_text_len=model.text.max_length)
        embedded = encoder.embed_texts([as_sentence(text) for pair in pairs for text in pair]).unflatten(0, (len(pairs), 2))
        scores = zero_shot_scores(torch.from_numpy(vectors), embedded, encoder.logit_scale)
        return [
            Findings(tuple(Finding(name, float(score), *pair) for name, score, pair in zip(names, row, pairs, strict=True)))
            for row in scores
        ]

    def retrieve(
        self, query: Scan | str | np.ndarray, index: SearchIndex | str | Path, *, k: int = 10, kind: str | None = None
    ) -> Neighbours:
        """The `k` entries of an index that are nearest to a scan, a report, a sentence, or an embedding [E].

        kind: only entries that are a scan, a report or a sentence.

        Raises:
            FileNotFoundError, ValueError: there is no such index, it is another model's, or there is no entry of that kind.
        """
        index = index if isinstance(index, SearchIndex) else SearchIndex.load(index)
        index.require(self.fingerprint)
        if isinstance(query, str):
            query = self.embed_report(query)
        elif isinstance(query, Scan):
            query = self.embed(query)
        return index.search(query[None], k=k, kind=kind)[0]

    def generate(self, scans: Scan | Sequence[Scan], **how: Any) -> Report | list[Report]:
        """The report that the model writes of each scan; `how` goes to its decoder (beams, no_repeat, temperature ...).

        Raises:
            ValueError: this model cannot write.
        """
        if isinstance(scans, Scan):
            return self.generate([scans], **how)[0]
        model, tokenizer = self.require_writer()
        words = {"begin": tokenizer.cls_token_id, "end": tokenizer.sep_token_id, "padding": tokenizer.pad_token_id}
        how = words | {"most_tokens": min(self.settings.data.max_text_len, model.text.max_length)} | how
        with torch.no_grad():
            rows = [row for volume in self._volumes(scans) for row in model.generate_reports(volume, **how).tolist()]
        return [Report(tokenizer.decode(row, skip_special_tokens=True).strip()) for row in rows]

    def require_writer(self) -> tuple[MG3D, PreTrainedTokenizerBase]:
        """The model and its tokenizer; ValueError where it cannot write reports."""
        if not isinstance(self.model, MG3D) or "captioning" not in self.model.branches:
            raise ValueError(
                "this model writes no reports: it was trained without a captioning head; retrieve(scan, index, kind='report') "
                "finds reports that are near"
            )
        if self.tokenizer is None:
            raise ValueError(_NO_TOKENIZER)
        return self.model, self.tokenizer

    @torch.no_grad()
    def ground(self, scan: Scan, sentence: str, *, against: str | None = None, by: str = "contrast") -> Region:
        """What in the scan speaks for the sentence; a report of several sentences is taken as one.

        Args:
            against: a text that it stands against, such as "There is no effusion.", so that what speaks for both is left out.
            by: `contrast`: how far each place raises the cosine of scan and sentence; `attention`: where the sentence looks, for
                models with DCL or SSM.

        Raises:
            ValueError: a text without a word, a model that reads none, or one without what `by` asks for.
        """
        model, _ = self._reader()
        text, texts = self._as_one(sentence)
        image = model.encode_volume(next(self._volumes([scan])))
        report = model.embed_report(*texts)
        if by == "contrast":
            other = model.embed_report(*self._as_one(against)[1]) if against is not None else 0.0
            shares = occlusion_maps(model, image, report - other)
        elif by == "attention" and against is None:
            shares = attention_maps(model, image, texts)
            if shares is None:
                raise ValueError("the sentences of this model do not attend to the image; ask by='contrast'")
        else:
            raise ValueError(f"by={by!r}: expected 'contrast', or 'attention', which takes no `against`")
        cells = shares[0, 0] * image.shape[1]
        similarity = float((model.contrast.embed_image(image) * report).sum())
        stride = tuple(int(voxels) for voxels in self.vision.stride)
        return Region(text, cells.view(model.grid).float().cpu().numpy(), stride, scan, similarity)

    def _as_one(self, report: str) -> tuple[str, Texts]:
        """A text as it is read, and its tokens as one sentence."""
        model, tokenizer = self._reader()
        text = self._units(report)[0]
        padded = pad_reports(tokenizer, [(text, ((0, len(text)),))], model.text.max_length)
        return text, tuple(part.to(self.device) for part in padded)

    def _reader(self) -> tuple[MG3D, PreTrainedTokenizerBase]:
        """The model and its tokenizer, where it has both; ValueError says what is missing."""
        if not isinstance(self.model, MG3D):
            raise ValueError("this is an image encoder alone and reads no text: it can only embed scans and find similar ones")
        if self.tokenizer is None:
            raise ValueError(_NO_TOKENIZER)
        self.model.require_joint_embedding()
        return self.model, self.tokenizer

    def _volumes(self, scans: Sequence[Scan]) -> Iterator[Tensor]:
        """Batches [b, 1, D, H, W] on the device."""
        precision = next(self.model.parameters()).dtype
        for start in range(0, len(scans), self.batch):
            volumes = np.stack([scan.volume for scan in scans[start : start + self.batch]])
            yield torch.from_numpy(volumes)[:, None].to(self.device, precision)
