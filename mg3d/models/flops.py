"""What a training step of a model costs, counted from shapes alone: on copies without numbers, in a second."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from mg3d.models.contrast import ImageReportContrast
from mg3d.models.mg3d import MG3D

WITH_BACKWARD = 3
"""Forward and backward over forward, for parts that learn: two products backward for one forward."""


class ReportShape(NamedTuple):
    """The texts of one volume."""

    tokens: int
    sentences: int
    views: int
    view_tokens: int
    asked_share: float
    """Share of tokens that masked report modelling asks for."""
    is_cached: bool = False
    """The text encoder's features of the unmasked report are read from a file."""


class Part(NamedTuple):
    """One part of a step, of one volume."""

    name: str
    passes: int
    forward_flops: int
    """Of all passes; matrix products, convolutions and attention, as `torch.utils.flop_counter` counts them, each multiplication
    and addition once."""
    kept_bytes: int
    """What all passes keep for the backward pass, in the model's precision."""
    learns: bool

    @property
    def needed_flops(self) -> int:
        """Forward and backward, without what is computed again to save memory."""
        return self.forward_flops * (WITH_BACKWARD if self.learns else 1)


def needed_flops(parts: Sequence[Part]) -> int:
    """Of one volume's share of a step."""
    return sum(part.needed_flops for part in parts)


def count_step(model: MG3D, volume_shape: Sequence[int], report: ReportShape) -> list[Part]:
    """The parts of a step, for one volume [1, 1, *volume_shape] and its report.

    Contrast between volumes, pooling of sentences and the losses themselves are not counted: they are small.
    """
    # The counter's hooks stand neither a graph within an autograd function nor a view of a parameter that learns.
    rigid = _parts(_without_numbers(model).requires_grad_(False), volume_shape, report)
    learning = _parts(_without_numbers(model), volume_shape, report)
    return [
        Part(name, passes, passes * _flops(work), passes * (_kept_bytes(same) if learns else 0), learns)
        for (name, passes, learns, work), (*_, same) in zip(rigid, learning, strict=True)
    ]


def _without_numbers(model: MG3D) -> MG3D:
    """A copy on the device `meta`; nothing of the model's own tensors is copied."""
    memo: dict[int, object] = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)
        for parameter in model.parameters()
    }
    memo |= {id(buffer): torch.empty_like(buffer, device="meta") for buffer in model.buffers()}
    return copy.deepcopy(model, memo)


@torch.no_grad()
def _flops(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@torch.enable_grad()
def _kept_bytes(work: Callable[[], object]) -> int:
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = work()  # kept until all is counted: what is freed could lend its address to another
    del result
    return sum(storage.nbytes() for storage in kept.values())


def _parts(
    model: MG3D, volume_shape: Sequence[int], report: ReportShape
) -> Iterator[tuple[str, int, bool, Callable[[], object]]]:
    """(name, passes, whether it learns, work)."""
    wants = model.objectives.intersection
    like = next(model.parameters())
    width, tokens, count = model.project_image.out_features, math.prod(model.grid), report.sentences

    def empty(*shape: int) -> Tensor:
        return like.new_empty(*shape)

    def text(length: int) -> Callable[[], object]:
        ids = torch.empty(1, length, dtype=torch.int64, device="meta")
        # Without a mask, for what looks into one cannot run without numbers.
        return lambda: model.project_report(model.text.bert(input_ids=ids).last_hidden_state)

    volume, image = like.new_empty(1, 1, *volume_shape), empty(1, tokens, width)
    words, sentences = empty(1, report.tokens, width), empty(1, count, width)
    mask = torch.ones(1, count, dtype=torch.bool, device="meta")
    passes = bool(wants({"mlm", "sal", "cml", "dcl", "ssm"})) + bool(wants({"mim"}))
    yield "volume encoder", passes, True, lambda: model.encode_volume(volume)
    passes = (model.reads_unmasked_text() and not report.is_cached) + bool(wants({"mlm", "sal"}))
    learns = not model.text.frozen
    yield "report encoder", passes, learns, text(report.tokens)
    if model.target_text is not None:
        yield "report encoder, target", 1, False, text(report.tokens)
    if isinstance(model.contrast, ImageReportContrast):
        yield "report encoder, views", report.views, learns, text(report.view_tokens)
    if model.fusion_report is not None:
        yield "report fusion", 1, True, lambda: model.fusion_report(words, image)
    if model.fusion_volume is not None:
        yield "volume fusion", 1, True, lambda: model.fusion_volume(image, sentences)
    if model.mlm_head is not None:
        asked = max(1, round(report.asked_share * report.tokens)) if wants({"mlm"}) else 0
        yield "word head", 1, True, lambda: model.mlm_head.decoder(model.mlm_head.transform(words)[:, :asked])
    if model.mim_head is not None:
        yield "volume decoder", 1, True, lambda: model.mim_head(image.mT.reshape(1, width, *model.grid))
    if model.aggregation is not None:
        vector = empty(1, width)
        yield "aggregation", 1, True, lambda: model.aggregation(sentences, mask, image=image, image_vector=vector)
