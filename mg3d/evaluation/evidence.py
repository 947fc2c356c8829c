"""Evaluation after training: trained model on held-out studies against untrained model, chance and baselines; HTML page."""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mg3d.datasets.arrow import open_index
from mg3d.datasets.collate import Collator
from mg3d.datasets.storage import Storage
from mg3d.datasets.studies import Studies
from mg3d.datasets.windowing import sample_intensities
from mg3d.evaluation import held_out, truth
from mg3d.evaluation.baselines import logistic_scores, pooled_volume
from mg3d.evaluation.matching import pair_shares
from mg3d.evaluation.retrieval import retrieval_table
from mg3d.evaluation.zero_shot import macro_interval, zero_shot_scores, zero_shot_table
from mg3d.files import write_bytes, write_json
from mg3d.glossary import LABELS
from mg3d.metrics.classification import macro_auroc
from mg3d.models.build import build_untrained
from mg3d.models.mg3d import MG3D
from mg3d.sentence_spans import normalise
from mg3d.settings.schema import Settings
from mg3d.visualize.curves import curves_figure
from mg3d.visualize.page import png, write_page
from mg3d.visualize.planes import case_figure

TARGETS = ("Cardiomegaly", "Pleural effusion", "Consolidation", "Emphysema", "Hiatal hernia")
"""The findings of the headline number."""
MOST_TRAINING_STUDIES = 2_000
MOST_MATCHED_STUDIES = 150
EXAMPLES = 3


class Scene(NamedTuple):
    """The held-out studies and all that is needed to judge a model on them."""

    settings: Settings
    device: torch.device
    tokenizer: PreTrainedTokenizerBase
    collator: Collator
    train: Studies
    test: Studies
    present: np.ndarray
    """int8 [n, 18]; 1, 0, -1 = not known."""
    truths: list[dict[str, Any]] | None
    """Truth of each study, where the set is synthetic."""

    @property
    def visible(self) -> np.ndarray | None:
        """int8 [n, 18]: what can be seen in the stored volume."""
        return np.array([[t["visible"][name] for name in LABELS] for t in self.truths], np.int8) if self.truths else None

    def batches(self, *, most: int | None = None) -> Any:
        """The held-out studies in batches; with `most`, those of the first studies."""
        size = self.settings.optim.per_gpu_batchsize
        everything = held_out.batches(self.test, self.collator, size=size, device=self.device)
        return everything if most is None else (batch for place, batch in enumerate(everything) if place * size < most)


def write_evidence(scene: Scene, run_dir: Path, checkpoint: Path) -> dict[str, Any]:
    """Evaluates a checkpoint; writes `evidence.json`, `evidence.html` and figures into `run_dir`."""
    untrained, trained = (build_untrained(scene.settings, len(scene.tokenizer)).to(scene.device) for _ in range(2))
    trained.load_state_dict(model_weights(checkpoint))
    statistics = dict(trained.named_buffers())
    for name, buffer in untrained.named_buffers():
        buffer.copy_(statistics[name])  # statistics of the training data, computed before the first step
    result: dict[str, Any] = {"studies": len(scene.test), "objective": sorted(trained.objectives)}
    mean_image = held_out.mean_volume(scene.train, most=300)
    similarity = None
    for name, model in (("untrained", untrained), ("trained", trained)):
        result[name], similarity = judge(model, scene, mean_image)
    result["baselines"] = baselines(scene)
    if "ssm" in trained.objectives:
        result["sentence_pairs"] = matched_sentences(trained, scene)
    write_json(run_dir / "evidence.json", result)
    write_pictures(run_dir, result, scene, similarity)
    return result


def held_out_studies(settings: Settings) -> Studies:
    """The test split of the first data set; FileNotFoundError or ValueError when it is missing or empty."""
    index = open_index(Storage(settings.data.data_root, settings.data.cache_dir), settings.data.datasets[0], "test")
    test = Studies(index, text_unit=settings.data.text_unit, window_hu=settings.data.window_hu)
    if len(test) == 0:
        raise ValueError(
            f"{index.path} has no study, so there is nothing to judge the model on; set evidence=False to go without"
        )
    return test


def open_scene(
    settings: Settings, *, train: Studies, tokenizer: PreTrainedTokenizerBase, collator: Collator, device: torch.device
) -> Scene:
    """The held-out studies with their labels and ground truth.

    Raises:
        FileNotFoundError, ValueError: the test split is missing or empty.
    """
    test = held_out_studies(settings)
    present = np.array(test.index.table["labels"].take(test.first_rows).to_pylist(), np.int8)
    return Scene(settings, device, tokenizer, collator, train, test, present, read_truths(settings, test))


