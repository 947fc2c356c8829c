"""Metrics of a trained run on held-out studies, each with its values on resamples of patients.

All runs of a study are resampled with the same draws, so that differences between runs are paired by patient.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from mg3d.datasets.studies import Studies
from mg3d.datasets.windowing import sample_intensities
from mg3d.evaluation.baselines import logistic_scores
from mg3d.evaluation.card_data import hash_lines
from mg3d.evaluation.encoder import MG3DEncoder, embed_batches
from mg3d.evaluation.evidence import TARGETS, HeldOutData
from mg3d.evaluation.negation_and_laterality import swap_report_sides
from mg3d.evaluation.reconstruction import BODY_ABOVE, mean_volume
from mg3d.evaluation.tables import Statistic, macro, on_rows
from mg3d.evaluation.zero_shot import embed_prompts
from mg3d.glossary import LABELS
from mg3d.metrics.bootstrap import resample_statistics
from mg3d.metrics.classification import auroc, macro_auroc, mean_of_defined
from mg3d.metrics.retrieval import first_rank
from mg3d.models.mg3d import MG3D
from mg3d.models.vision.masking import upsample_mask
from mg3d.sentence_spans import normalize_text
from mg3d.settings.schema import Settings

RESAMPLES = 200
BUDGETS = (20, 100, 0)
"""Labelled training studies of the probes; 0: all."""
DRAWS = 5
"""Random choices of the labelled studies, over which a probe's AUROC is averaged."""


class Metric(NamedTuple):
    """How a metric is shown."""

    short: str
    """Heading of a column."""
    title: str
    higher_is_better: bool = True


METRICS = {
    "auroc_5": Metric("AUROC 5", "zero-shot AUROC, 5 findings"),
    "auroc_18": Metric("AUROC 18", "zero-shot AUROC, 18 findings"),
    "negation_gain": Metric("negation", "zero-shot AUROC gained by the negated prompt"),
    "recall_1": Metric("R@1", "volume to report, R@1"),
    "recall_10": Metric("R@10", "volume to report, R@10"),
    "sides": Metric("sides", "volumes whose own report is preferred to the one with swapped sides"),
    **{
        f"probe_{kind}_{budget or 'all'}": Metric(
            f"{kind[:3]}. {budget or 'all'}", f"linear probe of {title}, {budget or 'all'} labelled studies, AUROC of 18 findings"
        )
        for kind, title in (("embedding", "the contrast embedding"), ("tokens", "the image tokens"))
        for budget in BUDGETS
    },
    "masked_body_error": Metric("MIM", "error on masked body voxels / error of the mean image", higher_is_better=False),
}
"""In the order of the tables."""


def measure_run(settings: Settings) -> dict[str, Any]:
    """`metrics` of the last checkpoint of a run (name -> value and draws), and `data`, which identifies the held-out studies.

    A metric whose objective the run does not have is missing.
    """
    from mg3d.training.run import open_evaluation

    held_out, checkpoint = open_evaluation(settings)
    model = held_out.load(checkpoint).eval()
    statistics = {"masked_body_error": _masked_body_error(model, held_out)} if "mim" in model.objectives else {}
    if model.has_joint_embedding:
        statistics |= _joint_statistics(model, held_out)
    patients, rows = held_out.test.patients, np.arange(len(held_out.test))
    draws = resample_statistics(lambda chosen: {name: of(chosen) for name, of in statistics.items()}, patients, RESAMPLES, seed=0)
    metrics = {
        name: {"value": _number(statistics[name](rows)), "draws": [_number(value) for value in draws[name]]}
        for name in METRICS
        if name in statistics
    }
    table = held_out.test.index.table["study_id"].take(held_out.test.first_rows).to_pylist()
    return {"data": {"studies": len(rows), "ids_sha256": hash_lines(table)}, "metrics": metrics}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(f"{value:.5g}")


def _joint_statistics(model: MG3D, data: HeldOutData) -> dict[str, Statistic]:
    encoder = MG3DEncoder(model, data.tokenizer, max_text_len=data.settings.data.max_text_len)
    volumes = embed_batches(encoder, data.volumes()).double()
    texts = [data.test.report(study) for study in range(len(data.test))]
    reports = encoder.embed_texts(texts).double()
    return (
        _zero_shot(encoder, volumes, data.labels)
        | _retrieval(volumes @ reports.T, [normalize_text(text.report) for text in texts])
        | _sides(encoder, texts, volumes, reports)
        | _probes(encoder, data)
    )


