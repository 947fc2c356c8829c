"""Report generation: the findings section written from a scan."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from mg3d.datasets.report_tokenizers import M2KT_MAX_LENGTH, LosslessTokenizer, M2KTTokenizer, ReportTokenizer
from mg3d.finetune.cases import FinetuneCase, Split
from mg3d.finetune.data_check import InspectedFiles
from mg3d.finetune.labellers import open_labeller
from mg3d.finetune.settings import FinetuneSettings
from mg3d.finetune.tasks.base import Row, TaskType
from mg3d.finetune.transforms import Sample
from mg3d.losses.captioning import CaptionLoss
from mg3d.metrics.captions import caption_counts, caption_scores, tokenize
from mg3d.metrics.clinical import clinical_efficacy
from mg3d.models.pyramid import PyramidTokens
from mg3d.models.text.decoder import ReportDecoder
from mg3d.models.vision.registry import VisionEncoder

TOKENIZERS: dict[str, type[M2KTTokenizer] | type[LosslessTokenizer]] = {"m2kt": M2KTTokenizer, "lossless": LosslessTokenizer}
MAX_TOKENS = {"m2kt": M2KT_MAX_LENGTH, "lossless": 300}
BASELINE = "constant"
"""The most frequent training report, for every scan."""
EFFICACY = ("micro_precision", "micro_recall", "micro_f1", "macro_precision", "macro_recall", "macro_f1")


class ReportWriter(nn.Module):
    """Image tokens from all feature maps of an encoder, and a transformer decoder.

    Args:
        encoder: of volumes [B, 1, D, H, W].
        vocabulary_size: V.
        decoder: `width`, `layers`, `heads` and `max_length` of `ReportDecoder`.
        dropout: of the decoder.
    """

    def __init__(self, encoder: VisionEncoder, vocabulary_size: int, decoder: Mapping[str, int], *, dropout: float = 0.0) -> None:
        super().__init__()
        self.encoder = encoder
        self.tokens = PyramidTokens(encoder.pyramid_channels, decoder["width"])
        self.decoder = ReportDecoder(vocabulary_size=vocabulary_size, token_width=decoder["width"], dropout=dropout, **decoder)

    def image_tokens(self, volume: Tensor) -> Tensor:
        """[B, N, width]."""
        return self.tokens(self.encoder(volume))

    def forward(self, volume: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and number of tokens of reports int64 [B, T], see `ReportDecoder.loss`; mask [B, T], False = padding."""
        return self.decoder.loss(self.image_tokens(volume), ids, mask)


