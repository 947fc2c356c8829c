"""A whole scan -> the findings section of its report."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from monai import transforms as mt
from torch import Tensor, nn

from mg3d.datasets.report_tokenizers import M2KT_MAX_LENGTH, LosslessTokenizer, M2KTTokenizer, ReportTokenizer
from mg3d.finetune.cases import Case, PreparedRow
from mg3d.finetune.kinds.base import Kind, Plain, Row
from mg3d.finetune.labellers import open_labeller
from mg3d.finetune.pictures import StateTopFirst, upwards
from mg3d.finetune.pipeline import ReadCase, Sample, fixed_steps
from mg3d.finetune.settings import FinetuneSettings
from mg3d.finetune.task import Task
from mg3d.losses.captioning import IGNORE_INDEX, CaptionLoss
from mg3d.metrics.captions import caption_counts, caption_scores, tokenize
from mg3d.metrics.clinical import clinical_efficacy
from mg3d.models.pyramid import PyramidTokens
from mg3d.models.text.decoder import ReportDecoder
from mg3d.models.vision.registry import VisionEncoder

WORDS: dict[str, type[M2KTTokenizer] | type[LosslessTokenizer]] = {"m2kt": M2KTTokenizer, "faithful": LosslessTokenizer}
MOST_TOKENS = {"m2kt": M2KT_MAX_LENGTH, "faithful": 300}
OPTIONS: dict[str, Any] = {
    "words": "m2kt", "most_tokens": 0, "width": 512, "layers": 3, "heads": 8, "beams": 3, "no_repeat": 3, "labeller": "",
}  # fmt: skip
"""Options of every folder of this kind. most_tokens: 0 = as `MOST_TOKENS`."""
TRIVIAL = ("constant", "template")
"""Columns of reports that no network wrote."""
EFFICACY = ("micro_precision", "micro_recall", "micro_f1", "macro_precision", "macro_recall", "macro_f1")


class ReportWriter(nn.Module):
    """All maps of an encoder as tokens, and a decoder that writes from them.

    Args:
        encoder: of volumes [B, 1, D, H, W].
        vocabulary_size: V.
        decoder: `width`, `layers`, `heads`, `longest` of a `ReportDecoder`.
        dropout: of the decoder.
    """

    def __init__(self, encoder: VisionEncoder, vocabulary_size: int, decoder: Mapping[str, int], *, dropout: float = 0.0) -> None:
        super().__init__()
        self.encoder = encoder
        self.tokens = PyramidTokens(encoder.pyramid_channels, decoder["width"])
        self.decoder = ReportDecoder(vocabulary_size=vocabulary_size, token_width=decoder["width"], dropout=dropout, **decoder)

    def see(self, volume: Tensor) -> Tensor:
        """Image tokens [B, N, width]."""
        return self.tokens(self.encoder(volume))

    def forward(self, volume: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Scores [B, T, V] of the word after each of ids [B, T]; mask [B, T], True = real word."""
        return self.decoder(self.see(volume), ids, mask)


