"""Fusion, pooling and the six losses over padded batches, beside loops over patients, sentences, words and cubes.

The loops over losses are the ones that the tests compare with, so this runs in a checkout only.
"""

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mg3d.benchmarks import step
from mg3d.benchmarks.batches import CUBE, VOCABULARY, on_device, random_batch
from mg3d.benchmarks.fresh import alternate, autocast, settler
from mg3d.benchmarks.timing import Comparison, Options
from mg3d.models.aggregation import ImageAggregation
from mg3d.models.contrast import ImageReportContrast
from mg3d.models.fusion import CrossAttentionFusion
from mg3d.models.pooling import AttentionPool, sentence_means
from mg3d.settings.schema import LossSettings, ModelSettings, objective_weights
from mg3d.training.objectives import build_losses
from mg3d.types import Batch

WIDTH, HEADS, SENTENCE_WIDTH, STRIDE = 768, 12, 128, 32
QUICK = {"batch": 3, "tokens": 12, "sentences": 3, "size": (32, 64, 32), "repeats": 1}
LOOP_GOAL, SHARE_GOAL = 20.0, 10.0
FURTHER = 256
"""Extra report negatives."""
OF_BATCH = ("sentence_mask", "sentence_polarity", "patient_key", "report_key", "view_key")
"""Fields of the batch that losses read."""
LOSSES = tuple(objective_weights(LossSettings()))


class Parts(NamedTuple):
    """What stands between encoders and losses, at the real width."""

    fusion: nn.Module
    contrast: nn.Module
    aggregation: nn.Module
    losses: dict[str, nn.Module]


class Inputs(NamedTuple):
    """Encoder outputs (leaves of the graph) and what the losses read, as random numbers."""

    batch: Batch
    image: Tensor
    """[B, N, d]."""
    report: Tensor
    """[B, T, d]."""
    features: dict[str, Tensor]


def build_parts(device: str) -> Parts:
    """The default modules."""
    pooling = {"heads": HEADS, "queries": 1}
    return Parts(
        CrossAttentionFusion(WIDTH, layers=2, heads=HEADS).to(device),
        ImageReportContrast(WIDTH, WIDTH, image_pool=AttentionPool(WIDTH, **pooling), **pooling).to(device),
        ImageAggregation(WIDTH, SENTENCE_WIDTH, **pooling).to(device),
        build_losses(ModelSettings(), list(LOSSES)),
    )


def build_inputs(options: Options) -> Inputs:
    """For `batch` patients."""
    batch = on_device(random_batch(options), options.device)
    device, size, (patients, sentences) = options.device, options.size, batch.sentence_mask.shape
    places = [side // STRIDE for side in size]

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, requires_grad=True)

    def unit(*shape: int) -> Tensor:
        return nn.functional.normalize(torch.randn(*shape, device=device), dim=-1).requires_grad_()

    targets = batch.mlm_labels[batch.mlm_labels >= 0]
    scale = torch.tensor(14.0, device=device)
    features = {
        "mlm_logits": leaf(len(targets), VOCABULARY), "mlm_targets": targets,
        "sal_prediction": leaf(patients, sentences, WIDTH), "sal_target": torch.randn(patients, sentences, WIDTH, device=device),
        "mim_prediction": leaf(*batch.volume.shape), "mim_target": batch.volume, "patch_mask": batch.patch_mask,
        "cml_first_embedding": unit(patients, WIDTH), "cml_second_embedding": unit(patients, WIDTH),
        "cml_view_embedding": unit(patients, 2, WIDTH), "cml_logit_scale": scale, "cml_logit_bias": None,
        **dict.fromkeys(("negative_embedding", "negative_patient_key", "negative_report_key")),
        "dcl_image_embedding": unit(patients, WIDTH), "dcl_aggregate_embedding": unit(patients, WIDTH),
        "dcl_logit_scale": scale, "dcl_logit_bias": None, "ssm_visual": leaf(patients, sentences, SENTENCE_WIDTH),
        "ssm_text": torch.randn(patients, sentences, WIDTH, device=device),
        **{name: getattr(batch, name) for name in OF_BATCH},
    }  # fmt: skip
    tokens = places[0] * places[1] * places[2]
    return Inputs(batch, leaf(patients, tokens, WIDTH), leaf(patients, options.tokens, WIDTH), features)


