"""Retrieval of volumes by reports, reports by volumes, and volumes by volumes; nothing is trained."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from mg3d.datasets.tokenizer import pad_reports
from mg3d.evaluation.retrieval import retrieval_directions
from mg3d.finetune.cases import FinetuneCase, Split
from mg3d.finetune.data_check import InspectedFiles
from mg3d.finetune.tasks.base import Row
from mg3d.finetune.tasks.prompts import PromptClassification, PromptNetwork
from mg3d.finetune.transforms import Sample
from mg3d.metrics.retrieval import chance_recall_at, first_rank, nearest_jaccards, recall_at
from mg3d.sentence_spans import normalize_text, split_clauses, split_sentences

RECALL_AT = (1, 5, 10, 50, 100)
JACCARD_AT = (1, 5, 10, 50)
DIRECTIONS = ("report_to_volume", "volume_to_report")


class Retrieval(PromptClassification):
    """Identical reports are one item of the gallery; every volume with that report is relevant.

    Columns: `rank/`, `relevant/` (items of the gallery that are relevant) and `gallery/` (its size) of both directions, nan in
    rows whose report is not a separate query; `jaccard@<k>`: label overlap with the k most similar other volumes.
    """

    def setup(self, split: Split, files: InspectedFiles) -> None:
        """Every volume needs a report."""
        empty = [case.case_id for part in split for case in part if not case.report]
        if empty:
            raise ValueError(f"{len(empty)} volumes have no report, such as {empty[:3]}; retrieval needs one for each")

    def read(self, *, with_masks: bool) -> Callable[[FinetuneCase], Sample]:
        """A sample with its report."""
        return partial(_with_report, read=super().read(with_masks=with_masks))

    @torch.no_grad()
    def rows(self, network: PromptNetwork, batch: Sample, *, mask_folder: Path | None = None) -> list[Row]:
        """Embeddings, from which `finish` computes ranks."""
        volumes = self.averaged(network.model.embed_volume, batch["image"]).float().cpu().numpy()
        reports = self._embed(network, batch["report"]).float().cpu().numpy()
        rows = []
        for index, (case, patient) in enumerate(zip(batch["case_id"], batch["patient_id"], strict=True)):
            row: Row = {"case_id": case, "patient_id": patient, "volume": volumes[index], "report": reports[index]}
            rows.append(row | {"text": normalize_text(batch["report"][index]), "target": batch["target"][index].cpu().numpy()})
        return rows

    def _embed(self, network: PromptNetwork, reports: Sequence[str]) -> Tensor:
        settings: dict[str, Any] = self.description["settings"]
        split = split_clauses if settings["text_unit"] == "clause" else split_sentences
        longest = min(settings["max_text_len"], network.model.text.max_length)
        texts = [(report, tuple(split(report))) for report in reports]
        device, most = next(network.parameters()).device, max(len(spans) for _, spans in texts)
        parts = (part.to(device) for part in pad_reports(self._load()[1], texts, longest))
        return network.model.embed_report(*parts, max_sentences=most)

    def finish(self, table: pd.DataFrame) -> pd.DataFrame:
        """Ranks among all volumes and reports of the split."""
        volumes, reports, labels = (np.stack(table[name]) for name in ("volume", "report", "target"))
        ranked = table[["case_id", "patient_id"]].copy()
        for direction in retrieval_directions(volumes, reports, report_keys=table["text"].tolist()):
            name, relevant = direction.name.replace(" ", "_"), direction.relevant
            for column, values in {"rank": first_rank(direction.similarity, relevant), "relevant": relevant.sum(1)}.items():
                ranked[f"{column}/{name}"] = np.nan
                ranked.loc[direction.queries, f"{column}/{name}"] = values
            ranked[f"gallery/{name}"] = relevant.shape[1]
        ks = [k for k in JACCARD_AT if k < int((labels == 1).any(1).sum())]
        if ks:
            nearest = nearest_jaccards(volumes @ volumes.T, labels, max(ks), groups=np.arange(len(labels)))
            ranked = ranked.assign(**{f"jaccard@{k}": nearest[:, :k].mean(1) for k in ks})
        return ranked

    def statistics(self, table: pd.DataFrame, dev: pd.DataFrame | None = None) -> dict[str, float]:
        """`<direction>/recall@<k>`, their chance level, `<direction>/median_rank`; `volume_to_volume/jaccard@<k>`."""
        statistics = {}
        for name in DIRECTIONS:
            queries = table[table[f"rank/{name}"].notna()]
            ranks, gallery = queries[f"rank/{name}"].to_numpy(), int(table[f"gallery/{name}"].max())
            relevant = np.arange(gallery) < queries[f"relevant/{name}"].to_numpy()[:, None]
            ks = [k for k in RECALL_AT if k < gallery]
            undefined = dict.fromkeys(ks, float("nan"))  # a bootstrap resample without a query
            recall, chance = (recall_at(ranks, ks), chance_recall_at(relevant, ks)) if len(ranks) else (undefined, undefined)
            for k in ks:
                statistics |= {f"{name}/recall@{k}": recall[k], f"{name}/chance@{k}": chance[k]}
            statistics[f"{name}/median_rank"] = float(np.median(ranks)) if len(ranks) else float("nan")
        jaccards = [column for column in table if column.startswith("jaccard@")]
        return statistics | {f"volume_to_volume/{column}": float(table[column].mean()) for column in jaccards}

    def support_mask(self, table: pd.DataFrame, score: str) -> np.ndarray:
        """The queries."""
        direction, _, name = score.partition("/")
        return table[name if name.startswith("jaccard@") else f"rank/{direction}"].notna().to_numpy()

    def insufficient_reason(self, table: pd.DataFrame, score: str) -> str:
        """Recall and Jaccard index need no positive and negative labels."""
        return ""

    def figures(self, table: pd.DataFrame) -> list[tuple[str, Figure]]:
        """Recall at k."""
        figure = Figure(figsize=(5, 4), layout="constrained")
        axes = figure.add_subplot()
        for name in DIRECTIONS:
            ranks = np.sort(table[f"rank/{name}"].dropna())
            axes.step(ranks, np.arange(1, len(ranks) + 1) / len(ranks), where="post", label=name)
        axes.set(xlabel="k", ylabel="recall at k")
        axes.legend()
        return [("Recall", figure)]


def _with_report(case: FinetuneCase, *, read: Callable[[FinetuneCase], Sample]) -> Sample:
    if not case.report:
        raise ValueError(f"{case.case_id} has no report, so it cannot be retrieved; mode=evaluate runs on the test split")
    return read(case) | {"report": case.report}