def _zero_shot(encoder: MG3DEncoder, volumes: Tensor, labels: np.ndarray) -> dict[str, Statistic]:
    present, absent = embed_prompts(encoder).double().unbind(1)
    alone, pair = ((volumes @ part.T).numpy() for part in (present, present - absent))
    targets = [LABELS.index(name) for name in TARGETS]
    of_pair, of_present = macro(auroc, labels, pair, alone).statistics
    return {
        "auroc_5": macro(auroc, labels[:, targets], pair[:, targets]).statistics[0],
        "auroc_18": of_pair,
        "negation_gain": lambda rows: of_pair(rows) - of_present(rows),
    }


def _retrieval(similarity: Tensor, keys: list[str]) -> dict[str, Statistic]:
    """similarity [n, n] of volumes and reports; studies with equal texts are relevant to each other."""
    same = np.array(keys, dtype=object)
    ranks = first_rank(similarity.numpy(), same[:, None] == same)
    return {f"recall_{k}": on_rows(np.mean, (ranks <= k).astype(float)) for k in (1, 10)}


def _sides(encoder: MG3DEncoder, texts: list, volumes: Tensor, reports: Tensor) -> dict[str, Statistic]:
    swapped = [swap_report_sides(text) for text in texts]
    sided = np.array([new.report != old.report for new, old in zip(swapped, texts, strict=True)])
    other = (volumes * encoder.embed_texts(swapped).double()).sum(1)
    correct = ((volumes * reports).sum(1) > other).double().numpy()
    return {"sides": on_rows(mean_of_defined, np.where(sided, correct, np.nan))} if sided.any() else {}


def _probes(encoder: MG3DEncoder, data: HeldOutData) -> dict[str, Statistic]:
    """Logistic regression on frozen features, trained on a few labelled studies."""
    train_labels = np.array(data.train.index.table["labels"].take(data.train.first_rows).to_pylist(), np.int8)
    train, test = (_features(encoder, studies, data.settings.optim.per_gpu_batchsize) for studies in (data.train, data.test))
    statistics = {}
    for kind in train:
        for budget in BUDGETS:
            draws = 1 if not budget else DRAWS
            scores = []
            for draw in range(draws):
                order = np.random.default_rng(draw).permutation(len(train_labels))
                chosen = order[: budget or None]
                scores.append(logistic_scores(train[kind][chosen], train_labels[chosen], test[kind]))
            statistics[f"probe_{kind}_{budget or 'all'}"] = on_rows(_mean_auroc, data.labels, np.stack(scores, 1))
    return statistics


def _mean_auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Mean over draws of the macro AUROC; labels [n, 18], scores [n, draws, 18]."""
    return float(np.mean([macro_auroc(labels, part) for part in scores.swapaxes(0, 1)]))


@torch.no_grad()
def _features(encoder: MG3DEncoder, studies: Studies, size: int) -> dict[str, np.ndarray]:
    """`embedding` [n, E] of the contrast, and `tokens` [n, N * C] of the image encoder."""
    parts: dict[str, list[Tensor]] = {"embedding": [], "tokens": []}
    for batch in track(list(_chunks(studies, size)), description="features", transient=True):
        volumes = torch.stack([torch.from_numpy(sample_intensities(studies.sample(study))) for study in batch]).clamp(0, 1)
        parts["embedding"].append(encoder.embed_volumes(volumes))
        parts["tokens"].append(encoder.model.encode_volume(volumes.to(encoder.device)).flatten(1).float().cpu())
    return {name: torch.cat(part).numpy() for name, part in parts.items()}


def _chunks(studies: Studies, size: int) -> Iterator[range]:
    return (range(start, min(start + size, len(studies))) for start in range(0, len(studies), size))


@torch.no_grad()
def _masked_body_error(model: MG3D, data: HeldOutData) -> Statistic:
    """Squared error of the model on masked body voxels, divided by that of the mean image of the training volumes."""
    mean_image = mean_volume(data.train, max_studies=300)
    sums: list[Tensor] = []
    for batch in data.batches():
        target = batch.volume.cpu()
        masked = upsample_mask(batch.patch_mask, target.shape[2:])[:, None].cpu() & (target > BODY_ABOVE)
        prediction = model(batch, ["volume"])["mim_prediction"].float().cpu()
        sums.append(torch.stack([(((guess - target) ** 2) * masked).flatten(1).sum(1) for guess in (prediction, mean_image)], 1))
    errors = torch.cat(sums).double().numpy()
    return on_rows(lambda part: part[:, 0].sum() / part[:, 1].sum(), errors)