def read_truths(settings: Settings, studies: Studies) -> list[dict[str, Any]] | None:
    """See `evaluation.truth.read_truths`; None without `ground_truth_root`."""
    if not settings.run.ground_truth_root:
        return None
    ids = studies.index.table["study_id"].take(studies.first_rows).to_pylist()
    reports = (studies.report(study).report for study in range(len(studies)))
    return truth.read_truths(Path(settings.run.ground_truth_root), ids, reports)


def model_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The model's weights out of a checkpoint of the training module."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    return {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}


def judge(model: MG3D, scene: Scene, mean_image: Tensor) -> tuple[dict[str, Any], Tensor | None]:
    """All numbers of one model, and the similarity [n, n] of volumes and reports where it has plain embeddings."""
    judged: dict[str, Any] = {}
    similarity = None
    if "mim" in model.objectives:
        judged["reconstruction"] = held_out.reconstruct(model, scene.batches(), mean_image)
    if "cml" in model.objectives and not model.has_fused_contrast:
        embeddings = held_out.embed(model, scene.batches(), scene.tokenizer)
        scores = zero_shot_scores(embeddings.volumes, embeddings.prompts, embeddings.logit_scale)
        patients = scene.test.patients
        judged["zero_shot"] = zero_shot_table(scores, scene.present, visible=scene.visible, patients=patients, names=LABELS)
        judged["macro"] = macro(scores, scene)
        keys = [normalise(scene.test.report(study).report) for study in range(len(scene.test))]
        judged["retrieval"] = retrieval_table(
            embeddings.volumes.numpy(), embeddings.reports.numpy(), report_keys=keys, patients=patients
        )
        similarity = embeddings.volumes @ embeddings.reports.T
    return judged, similarity


def macro(scores: np.ndarray, scene: Scene) -> dict[str, float]:
    """Macro AUROC over the target findings with its interval, and over all 18."""
    targets = [LABELS.index(name) for name in TARGETS]
    low, high = macro_interval(scores, scene.present, of=targets, patients=scene.test.patients)
    return {
        "targets": macro_auroc(scene.present, scores, of=targets),
        "low": low,
        "high": high,
        "all": macro_auroc(scene.present, scores),
    }


def baselines(scene: Scene) -> dict[str, Any]:
    """Supervised logistic regression on the pooled volume (how easy the data are), and what an eye for visibility could reach."""
    count = min(len(scene.train), MOST_TRAINING_STUDIES)
    samples = (scene.train.sample(study) for study in range(count))
    features, labels = zip(*((pooled_volume(sample_intensities(sample)), sample.labels) for sample in samples), strict=True)
    test = np.stack([pooled_volume(sample_intensities(scene.test.sample(study))) for study in range(len(scene.test))])
    scores = logistic_scores(np.stack(features), np.stack(labels), test)
    result = {"logistic_regression": macro(scores, scene)}
    result["logistic_regression"]["findings"] = [macro_auroc(scene.present, scores, of=[place]) for place in range(len(LABELS))]
    if scene.visible is not None:
        result["mask_oracle"] = macro(scene.visible.astype(float), scene)
    return result