class ReportGeneration(TaskType):
    """Reports, token by token.

    Columns: `reference` (the report), `target` (the reference as the tokenizer can express it), `generated`, `constant` (a
    baseline without an image), and the counts that the scores are sums of. Patients' words are in predictions_*.csv, never in a
    log; the checkpoint contains the vocabulary.

    Args:
        tokenizer: m2kt (published) or lossless (subwords with case, punctuation and numbers).
        max_tokens: maximum tokens per report; 0 = `MAX_TOKENS`.
        decoder_width, decoder_layers, decoder_heads: size of the transformer decoder.
        num_beams: of the beam search.
        no_repeat_ngram_size: no n-gram of this size occurs twice in a report; 0 = off.
        labeller: name or path of a report labeller, for the clinical scores; empty = none.
    """

    reads_pyramid = True
    eval_batch_size = None

    def __init__(
        self,
        settings: FinetuneSettings,
        *,
        tokenizer: str = "m2kt",
        max_tokens: int = 0,
        decoder_width: int = 512,
        decoder_layers: int = 3,
        decoder_heads: int = 8,
        num_beams: int = 3,
        no_repeat_ngram_size: int = 3,
        labeller: str = "",
        **shared: Any,
    ) -> None:
        super().__init__(settings, outputs=(), metric="bleu4", **shared)
        if settings.tta:
            raise ValueError("tta=true: reports of mirrored copies cannot be averaged; leave it out")
        self.tokenizer_name, self.search = tokenizer, {"num_beams": num_beams, "no_repeat_ngram_size": no_repeat_ngram_size}
        max_length = max_tokens or MAX_TOKENS[tokenizer]
        self.decoder = {"width": decoder_width, "layers": decoder_layers, "heads": decoder_heads, "max_length": max_length}
        self.tokenizer: ReportTokenizer | None = None
        self.constant = ""
        self.criterion = CaptionLoss()
        self.labeller, self.label_names = open_labeller(labeller) if labeller and settings.mode != "predict" else (None, ())
        self.known_labels: dict[str, np.ndarray] = {}

    def setup(self, split: Split, files: InspectedFiles) -> None:
        """Every case needs a report; those of training give the vocabulary and the constant baseline."""
        empty = [case.case_id for part in split for case in part if not tokenize(case.report)]
        if empty:
            raise ValueError(f"{len(empty)} cases have an empty report, such as {empty[:3]}; leave them out")
        self.tokenizer = TOKENIZERS[self.tokenizer_name].fit(case.report for case in split.train)
        reports = Counter(self.tokenizer.clean(case.report) for case in split.train)
        median = np.median([len(report) for report in reports.elements()])
        constant = min(reports, key=lambda report: (-reports[report], abs(len(report) - median), report))
        self.constant = self._expressible(constant)

    def _expressible(self, report: str) -> str:
        return self.tokenizer.decode(self.tokenizer.encode(report, self.decoder["max_length"]))

    def state(self) -> dict[str, Any]:
        """Vocabulary and size of the decoder."""
        return {"tokenizer": self.tokenizer_name, "vocabulary": list(self.tokenizer.vocabulary), "decoder": dict(self.decoder)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Vocabulary and size of the decoder."""
        self.tokenizer_name, self.decoder = state["tokenizer"], dict(state["decoder"])
        self.tokenizer = TOKENIZERS[self.tokenizer_name](state["vocabulary"])

    def network(self, encoder: VisionEncoder | None) -> nn.Module:
        """A `ReportWriter` with the fitted vocabulary."""
        return ReportWriter(encoder, len(self.tokenizer), self.decoder, dropout=self.settings.dropout)

    def read(self, *, with_masks: bool) -> Callable[[FinetuneCase], Sample]:
        """Case -> sample with `report` and its tokens `ids` int64 [max_tokens], of which `count` are not padding."""
        return partial(self._with_tokens, super().read(with_masks=False))

    def _with_tokens(self, read: Callable[[FinetuneCase], Sample], case: FinetuneCase) -> Sample:
        ids = self.tokenizer.encode(case.report, self.decoder["max_length"])
        padded = np.pad(ids, (0, self.decoder["max_length"] - len(ids)), constant_values=self.tokenizer.pad_id)
        return read(case) | {"report": case.report, "ids": torch.from_numpy(padded), "count": len(ids)}

    def collate(self, samples: Sequence[Any]) -> Sample:
        """A batch with `ids` int64 [B, T], T = tokens of its longest report: on a GPU, reading T would be a wait."""
        batch = super().collate(samples)
        return batch | {"ids": batch["ids"][:, : int(batch["count"].max())]} if "ids" in batch else batch

    def loss(self, network: nn.Module, batch: Sample) -> Tensor:
        """Cross entropy of every next token."""
        ids = batch["ids"]
        mask = torch.arange(ids.shape[1], device=ids.device) < batch["count"][:, None]
        return self.criterion(*network(batch["image"], ids, mask))

    @torch.no_grad()
    def rows(self, network: nn.Module, batch: Sample, *, mask_folder: Path | None = None) -> list[Row]:
        """One row per case, by beam search."""
        tokenizer = self.tokenizer
        ids = network.decoder.generate(
            network.image_tokens(batch["image"]), bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id,
            pad_token_id=tokenizer.pad_id, max_length=self.decoder["max_length"], **self.search,
        )  # fmt: skip
        rows = []
        for index, generated in enumerate(ids.tolist()):
            report = batch["report"][index]
            row: Row = {"case_id": batch["case_id"][index], "patient_id": batch["patient_id"][index]}
            if report:
                row |= {"reference": report, "target": self._expressible(report), BASELINE: self.constant}
            rows.append(row | {"generated": tokenizer.decode(generated)})
        return rows

    def finish(self, table: pd.DataFrame) -> pd.DataFrame:
        """Adds n-gram counts against the target (`raw/`: against the reference), and labels found by the labeller."""
        split = tokenize if self.tokenizer_name == "lossless" else str
        target = [split(text) for text in table["target"]]
        texts = {"generated": table["generated"], BASELINE: table[BASELINE].fillna("")}
        counts = {name: caption_counts([split(text) for text in each], target) for name, each in texts.items()}
        counts["raw"] = caption_counts(*([tokenize(text) for text in table[name]] for name in ("generated", "reference")))
        columns = {f"{name}/{count}": values for name, each in counts.items() for count, values in each.items()}
        for name in ("reference", *texts) if self.labeller else ():
            labels = self._labels(table[name].tolist())
            columns |= {f"{name}/{label}": labels[:, index] for index, label in enumerate(self.label_names)}
        return pd.concat([table, pd.DataFrame(columns, index=table.index)], axis=1)

    def _labels(self, reports: Sequence[str]) -> np.ndarray:
        """int8 [reports, labels]; cached, because the references recur in every validation."""
        new = [report for report in dict.fromkeys(reports) if report not in self.known_labels]
        if new:
            self.known_labels |= dict(zip(new, self.labeller.labels(new), strict=True))
        return np.stack([self.known_labels[report] for report in reports])

    def statistics(self, table: pd.DataFrame, dev: pd.DataFrame | None = None) -> dict[str, float]:
        """`bleu1` .. `bleu4`, `rouge_l`, `cider` against targets; `raw/...` against references; `constant/...`.

        With a labeller `clinical/...`: agreement with the labels of the reference.
        """
        statistics: dict[str, float] = {}
        labels = [name.removeprefix("reference/") for name in table if name.startswith("reference/")]
        for source in ("generated", "raw", BASELINE):
            prefix = "" if source == "generated" else f"{source}/"
            counts = {name.removeprefix(f"{source}/"): table[name].to_numpy() for name in table if name.startswith(f"{source}/")}
            statistics |= {prefix + name: value for name, value in caption_scores(counts).items()}
            if labels and f"{source}/{labels[0]}" in table:
                pair = (table[[f"{name}/{label}" for label in labels]].to_numpy() for name in ("reference", source))
                efficacy = clinical_efficacy(*pair)
                statistics |= {f"{prefix}clinical/{name}": float(efficacy[name]) for name in EFFICACY}
        return statistics