class ReportGeneration(Kind):
    """Reports, word by word.

    Columns of text: `reference` as it is, `target` (what of it the words can say: cleaned, cut, rare words as one), `generated`,
    and the reports of two who see no image: `constant`, the commonest training report (of normal scans where labels tell), and
    `template`, the case's own labels in words, so it knows what was to be found. Beside them the counts that scores are sums of.
    Patients' words stand in predictions_*.csv, never in a log; of rare words, the checkpoint holds those that `words` keeps.
    """

    def __init__(self, task: Task, settings: FinetuneSettings) -> None:
        super().__init__(task, settings)
        options = {**OPTIONS, **task.options}
        self.style = str(options["words"])
        if self.style not in WORDS:
            raise ValueError(f"words={self.style!r}: expected one of {', '.join(WORDS)}")
        least = {"most_tokens": 3 if options["most_tokens"] else 0, "no_repeat": 0}
        least |= dict.fromkeys(("width", "layers", "heads", "beams"), 1)
        for name, value in least.items():
            if type(options[name]) is not int or options[name] < value:
                raise ValueError(f"{name}={options[name]!r}: expected a whole number of at least {value}")
        if settings.flips:
            raise ValueError("flips=true: reports on mirror images cannot be averaged; leave it out")
        self.search = {"num_beams": options["beams"], "no_repeat_ngram_size": options["no_repeat"]}
        longest = options["most_tokens"] or MOST_TOKENS[self.style]
        self.decoder = {name: options[name] for name in ("width", "layers", "heads")} | {"max_length": longest}
        self.words: ReportTokenizer | None = None
        self.constant = ""
        self.caption_loss = CaptionLoss()
        self.labelled: dict[str, np.ndarray] = {}
        word = str(options["labeller"])  # what cannot be opened is refused before scans are read
        self.labeller, self.label_names = open_labeller(word) if word else (None, ())

    def check(self, cases: Sequence[Case]) -> None:
        """Refuses cases without a word."""
        mute = [case.case_id for case in cases if not tokenize(case.report)]
        if mute:
            raise ValueError(f"{len(mute)} cases have a report without a word, such as {mute[:3]}; leave them out")

    def fit(self, cases: Sequence[Case]) -> None:
        """Takes the vocabulary and the constant report from training reports."""
        self.words = WORDS[self.style].fit(case.report for case in cases)
        self.constant = self._speakable(self._commonest(cases))

    def _commonest(self, cases: Sequence[Case]) -> str:
        """Of normal reports, or of all: the one that comes most often; of several the one of the most usual length."""
        normal = [case.report for case in cases if case.target and self._positives(case.target) == []]
        reports = [self.words.clean(report) for report in normal or [case.report for case in cases]]
        usual = np.median([len(report) for report in reports])
        counts = Counter(reports)
        return min(counts, key=lambda report: (-counts[report], abs(len(report) - usual), report))

    def _positives(self, target: Sequence[int]) -> list[str]:
        return [name for name, value in zip(self.task.outputs, target, strict=True) if value == 1 and name != "No Finding"]

    def _template(self, target: Sequence[int]) -> str:
        """Every label as a sentence."""
        said = self._positives(target)
        told = [(name, "There is" if name in said else "There is no") for name in self.task.outputs if name != "No Finding"]
        return " ".join(f"{start} {name.lower()}." for name, start in told)

    def _speakable(self, report: str) -> str:
        return self.words.decode(self.words.encode(report, self.decoder["max_length"]))

    def state(self) -> dict[str, Any]:
        """Words, and the shape of the decoder."""
        return {"words": self.style, "vocabulary": list(self.words.vocabulary), "decoder": dict(self.decoder)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Those of the checkpoint, whatever the options say."""
        self.style, self.decoder = state["words"], dict(state["decoder"])
        self.words = WORDS[self.style](state["vocabulary"])

    def network(self, encoder: VisionEncoder) -> nn.Module:
        """A `ReportWriter` of the words that `fit` took."""
        return ReportWriter(encoder, len(self.words), self.decoder, dropout=self.settings.dropout)

    def fixed(self, *, masks: bool) -> Callable[[Case], Sample]:
        """Case -> sample with `report`, `labels` in words, and `ids` int64 [longest], of which `count` are no padding.

        What was prepared for pre-training is cropped already.
        """
        steps = self.task.preprocess
        first = [ReadCase(masks=False), *([StateTopFirst()] if self.task.top_first else [])]
        made = [
            mt.Compose([*first, *fixed_steps(shape, keys=["image"], axes=self.axes), Plain(["image"])])
            for shape in (steps, dataclasses.replace(steps, keep=None))
        ]
        return partial(self._sample, made)

    def _sample(self, made: Sequence[mt.Compose], case: Case) -> Sample:
        sample = made[isinstance(case.image, PreparedRow)](upwards(case) if self.task.top_first else case)
        ids = self.words.encode(case.report, self.decoder["max_length"])
        padded = np.pad(ids, (0, self.decoder["max_length"] - len(ids)), constant_values=self.words.pad_id)
        told = {"report": case.report, "ids": torch.from_numpy(padded), "count": len(ids)}
        return sample | told | {"template": self._template(case.target) if case.target else ""}

    def loss(self, network: nn.Module, batch: Sample) -> Tensor:
        """Cross entropy of every next word."""
        longest = int(batch["count"].max())
        ids, places = batch["ids"][:, :longest], torch.arange(longest, device=batch["ids"].device)
        real = places < batch["count"][:, None]
        targets = ids[:, 1:].masked_fill(~real[:, 1:], IGNORE_INDEX)
        return self.caption_loss(network(batch["image"], ids[:, :-1], real[:, :-1]).float(), targets)

    @torch.no_grad()
    def rows(self, network: nn.Module, batch: Sample, *, masks: Path | None = None) -> list[Row]:
        """One row per case, by beam search."""
        words = self.words
        ids = network.decoder.generate(
            network.see(batch["image"]), bos_token_id=words.bos_id, eos_token_id=words.eos_id, pad_token_id=words.pad_id,
            max_length=self.decoder["max_length"], **self.search,
        )  # fmt: skip
        rows = []
        for place, written in enumerate(ids.tolist()):
            row: Row = {"case_id": batch["case_id"][place], "patient_id": batch["patient_id"][place], "words": self.style}
            if batch["report"][place]:
                report = batch["report"][place]
                row |= {"reference": report, "target": self._speakable(report), "constant": self.constant}
                row["template"] = words.clean(batch["template"][place])
            rows.append(row | {"generated": words.decode(written)})
        return rows

    def finish(self, table: pd.DataFrame) -> pd.DataFrame:
        """Adds the counts: `<who>/<count>` against the target and `raw/<count>` against the reference, and found labels."""
        split = tokenize if table["words"].iloc[0] == "faithful" else str
        target = [split(text) for text in table["target"]]
        names = [name for name in ("generated", *TRIVIAL) if (table[name] != "").any() or name == "generated"]
        counts = {name: caption_counts([split(text) for text in table[name]], target) for name in names}
        counts["raw"] = caption_counts([tokenize(text) for text in table["generated"]], [tokenize(t) for t in table["reference"]])
        found = {f"{who}/{name}": values for who, each in counts.items() for name, values in each.items()}
        for name in ("reference", *names) if self.labeller else ():
            labels = self._labels(table[name].tolist())
            found |= {f"{name}/{label}": labels[:, place] for place, label in enumerate(self.label_names)}
        return pd.concat([table, pd.DataFrame(found, index=table.index)], axis=1)

    def _labels(self, reports: Sequence[str]) -> np.ndarray:
        """int8 [n, names]; what was labelled before is kept, for references come again after every epoch."""
        new = [report for report in dict.fromkeys(reports) if report not in self.labelled]
        if new:
            self.labelled |= dict(zip(new, self.labeller.labels(new), strict=True))
        return np.stack([self.labelled[report] for report in reports])

    def statistics(self, table: pd.DataFrame, dev: pd.DataFrame | None = None) -> dict[str, float]:
        """`bleu1` to `bleu4`, `rouge_l`, `cider` against targets; `raw/...` against references; of `constant/...` and
        `template/...`; with a labeller `clinical/...`, agreement with the labels of references."""
        found: dict[str, float] = {}
        labels = [name.removeprefix("reference/") for name in table if name.startswith("reference/")]
        for who in ("generated", "raw", *TRIVIAL):
            start = "" if who == "generated" else f"{who}/"
            if f"{who}/length" in table:
                names = [name.removeprefix(f"{who}/") for name in table if name.startswith(f"{who}/")]
                scores = caption_scores({name: table[f"{who}/{name}"].to_numpy() for name in names})
                found |= {start + name: value for name, value in scores.items()}
            if labels and f"{who}/{labels[0]}" in table:
                told, made = (table[[f"{name}/{label}" for label in labels]].to_numpy() for name in ("reference", who))
                efficacy = clinical_efficacy(told, made)
                found |= {f"{start}clinical/{name}": float(efficacy[name]) for name in EFFICACY}
        return found