def matched_sentences(model: MG3D, scene: Scene) -> dict[str, float]:
    """What SSM calls same and different among the sentences of some held-out studies, judged by the clause truth."""
    vectors, polarity, patient = held_out.sentence_vectors(model, scene.batches(most=MOST_MATCHED_STUDIES))
    meanings: list[str | None] = []
    size = scene.settings.optim.per_gpu_batchsize
    count = min(len(scene.test), -(-MOST_MATCHED_STUDIES // size) * size)
    for study in range(count):
        sample = scene.test.sample(study)
        kept = scene.collator.encode(sample).sentence_spans
        meanings += truth.meanings_of(scene.truths[study], sample.report, kept) if scene.truths else [None] * len(kept)
    thresholds = scene.settings.model
    return pair_shares(
        vectors,
        polarity=polarity,
        patient=patient,
        meaning=meanings,
        same_above=thresholds.ssm_same_above,
        differ_below=thresholds.ssm_differ_below,
    )


# --- showing


def summary_rows(result: dict[str, Any]) -> list[dict[str, str]]:
    """The short table: one row per number, with chance and baselines beside it."""
    before, after, base = result["untrained"], result["trained"], result["baselines"]
    rows = []
    if "macro" in after:
        supervised, oracle = base["logistic_regression"], base.get("mask_oracle", {})
        for key, name in (
            ("targets", f"zero-shot AUROC, mean of {len(TARGETS)} findings"),
            ("all", "zero-shot AUROC, mean of all 18"),
        ):
            interval = f" [{after['macro']['low']:.3f}, {after['macro']['high']:.3f}]" if key == "targets" else ""
            rows.append(_row(name, "0.500", before["macro"][key], f"{after['macro'][key]:.3f}{interval}",
                             f"supervised logistic regression {supervised[key]:.3f}"
                             + (f", mask oracle {oracle[key]:.3f}" if oracle else "")))  # fmt: skip
        for old, new in zip(before["retrieval"], after["retrieval"], strict=True):
            for k in (1, 5, 10):
                interval = f" [{new['low']:.3f}, {new['high']:.3f}]" if k == 10 else ""
                shown = f"{new[f'recall_at_{k}']:.3f}{interval}"
                beside = f"{new[f'recall_at_{k}'] / new[f'chance_at_{k}']:.1f} times chance"
                name = f"{new['direction']}, R@{k} of {new['gallery']}"
                rows.append(_row(name, f"{new[f'chance_at_{k}']:.3f}", old[f"recall_at_{k}"], shown, beside))
    if "reconstruction" in after:
        for key, name in (("hidden", "error of hidden voxels"), ("hidden_body", "error of hidden body voxels")):
            old, new = before["reconstruction"], after["reconstruction"]
            rows.append(_row(name, "", old[key], f"{new[key]:.4f}", f"mean image {new[key + '_mean_image']:.4f}"))
    if "sentence_pairs" in result:
        pairs = result["sentence_pairs"]
        shares = ", ".join(f"{name} {pairs[name]:.2%}" for name in ("same", "different", "ignored"))
        rows.append(_row("SSM sentence pairs", "", "", shares, f"precision of same {pairs['precision_same']:.3f}"))
    return rows


def _row(name: str, chance: str, untrained: float | str, trained: str, beside: str) -> dict[str, str]:
    before = f"{untrained:.3f}" if isinstance(untrained, float) else untrained
    return {"held-out": name, "chance": chance, "untrained": before, "trained [95 %]": trained, "beside it": beside}


def finding_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per finding."""
    if "zero_shot" not in result["trained"]:
        return []
    supervised = result["baselines"]["logistic_regression"]["findings"]
    rows = []
    for old, new, known in zip(result["untrained"]["zero_shot"], result["trained"]["zero_shot"], supervised, strict=True):
        row = {"finding": new["finding"], "prevalence": new["prevalence"], "untrained": old["auroc"], "trained": new["auroc"]}
        row |= {"low": new["low"], "high": new["high"], "visible only": new.get("auroc_visible", "")}
        rows.append(row | {"supervised on pooled volume": known})
    return rows


def show_evidence(run_dir: Path) -> None:
    """Prints the short table of `evidence.json` and where everything lies."""
    result = json.loads((run_dir / "evidence.json").read_text())
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
    rows = summary_rows(result)
    if rows:
        table = Table(*rows[0], title=f"{result['studies']} held-out studies, patients unseen in training")
        for row in rows:
            table.add_row(*row.values())
        console.print(table)
    else:
        console.print(f"no held-out number is defined for the objectives {', '.join(result['objective'])} alone")
    for name in ("evidence.html", "evidence.json", "checkpoints/best.ckpt", "checkpoints/last.ckpt", "tensorboard"):
        if (run_dir / name).exists():
            console.print(f"  {run_dir / name}", soft_wrap=True)


def write_pictures(run_dir: Path, result: dict[str, Any], scene: Scene, similarity: Tensor | None) -> None:
    """The page, and its curves as PNG."""
    parts = sorted(run_dir.glob("csv/*/metrics.csv"))
    curves = curves_figure(parts) if parts else None
    if curves is not None:
        write_bytes(run_dir / "curves.png", png(curves))
    sections: list[tuple[str, list[Any]]] = [("Held-out numbers", [summary_rows(result)]), ("By finding", [finding_rows(result)])]
    if curves is not None:
        sections.append(("Curves", [curves]))
    if similarity is not None and scene.truths is not None:  # real reports stay out of files that are passed around
        sections.append(
            ("Three held-out cases, their reports and the reports nearest to their volumes", examples(scene, similarity))
        )
    write_page(run_dir / "evidence.html", title="mg3d: what the model has learned", sections=sections)


def examples(scene: Scene, similarity: Tensor) -> list[str | Figure | list[dict[str, Any]]]:
    """Planes, report and the three nearest reports of some studies."""
    pieces: list[Any] = []
    for study in np.linspace(0, len(scene.test) - 1, EXAMPLES).astype(int):
        sample = scene.test.sample(int(study))
        order = similarity[study].argsort(descending=True)
        rank = int((order == study).nonzero()[0, 0]) + 1
        title = f"{sample.study_id}: its own report comes {rank}. of {len(order)}"
        pieces.append(case_figure(sample_intensities(sample)[0], report=sample.report, title=title, window=(0.0, 0.75)))
        nearest = [scene.test.report(int(place)).report for place in order[:3]]
        pieces.append([{"rank": place + 1, "nearest report": text} for place, text in enumerate(nearest)])
    return pieces
