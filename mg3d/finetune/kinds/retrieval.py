"""Finding volumes by reports, reports by volumes, and volumes by volumes; nothing is trained."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from mg3d.datasets.tokenizer import pad_reports
from mg3d.evaluation.retrieval import retrieval_directions
from mg3d.finetune.cases import Case
from mg3d.finetune.kinds.base import Row
from mg3d.finetune.kinds.prompts import PromptNetwork, Prompts
from mg3d.finetune.pipeline import Sample
from mg3d.metrics.retrieval import chance_recall_at, first_rank, nearest_jaccards, recall_at
from mg3d.models.vision.registry import VisionEncoder
from mg3d.sentence_spans import normalize_text, split_clauses, split_sentences

RECALL_AT = (1, 5, 10, 50, 100)
JACCARD_AT = (1, 5, 10, 50)
DIRECTIONS = ("report_to_volume", "volume_to_report")
_VECTORS = ("volume", "report")


class Retrieval(Prompts):
    """Each report once in the gallery of reports; every volume with a report's text is right for it.

    Columns: for both directions `rank/` and `right/` (how many of the gallery are right), nan in rows whose report has been asked
    for already, and `gallery/` (how many there are); `jaccard@<k>` of the k most similar other volumes.
    """

    def check(self, cases: Sequence[Case]) -> None:
        """Refuses volumes without a report."""
        super().check(cases)
        silent = [case.case_id for case in cases if not case.report]
        if silent:
            raise ValueError(f"{len(silent)} volumes have no report, such as {silent[:3]}; retrieval needs one for each")

    def fixed(self, *, masks: bool) -> Callable[[Case], Sample]:
        """As for any other, and the report."""
        return partial(_with_text, read=super().fixed(masks=masks))

    def network(self, encoder: VisionEncoder) -> nn.Module:
        """The whole model."""
        network = super().network(encoder)
        self.tokenizer = self._whole()[1]
        return network

    @torch.no_grad()
    def rows(self, network: PromptNetwork, batch: Sample, *, masks: Path | None = None) -> list[Row]:
        """Embeddings, which `finish` turns into ranks."""
        volumes = self.mirrored(network.model.embed_volume, batch["image"]).float().cpu().numpy()
        reports = self._embed(network, batch["text"]).float().cpu().numpy()
        rows = []
        for place, (case, patient) in enumerate(zip(batch["case_id"], batch["patient_id"], strict=True)):
            row: Row = {"case_id": case, "patient_id": patient, "volume": volumes[place], "report": reports[place]}
            row |= {"text": normalize_text(batch["text"][place]), "target": batch["target"][place].cpu().numpy()}
            rows.append(row)
        return rows

    def _embed(self, network: PromptNetwork, reports: Sequence[str]) -> Tensor:
        settings = self.described["settings"]
        split = split_clauses if settings["text_unit"] == "clause" else split_sentences
        longest = min(settings["max_text_len"], network.model.text.max_length)
        parts = pad_reports(self.tokenizer, [(report, tuple(split(report))) for report in reports], longest)
        device = next(network.parameters()).device
        return network.model.embed_report(*(part.to(device) for part in parts))

    def finish(self, table: pd.DataFrame) -> pd.DataFrame:
        """Ranks among all volumes and reports of the part, in place of embeddings."""
        volumes, reports = (np.stack(table[name]) for name in _VECTORS)
        found = table[["case_id", "patient_id"]].copy()
        for way in retrieval_directions(volumes, reports, report_keys=table["text"].tolist()):
            name, right = way.name.replace(" ", "_"), way.relevant
            for column, values in {"rank": first_rank(way.similarity, right), "right": right.sum(1)}.items():
                found[f"{column}/{name}"] = np.nan
                found.loc[way.queries, f"{column}/{name}"] = values
            found[f"gallery/{name}"] = right.shape[1]
        labels = np.stack(table["target"])
        others = int((labels == 1).any(1).sum()) - 1
        ks = [k for k in JACCARD_AT if k <= others]
        if ks:
            nearest = nearest_jaccards(volumes @ volumes.T, labels, max(ks), groups=np.arange(len(labels)))
            for k in ks:
                found[f"jaccard@{k}"] = nearest[:, :k].mean(1)
        return found

    def figures(self, table: pd.DataFrame) -> list[tuple[str, Figure]]:
        """How recall grows with k."""
        figure = Figure(figsize=(5, 4), layout="constrained")
        axes = figure.add_subplot()
        for name in DIRECTIONS:
            ranks = np.sort(table[f"rank/{name}"].dropna().to_numpy())
            axes.step(ranks, np.arange(1, len(ranks) + 1) / len(ranks), where="post", label=name)
        axes.set_xlabel("k")
        axes.set_ylabel("recall at k")
        axes.legend()
        return [("Recall", figure)]

    def statistics(self, table: pd.DataFrame, dev: pd.DataFrame | None = None) -> dict[str, float]:
        """`<direction>/recall@<k>`, their chance, `<direction>/median_rank`; `volume_to_volume/jaccard@<k>`."""
        found = {}
        for name in DIRECTIONS:
            asked = table[table[f"rank/{name}"].notna()]
            ranks, gallery = asked[f"rank/{name}"].to_numpy(), int(table[f"gallery/{name}"].max())
            relevant = np.arange(gallery) < asked[f"right/{name}"].to_numpy()[:, None]
            ks = [k for k in RECALL_AT if k < gallery]
            nothing = dict.fromkeys(ks, float("nan"))  # of a draw in which none is asked for
            recall, chance = (recall_at(ranks, ks), chance_recall_at(relevant, ks)) if len(ranks) else (nothing, nothing)
            for k in ks:
                found |= {f"{name}/recall@{k}": recall[k], f"{name}/chance@{k}": chance[k]}
            found[f"{name}/median_rank"] = float(np.median(ranks)) if len(ranks) else float("nan")
        jaccards = [column for column in table if column.startswith("jaccard@")]
        return found | {f"volume_to_volume/{column}": float(table[column].mean()) for column in jaccards}

    def rests_on(self, table: pd.DataFrame, score: str) -> np.ndarray:
        """Volumes or reports that are asked for."""
        way, _, name = score.partition("/")
        return table[name if name.startswith("jaccard@") else f"rank/{way}"].notna().to_numpy()

    def lacks(self, table: pd.DataFrame, score: str) -> str:
        """Recall and Jaccard index need no positive and negative labels, so their interval is always reported."""
        return ""


def _with_text(case: Case, *, read: Callable[[Case], Sample]) -> Sample:
    if not case.report:
        raise ValueError(
            f"{case.case_id} has no report, so it cannot be retrieved by one; mode=evaluate does data_root's test part"
        )
    return read(case) | {"text": case.report}