def batched(parts: Parts, inputs: Inputs) -> dict[str, Callable[[], Tensor]]:
    """Name -> ours, a scalar with a graph."""
    batch, image, report = inputs.batch, inputs.image, inputs.report

    def pooling(rows: slice = slice(None)) -> Tensor:
        mask = batch.sentence_mask[rows]
        sentences = sentence_means(report[rows], batch.sentence_index[rows], mask.shape[1])
        return _pooled(parts, image[rows], sentences, mask)

    def loss(name: str) -> Callable[[], Tensor]:
        module = parts.losses[name]
        return lambda: module(**{field: inputs.features[field] for field in module.inputs})

    def words() -> Tensor:
        scores, targets = inputs.features["mlm_logits"], inputs.features["mlm_targets"]
        return parts.losses["mlm"](nn.functional.cross_entropy(scores, targets, reduction="none"))

    return {
        "fusion": lambda: parts.fusion(report, image, second_mask=None)[0].mean(),
        "pooling": pooling,
        **{name: loss(name) for name in LOSSES},
        "mlm": words,
    }


def looped(parts: Parts, inputs: Inputs) -> dict[str, Callable[[], Tensor]]:
    """Name -> the same by loops."""
    sys.path.append(str(Path(__file__).parents[2] / "tests"))
    import slow_losses as slow

    f, batch = inputs.features, inputs.batch
    patients = range(len(batch.volume))
    lengths = batch.sentence_mask.sum(1).tolist()
    keys = (batch.patient_key.tolist(), batch.report_key.tolist())
    views = f["cml_view_embedding"].unbind(1)
    return {
        "fusion": lambda: sum(_fused(parts, inputs, b) for b in patients) / len(patients),
        "pooling": lambda: sum(_pooled_alone(parts, inputs, b) for b in patients) / len(patients),
        "mlm": lambda: slow.slow_mlm(f["mlm_logits"], f["mlm_targets"]),
        "sal": lambda: slow.slow_sal(f["sal_prediction"], f["sal_target"], lengths, per="sentence"),
        "mim": lambda: slow.slow_mim(f["mim_prediction"], f["mim_target"], f["patch_mask"], (CUBE,) * 3),
        "cml": lambda: slow.slow_cml(f["cml_first_embedding"], f["cml_second_embedding"], views, f["cml_logit_scale"], *keys,
                                     view_keys=batch.view_key.T.tolist()),
        "dcl": lambda: slow.slow_info_nce(f["dcl_image_embedding"], f["dcl_aggregate_embedding"], f["dcl_logit_scale"], *keys),
        "ssm": lambda: slow.slow_ssm(f["ssm_visual"], f["ssm_text"], lengths, batch.sentence_polarity.tolist(), keys[0]),
    }  # fmt: skip


def _pooled(parts: Parts, image: Tensor, sentences: Tensor, mask: Tensor) -> Tensor:
    found = parts.aggregation(sentences, mask, image=image, image_vector=image[:, 0])
    embedded = parts.contrast.embed_image(image), parts.contrast.embed_report(sentences, mask)
    return sum(part.mean() for part in (*embedded, found.patient, found.sentence_features))


def _pooled_alone(parts: Parts, inputs: Inputs, patient: int) -> Tensor:
    index, tokens = inputs.batch.sentence_index[patient].tolist(), inputs.report[patient]
    count = int(inputs.batch.sentence_mask[patient].sum())
    of = [[token for token, at in zip(tokens, index, strict=True) if at == sentence] for sentence in range(count)]
    sentences = torch.stack([sum(own) / len(own) for own in of])[None]
    mask = torch.ones(1, count, dtype=torch.bool, device=tokens.device)
    return _pooled(parts, inputs.image[patient : patient + 1], sentences, mask)


