"""Evaluation after training on held-out studies: trained against untrained model, chance and supervised baselines.

Writes `evidence.json`, `evidence.html` and `curves.png` into the run folder.
"""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mg3d.datasets.arrow import open_index
from mg3d.datasets.collate import Collator
from mg3d.datasets.storage import Storage
from mg3d.datasets.studies import Studies
from mg3d.datasets.windowing import convert_volumes, move_to_device, sample_intensities
from mg3d.evaluation.baselines import logistic_scores, pooled_volume
from mg3d.evaluation.encoder import MG3DEncoder, embed_batches
from mg3d.evaluation.phantom_ground_truth import read_ground_truth, sentence_meanings
from mg3d.evaluation.reconstruction import mean_volume, reconstruction_error
from mg3d.evaluation.retrieval import recall_rows, retrieval_directions
from mg3d.evaluation.sentence_pairs import read_sentence_pairs, threshold_rows
from mg3d.evaluation.tables import Bootstrap, Rows, format_cell, format_rows, format_tables
from mg3d.evaluation.zero_shot import classification_rows, embed_prompts, zero_shot_scores
from mg3d.files import write_bytes, write_json
from mg3d.glossary import LABELS
from mg3d.metrics.classification import auroc, per_label
from mg3d.models.build import build_untrained
from mg3d.models.mg3d import MG3D
from mg3d.sentence_spans import normalize_text
from mg3d.settings.schema import Settings
from mg3d.types import Batch
from mg3d.visualize.page import png, write_page
from mg3d.visualize.planes import case_figure
from mg3d.visualize.plots import curves_figure

TARGETS = ("Cardiomegaly", "Pleural effusion", "Consolidation", "Emphysema", "Hiatal hernia")
"""Findings of the headline AUROC."""
RECALL_KS = (1, 5, 10)
BOOTSTRAP = Bootstrap(300, 0)
MAX_TRAINING_STUDIES = 2_000
"""Studies on which the supervised baseline is fitted."""
MAX_MEAN_STUDIES = 300
MAX_SENTENCE_STUDIES = 150
EXAMPLES = 3


