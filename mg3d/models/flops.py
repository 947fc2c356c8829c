"""FLOPs, memory traffic and saved activations of a training step, counted on the meta device: no tensor is allocated."""

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from mg3d.models.branches.disentangled import ImageAggregation
from mg3d.models.mg3d import MG3D
from mg3d.models.vision.swin import SwinEncoder
from mg3d.models.vision.window_paths import FUSED
from mg3d.models.vision.windows import Parameters, clip_window, plan_windows, window_gradients

FORWARD_AND_BACKWARD = 3
"""FLOPs of forward and backward over those of forward, for trained parts, without recomputation."""
WITHOUT_TRAFFIC = ("_unsafe_view", "empty", "empty_like", "new_empty", "detach")
"""Operators, other than views, that read and write nothing."""


class Operation(NamedTuple):
    """Cost of one operator call."""

    name: str
    flops: int
    """Of matrix products, convolutions and attention, as `torch.utils.flop_counter` counts them (a multiply-add is 2); else 0."""
    bytes: int
    """Size of its arguments and results, in the precision of the model."""


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
    forward: tuple[Operation, ...]
    """Of one pass."""
    backward: tuple[Operation, ...]
    """Of one pass, with what it recomputes; empty for a frozen part."""
    saved_bytes: int
    """Saved for the backward pass by all passes, in the precision of the model."""

    @property
    def is_trained(self) -> bool:
        """Whether a backward pass runs through it."""
        return bool(self.backward)

    @property
    def forward_flops(self) -> int:
        """Of all passes."""
        return self.passes * sum(operation.flops for operation in self.forward)

    @property
    def needed_flops(self) -> int:
        """Forward and backward of all passes, without recomputation."""
        return self.forward_flops * (FORWARD_AND_BACKWARD if self.is_trained else 1)


def needed_flops(parts: Sequence[Part]) -> int:
    """FLOPs of a step per volume."""
    return sum(part.needed_flops for part in parts)


def count_step(model: MG3D, volume_shape: Sequence[int], report: ReportShape) -> list[Part]:
    """Parts of a step for one volume [1, 1, *volume_shape] and its report.

    Not counted, because they are small: sentence pooling, contrastive heads and losses. Branches of other files, and the report
    decoder of captioning, are not counted either.
    """
    return [
        Part(name, passes, *_count(work, passes, is_trained))
        for name, passes, is_trained, work in _parts(_on_meta(model), volume_shape, report)
    ]


class _Counter(TorchDispatchMode):
    """Records every operator that computes or moves data."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result, packet = function(*args, **kwargs), function._overloadpacket
        if function.namespace == "prim" or function.is_view or packet.__name__ in WITHOUT_TRAFFIC:
            return result
        flops = flop_registry[packet](*args, **kwargs, out_val=result) if packet in flop_registry else 0
        self.operations.append(Operation(packet.__name__, flops, _traffic(packet.__name__, args, result)))
        return result


def _traffic(name: str, args: Sequence[Any], result: object) -> int:
    """Bytes that an operator reads and writes; of some, not all of its arguments."""
    match name, args:
        case "copy_", (target, source, *_):
            return _bytes(target) + _bytes(source)
        case "index_select", (_, _, index):
            return _bytes(index) + 2 * _bytes(result)
        case "index_put_", (_, indices, values, *_):
            return _bytes(indices) + 2 * _bytes(values)
        case "index_fill_", (target, _, index, _):
            return _bytes(index) + _bytes(target) * len(index) // len(target)
    return _bytes((args, result))


def _bytes(everything: object) -> int:
    """Of all tensors, without repetitions of expanded ones."""
    tensors = (leaf for leaf in tree_leaves(everything) if isinstance(leaf, Tensor))
    shapes = ((tensor.element_size(), zip(tensor.shape, tensor.stride(), strict=True)) for tensor in tensors)
    return sum(size * math.prod(side for side, stride in sides if stride) for size, sides in shapes)


def _count(work: Callable[[], object], passes: int, is_trained: bool) -> tuple[tuple[Operation, ...], tuple[Operation, ...], int]:
    """Forward and backward operations of one pass, and bytes saved by all passes."""
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            saved[storage._cdata] = storage
        return tensor

    with torch.set_grad_enabled(is_trained), saved_tensors_hooks(pack, lambda tensor: tensor), _Counter() as forward:
        results = [leaf for leaf in tree_leaves(work()) if isinstance(leaf, Tensor)]
    if not is_trained:
        return tuple(forward.operations), (), 0
    saved_bytes = passes * sum(storage.nbytes() for storage in saved.values())
    trained = [result for result in results if result.requires_grad]
    with _Counter() as backward:
        torch.autograd.backward(trained, [torch.empty_like(result) for result in trained])
    return tuple(forward.operations), tuple(backward.operations), saved_bytes


def _on_meta(model: MG3D) -> MG3D:
    """A copy on the meta device that shares no tensor with the model."""
    memo: dict[int, object] = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)
        for parameter in model.parameters()
    }
    memo |= {id(buffer): torch.empty_like(buffer, device="meta") for buffer in model.buffers()}
    return copy.deepcopy(model, memo)


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

    volume, image = like.new_empty(1, 1, *volume_shape), like.new_empty(1, tokens, width, requires_grad=True)
    words, sentences = (like.new_empty(1, length, width, requires_grad=True) for length in (report.tokens, count))
    mask = torch.ones(1, count, dtype=torch.bool, device="meta")
    if model.objectives - {"mim"}:
        yield "volume encoder", 1, True, lambda: model.encode_volume(volume)
    if active({"mim"}):  # a vision transformer leaves masked patches out
        patch_mask = torch.empty(1, *model.grid, dtype=torch.bool, device="meta")
        yield "volume encoder, masked", 1, True, lambda: model.encode_volume(volume, patch_mask)
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


def attention_backward_traffic(encoder: SwinEncoder, volume_shape: Sequence[int], batch: int) -> dict[str, int]:
    """Operator -> bytes that the backward passes of all window attentions of a batch read and write on a GPU, in bfloat16.

    Counted on the meta device with the path `FUSED`; what caches save is not considered.
    """
    traffic: Counter[str] = Counter()
    shape = [-(-side // step) for side, step in zip(volume_shape, encoder.patch_size, strict=True)]
    for stage in (*encoder.layers1, *encoder.layers2, *encoder.layers3, *encoder.layers4):
        for block in stage.blocks:
            window, shift = clip_window(shape, block.window_size, block.shift_size)
            plan = plan_windows(batch, tuple(shape), window, shift=shift, device=torch.device("meta"))
            width, size, heads = block.dim, plan.size, block.num_heads
            shapes = ((width,), (width,), (3 * width, width), (3 * width,), (heads, size, size))
            learned = Parameters(*(torch.empty(shape, device="meta") for shape in shapes))
            learned = learned._replace(weight=learned.weight.bfloat16(), weight_bias=learned.weight_bias.bfloat16())
            features = torch.empty(batch, *shape, width, device="meta", dtype=torch.bfloat16)
            with _Counter() as counter:
                window_gradients(features, features, learned, plan, path=FUSED, eps=block.norm1.eps)
            for operation in counter.operations:
                traffic[operation.name] += operation.bytes
        shape = [-(-side // 2) for side in shape]
    return dict(traffic.most_common())