def _fused(parts: Parts, inputs: Inputs, patient: int) -> Tensor:
    """Word by word: each token of the report reads from the image."""
    image, words = inputs.image[patient : patient + 1], inputs.report[patient]
    return sum(parts.fusion(word[None, None], image, second_mask=None)[0].mean() for word in words) / len(words)


def timed(work: Callable[[], Tensor], options: Options) -> tuple[float, float]:
    """(seconds forward and backward, value)."""
    settle = settler(options)
    began = time.perf_counter()
    with autocast(options):
        value = work()
    value.backward()
    settle()
    return time.perf_counter() - began, float(value.detach())


def run(options: Options) -> list[Comparison]:
    """Every part beside its loop, all together, and their share of a step at the step's own batch."""
    options = options._replace(**QUICK) if options.quick else options
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    parts, inputs = build_parts(options.device), build_inputs(options)
    rows = list(_beside_loops(parts, inputs, options))
    told = f"B={options.batch}, S={options.sentences}, T={options.tokens}, {options.device}, {options.precision}"
    sums = [sum(getattr(row, side) for row in rows) for side in ("our_cost", "their_cost")]
    rows.append(Comparison("all together", "batched", "loops", *sums, goal=None if options.quick else LOOP_GOAL, note=told))
    return [*rows, *_beyond(parts, inputs, options), _share(parts, options)]


def _beyond(parts: Parts, inputs: Inputs, options: Options) -> Iterator[Comparison]:
    """CML with and without extra report negatives."""
    shape = (options.batch, FURTHER // options.batch)
    means = torch.randn(*shape, options.sentences, WIDTH, device=options.device)
    keys = torch.arange(shape[0] * shape[1], device=options.device).view(shape) + FURTHER
    mask = torch.ones(means.shape[:3], dtype=torch.bool, device=options.device)

    def value(name: str, **more: object) -> Tensor:
        module = parts.losses[name]
        return module(**{field: more.get(field, inputs.features[field]) for field in module.inputs})

    def with_further() -> Tensor:
        embedded = parts.contrast.embed_report(means.flatten(0, 1), mask.flatten(0, 1)).unflatten(0, shape)
        return value("cml", negative_embedding=embedded, negative_patient_key=keys, negative_report_key=keys)

    costs = [[timed(one, options)[0] for _ in range(options.repeats + 1)] for one in (with_further, partial(value, "cml"))]
    yield Comparison("cml", f"{FURTHER} further reports", "without", *(median(rounds[1:]) for rounds in costs))


def _beside_loops(parts: Parts, inputs: Inputs, options: Options) -> Iterator[Comparison]:
    """The loops are timed once, for they take minutes."""
    slow = looped(parts, inputs)
    for name, fast in batched(parts, inputs).items():
        timed(fast, options)
        ours = [timed(fast, options) for _ in range(options.repeats)]
        theirs = timed(slow[name], options)
        note = f"values {ours[0][1]:.6f} and {theirs[1]:.6f}"
        yield Comparison(name, "batched", "loops", median(seconds for seconds, _ in ours), theirs[0], note=note)


def _share(parts: Parts, options: Options) -> Comparison:
    """At batch 2, which fits everywhere."""
    options = options._replace(batch=2, repeats=1)
    whole = alternate(step.measure, (step.OURS,), options)[step.OURS][0].seconds
    work = batched(parts, build_inputs(options))
    own = 0.0
    for one in work.values():
        timed(one, options)
        own += timed(one, options)[0]
    return Comparison(
        "share of a step", "fusion, pooling, losses", "whole step", own, whole, goal=None if options.quick else SHARE_GOAL,
        note=f"{own / whole:.1%} of a step at batch 2",
    )  # fmt: skip
