"""FLOPs and activation memory of a training step, counted on the meta device: no tensor is allocated."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from mg3d.models.branches.disentangled import ImageAggregation
from mg3d.models.mg3d import MG3D

FORWARD_AND_BACKWARD = 3
"""FLOPs of forward and backward over those of forward, for trained parts."""


class ReportShape(NamedTuple):
    """Texts of one volume."""

    tokens: int
    sentences: int
    views: int
    view_tokens: int
    masked_fraction: float
    """Fraction of tokens masked in masked report modelling."""
    is_cached: bool = False
    """The text encoder's features of the unmasked report come from the text cache."""


class Part(NamedTuple):
    """One part of a step, for one volume."""

    name: str
    passes: int
    forward_flops: int
    """Of all passes: matrix products, convolutions and attention, as `torch.utils.flop_counter` counts them (a multiply-add is
    2)."""
    saved_bytes: int
    """Saved for the backward pass by all passes, in the model's precision."""
    is_trained: bool

    @property
    def needed_flops(self) -> int:
        """Forward and backward, without recomputation."""
        return self.forward_flops * (FORWARD_AND_BACKWARD if self.is_trained else 1)


def needed_flops(parts: Sequence[Part]) -> int:
    """FLOPs of a step per volume."""
    return sum(part.needed_flops for part in parts)


def count_step(model: MG3D, volume_shape: Sequence[int], report: ReportShape) -> list[Part]:
    """Parts of a step for one volume [1, 1, *volume_shape] and its report.

    Not counted, because they are small: sentence pooling, contrastive heads and losses. Branches of other files, and the report
    decoder of captioning, are not counted either.
    """
    # FlopCounterMode supports neither graphs inside autograd functions nor views of trained parameters.
    frozen = _parts(_on_meta(model).requires_grad_(False), volume_shape, report)
    trained = _parts(_on_meta(model), volume_shape, report)
    return [
        Part(name, passes, passes * _flops(work), passes * (_saved_bytes(same) if is_trained else 0), is_trained)
        for (name, passes, is_trained, work), (*_, same) in zip(frozen, trained, strict=True)
    ]


def _on_meta(model: MG3D) -> MG3D:
    """A copy on the meta device that shares no tensor with the model."""
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
def _saved_bytes(work: Callable[[], object]) -> int:
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            saved[storage._cdata] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = work()  # referenced until the end: a freed storage could lend its address to another
    del result
    return sum(storage.nbytes() for storage in saved.values())


def _parts(
    model: MG3D, volume_shape: Sequence[int], report: ReportShape
) -> Iterator[tuple[str, int, bool, Callable[[], object]]]:
    """(name, passes, whether it is trained, work)."""
    active, like = model.objectives.intersection, next(model.parameters())
    width, tokens, count = model.project_image.out_features, math.prod(model.grid), report.sentences
    branches = dict(model.branches.items())
    report_branch, volume_branch = branches.get("report"), branches.get("volume")

    def text(length: int) -> Callable[[], object]:
        ids = torch.empty(1, length, dtype=torch.int64, device="meta")
        # Without an attention mask: code that reads mask values cannot run on the meta device.
        return lambda: model.project_report(model.text.bert(input_ids=ids).last_hidden_state)

    volume, image = like.new_empty(1, 1, *volume_shape), like.new_empty(1, tokens, width)
    words, sentences = like.new_empty(1, report.tokens, width), like.new_empty(1, count, width)
    mask = torch.ones(1, count, dtype=torch.bool, device="meta")
    passes = bool(model.objectives - {"mim"}) + bool(active({"mim"}))
    yield "volume encoder", passes, True, lambda: model.encode_volume(volume)
    target = getattr(report_branch, "target_text", None)
    reads_report = active({"mim", "cml", "dcl", "ssm"}) or (active({"sal"}) and target is None)
    passes = int(bool(reads_report) and not report.is_cached) + bool(active({"mlm", "sal"}))
    yield "report encoder", passes, not model.text.frozen, text(report.tokens)
    if target is not None:
        yield "report encoder, target", 1, False, text(report.tokens)
    if model.has_joint_embedding:
        yield "report encoder, views", report.views, not model.text.frozen, text(report.view_tokens)
    fusion = getattr(report_branch, "fusion", getattr(model, "fusion_report", None))
    if fusion is not None:
        yield "report fusion", 1, True, lambda: fusion(words, image)
    fusion_volume = getattr(volume_branch, "fusion", getattr(model, "fusion_volume", None))
    if fusion_volume is not None:
        yield "volume fusion", 1, True, lambda: fusion_volume(image, sentences)
    head = getattr(report_branch, "mlm_head", None)
    if head is not None:
        masked = max(1, round(report.masked_fraction * report.tokens)) if active({"mlm"}) else 0
        yield "word head", 1, True, lambda: head.decode(head.transform(words)[:, :masked])
    if volume_branch is not None:
        yield "volume decoder", 1, True, lambda: volume_branch.decoder(image.mT.reshape(1, width, *model.grid))
    aggregation = getattr(branches.get("disentangled"), "aggregation", None)
    if aggregation is not None:
        pooled = image if isinstance(aggregation, ImageAggregation) else image[:, 0]
        yield "aggregation", 1, True, lambda: aggregation(sentences, mask, pooled)