class HeldOutData(NamedTuple):
    """Held-out studies and everything needed to evaluate a model on them."""

    settings: Settings
    device: torch.device
    tokenizer: PreTrainedTokenizerBase
    collator: Collator
    train: Studies
    test: Studies
    labels: np.ndarray
    """int8 [n, 18]: 1 present, 0 absent, -1 unknown."""
    truths: list[dict[str, Any]] | None
    """Ground truth of each study, for the phantom only."""

    @property
    def visible(self) -> np.ndarray | None:
        """int8 [n, 18]: findings visible in the stored volume, for the phantom only."""
        return np.array([[t["visible"][name] for name in LABELS] for t in self.truths], np.int8) if self.truths else None

    def volumes(self) -> Iterator[Tensor]:
        """Batches [B, 1, D, H, W] in [0, 1] of the first reconstruction of every study, in order."""
        for studies in self._chunks():
            yield torch.stack([torch.from_numpy(sample_intensities(self.test.sample(study))) for study in studies])

    def batches(self) -> Iterator[Batch]:
        """Batches as in training; the masks are the same in every call."""
        for studies in self._chunks():
            batch = self.collator([self.test.sample(study) for study in studies])
            yield convert_volumes(move_to_device(batch, self.device))

    def load(self, checkpoint: Path) -> MG3D:
        """The model of a run's checkpoint."""
        model = build_untrained(self.settings, len(self.tokenizer)).to(self.device)
        state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
        model.load_state_dict({name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")})
        return model

    def _chunks(self) -> Iterator[range]:
        size = self.settings.optim.per_gpu_batchsize
        return (range(start, min(start + size, len(self.test))) for start in range(0, len(self.test), size))


def held_out_studies(settings: Settings) -> Studies:
    """Test split of the first data set; FileNotFoundError or ValueError if it is missing or empty."""
    index = open_index(Storage(settings.data.data_root, settings.data.cache_dir), settings.data.datasets[0], "test")
    test = Studies(index, text_unit=settings.data.text_unit, window_hu=settings.data.window_hu)
    if len(test) == 0:
        raise ValueError(f"{index.path} has no study to evaluate the model on. Add some, or set evidence=False.")
    return test


def open_held_out(
    settings: Settings, *, train: Studies, tokenizer: PreTrainedTokenizerBase, collator: Collator, device: torch.device
) -> HeldOutData:
    """Held-out studies with labels and, if `ground_truth_root` has it, their ground truth; errors as `held_out_studies`."""
    test = held_out_studies(settings)
    labels = np.array(test.index.table["labels"].take(test.first_rows).to_pylist(), np.int8)
    truths = None
    if settings.run.ground_truth_root:
        ids = test.index.table["study_id"].take(test.first_rows).to_pylist()
        reports = (test.report(study).report for study in range(len(test)))
        truths = read_ground_truth(Path(settings.run.ground_truth_root), ids, reports)
    return HeldOutData(settings, device, tokenizer, collator, train, test, labels, truths)


def write_evidence(data: HeldOutData, run_dir: Path, checkpoint: Path) -> dict[str, Any]:
    """Evaluate a checkpoint and write the files into `run_dir`; returns the content of `evidence.json`."""
    untrained, trained = build_untrained(data.settings, len(data.tokenizer)).to(data.device), data.load(checkpoint)
    statistics = dict(trained.named_buffers())
    for name, buffer in untrained.named_buffers():
        buffer.copy_(statistics[name])  # statistics of the training data, computed before the first step
    result: dict[str, Any] = {"studies": len(data.test), "objective": sorted(trained.objectives)}
    mean_image = mean_volume(data.train, max_studies=MAX_MEAN_STUDIES)
    similarity = None
    for name, model in (("untrained", untrained), ("trained", trained)):
        result[name], similarity = evaluate_held_out(model, data, mean_image)
    result["baselines"] = baselines(data)
    if "ssm" in trained.objectives:
        result["sentence_pairs"] = match_sentences(trained, data)
    write_json(run_dir / "evidence.json", result)
    write_evidence_page(run_dir, result, data, similarity)
    return result


def _encoder(model: MG3D, data: HeldOutData) -> MG3DEncoder:
    settings = data.settings
    return MG3DEncoder(model, data.tokenizer, max_text_len=settings.data.max_text_len, precision=settings.run.precision)


def evaluate_held_out(model: MG3D, data: HeldOutData, mean_image: Tensor) -> tuple[dict[str, Any], Tensor | None]:
    """Results of one model, and the similarity [n, n] of volumes and reports if it has separate embeddings."""
    result: dict[str, Any] = {}
    if "mim" in model.objectives:
        result["reconstruction"] = reconstruction_error(model, data.batches(), mean_image, precision=data.settings.run.precision)
    if not model.has_joint_embedding:
        return result, None
    encoder, patients = _encoder(model, data), data.test.patients
    volumes = embed_batches(encoder, data.volumes())
    texts = [data.test.report(study) for study in range(len(data.test))]
    reports = encoder.embed_texts(texts)
    scores = zero_shot_scores(volumes, embed_prompts(encoder), encoder.logit_scale)
    result["zero_shot"] = classification_rows(data.labels, scores, patients, BOOTSTRAP, metrics={"auroc": auroc})[:-1]
    if data.visible is not None:
        for row, value in zip(result["zero_shot"], per_label(auroc, data.visible, scores), strict=True):
            row["auroc of visible"] = float(value)
    result["macro"] = _macro_aurocs(scores, data)
    keys = [normalize_text(text.report) for text in texts]
    directions = retrieval_directions(volumes.numpy(), reports.numpy(), report_keys=keys)
    result["retrieval"], _ = recall_rows(directions, patients, ks=RECALL_KS, bootstrap=BOOTSTRAP)
    return result, volumes @ reports.T


def _macro_aurocs(scores: np.ndarray, data: HeldOutData) -> dict[str, dict[str, float]]:
    """Cells with the macro AUROC over the target findings and over all 18."""
    columns = {"targets": [LABELS.index(name) for name in TARGETS], "all": list(range(len(LABELS)))}
    return {
        name: BOOTSTRAP.metric(auroc, data.labels[:, chosen], scores[:, chosen], data.test.patients)
        for name, chosen in columns.items()
    }


def baselines(data: HeldOutData) -> dict[str, Any]:
    """Supervised logistic regression on the pooled volume, and for the phantom the visibility of findings as a score."""
    samples = (data.train.sample(study) for study in range(min(len(data.train), MAX_TRAINING_STUDIES)))
    features, labels = zip(*((pooled_volume(sample_intensities(sample)), sample.labels) for sample in samples), strict=True)
    test = np.stack([pooled_volume(sample_intensities(data.test.sample(study))) for study in range(len(data.test))])
    scores = logistic_scores(np.stack(features), np.stack(labels), test)
    by_finding = per_label(auroc, data.labels, scores).tolist()
    result = {"logistic_regression": _macro_aurocs(scores, data) | {"findings": by_finding}}
    if data.visible is not None:
        result["mask_oracle"] = _macro_aurocs(data.visible.astype(float), data)
    return result


def match_sentences(model: MG3D, data: HeldOutData) -> Rows:
    """Sentence pairs at the two thresholds of SSM; precision and recall with the phantom's ground truth."""
    count = min(len(data.test), MAX_SENTENCE_STUDIES)
    reports = [data.test.report(study) for study in range(count)]
    meanings = partial(sentence_meanings, data.truths[:count]) if data.truths else None
    pairs = read_sentence_pairs(_encoder(model, data), reports, data.test.patients[:count], meanings=meanings)
    settings = data.settings.model
    return threshold_rows(pairs, (settings.ssm_same_above, settings.ssm_differ_below))


def summary_rows(result: dict[str, Any]) -> list[dict[str, str]]:
    """Short table: one row per metric, with chance and baselines."""
    before, after, base = result["untrained"], result["trained"], result["baselines"]
    rows = []
    if "macro" in after:
        for key, name in (("targets", f"mean of {len(TARGETS)} findings"), ("all", "mean of all 18")):
            values = {"supervised logistic regression": base["logistic_regression"]}
            values |= {"mask oracle": base["mask_oracle"]} if "mask_oracle" in base else {}
            other = ", ".join(f"{label} {value[key]['value']:.3f}" for label, value in values.items())
            rows.append(_row(f"zero-shot AUROC, {name}", "0.500", before["macro"][key]["value"], after["macro"][key], other))
        for old, new in zip(before["retrieval"], after["retrieval"], strict=True):
            name = f"{new['direction']}, R@{new['k']} of {new['gallery']}"
            ratio = f"{new['recall']['value'] / new['chance']:.1f} x chance"
            rows.append(_row(name, f"{new['chance']:.3f}", old["recall"]["value"], new["recall"], ratio))
    if "reconstruction" in after:
        for key, name in (("masked", "MSE of masked voxels"), ("masked_body", "MSE of masked body voxels")):
            old, new = before["reconstruction"], after["reconstruction"]
            rows.append(_row(name, "", old[key], f"{new[key]:.4f}", f"mean image {new[key + '_mean_image']:.4f}"))
    if "sentence_pairs" in result:
        same = result["sentence_pairs"][0]
        name = f"sentence pairs that SSM treats as same (cosine of {same['threshold']:.2f} or more)"
        scores = [f"{score} {format_cell(same[key])}" for score in ("precision", "recall") if (key := f"{score} of same") in same]
        rows.append(_row(name, "", "", f"{same['pairs at or above']:.2%}", ", ".join(scores)))
    return rows


def _row(name: str, chance: str, untrained: float | str, trained: Any, comparison: str) -> dict[str, str]:
    cells = (name, chance, format_cell(untrained), format_cell(trained), comparison)
    return dict(zip(("held-out", "chance", "untrained", "trained [95 % CI]", "comparison"), cells))


def finding_rows(result: dict[str, Any]) -> Rows:
    """One row per finding: AUROC of the untrained and trained model and of the supervised baseline."""
    if "zero_shot" not in result["trained"]:
        return []
    supervised = result["baselines"]["logistic_regression"]["findings"]
    rows = []
    for old, new, known in zip(result["untrained"]["zero_shot"], result["trained"]["zero_shot"], supervised, strict=True):
        row = {"finding": new["finding"], "prevalence": new["prevalence"], "untrained": old["auroc"]["value"]}
        row |= {"trained": format_cell(new["auroc"]), "trained, visible only": new.get("auroc of visible", "")}
        rows.append(row | {"supervised on pooled volume": known})
    return rows


def show_evidence(run_dir: Path) -> None:
    """Print the short table of `evidence.json` and the paths of the run's files."""
    result = json.loads((run_dir / "evidence.json").read_text())
    title = f"{result['studies']} held-out studies of patients not used in training"
    table = format_tables(title, {"Held-out results": summary_rows(result)})
    print(table or f"no held-out metric is defined for the objectives {', '.join(result['objective'])} alone")
    for name in ("evidence.html", "evidence.json", "checkpoints/best.ckpt", "checkpoints/last.ckpt", "tensorboard"):
        if (run_dir / name).exists():
            print(f"  {run_dir / name}")


def write_evidence_page(run_dir: Path, result: dict[str, Any], data: HeldOutData, similarity: Tensor | None) -> None:
    """Write `evidence.html`, and its training curves as `curves.png`."""
    tables = {"Held-out results": summary_rows(result), "By finding": format_rows(finding_rows(result))}
    sections: list[tuple[str, list[Any]]] = [(heading, [rows]) for heading, rows in tables.items()]
    metrics = sorted(run_dir.glob("csv/*/metrics.csv"))
    curves = curves_figure(metrics) if metrics else None
    if curves is not None:
        write_bytes(run_dir / "curves.png", png(curves))
        sections.append(("Curves", [curves]))
    if similarity is not None and data.truths is not None:  # only the phantom's reports may be shown
        sections.append(("Held-out studies with their report and the reports nearest to the volume", _examples(data, similarity)))
    write_page(run_dir / "evidence.html", title="mg3d: results after training", sections=sections)


def _examples(data: HeldOutData, similarity: Tensor) -> list[Any]:
    """Planes, report and the three nearest reports of some studies."""
    items: list[Any] = []
    for study in np.linspace(0, len(data.test) - 1, EXAMPLES).astype(int):
        sample = data.test.sample(int(study))
        order = similarity[study].argsort(descending=True)
        rank = int((order == study).nonzero()[0, 0]) + 1
        title = f"{sample.study_id}: its own report has rank {rank} of {len(order)}"
        items.append(case_figure(sample_intensities(sample)[0], report=sample.report, title=title, window=(0.0, 0.75)))
        nearest = [data.test.report(int(other)).report for other in order[:3]]
        items.append([{"rank": index + 1, "nearest report": text} for index, text in enumerate(nearest)])
    return items
