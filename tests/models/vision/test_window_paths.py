"""Attention paths: CUDA's operators on fake tensors, and by value with a slow version in their place; the self-check."""

import warnings

import pytest
import torch
from small_windows import SHAPES, block_of, monais
from torch._subclasses.fake_tensor import FakeTensorMode

from mg3d.models.vision import window_paths, windows
from mg3d.models.vision.swin import _attended
from mg3d.models.vision.window_paths import FUSED, FUSED_FORWARD, PLAIN, choose_path, self_check

CPU = torch.device("cpu")


def slow_forward(query, key, value, bias, *_, **__):
    """Tensors are [windows, n, heads, d]."""
    query, key, value = (side.transpose(1, 2) for side in (query, key, value))
    logits = query @ key.mT / query.shape[-1] ** 0.5 + bias
    zero = torch.zeros(())
    return (logits.softmax(-1) @ value).transpose(1, 2).contiguous(), logits.logsumexp(-1), zero, zero, 0, 0


def slow_backward(d_out, query, key, value, bias, *_, shared_storage_dqdkdv=False, **__):
    assert shared_storage_dqdkdv
    d_out, query, key, value = (side.transpose(1, 2) for side in (d_out, query, key, value))
    scale = query.shape[-1] ** -0.5
    maps = (query @ key.mT * scale + bias).softmax(-1)
    d_maps = d_out @ value.mT
    d_logits = maps * (d_maps - (maps * d_maps).sum(-1, keepdim=True))
    gradients = d_logits @ key * scale, d_logits.mT @ query * scale, maps.mT @ d_out
    together = torch.stack([gradient.transpose(1, 2) for gradient in gradients], 2)
    return *together.unbind(2), d_logits


@pytest.fixture
def cuda_operators_on_cpu():
    library = torch.library.Library("aten", "IMPL")
    library.impl("_efficient_attention_forward", slow_forward, "CPU")
    library.impl("_efficient_attention_backward", slow_backward, "CPU")
    yield
    library._destroy()


@pytest.mark.parametrize("path", [FUSED, PLAIN], ids=lambda path: path.name)
@pytest.mark.parametrize("limits", [(1, 0, 16), (1 << 17, 1 << 17, 16), (1 << 30, 1 << 30, 1)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_path_and_every_division_into_chunks_equals_monai(monkeypatch, cuda_operators_on_cpu, path, limits, shape):
    """Single windows, some groups merged, all windows at once; padded, clipped and rolled windows."""
    monkeypatch.setattr(windows, "choose_path", lambda device, dtype: path)
    monkeypatch.setitem(windows.LIMITS, "cpu", windows.Limits(*limits))
    block = block_of(2)
    features = torch.randn(2, *shape, 12, dtype=torch.float64, requires_grad=True)
    inputs = [features, *(p for name, p in block.named_parameters() if name.startswith(("norm1", "attn")))]
    expected, found = monais(block, features), _attended(block, features)
    assert torch.allclose(found, expected, atol=1e-12)
    weight = torch.randn_like(expected)
    gradients = (torch.autograd.grad(result, inputs, weight) for result in (found, expected))
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-10)


@pytest.mark.parametrize(("merged", "launches"), [(0, [1, 1, 2, 2]), (3, [3, 3]), (6, [6])])
def test_groups_are_merged_up_to_the_limit(monkeypatch, merged, launches):
    """Two shifted axes: six windows in four groups, two of one window and two of two."""
    size, heads = 4 * 4 * 3, 5
    monkeypatch.setitem(windows.LIMITS, "cpu", windows.Limits(1 << 30, merged * heads * size**2 * 8, 1))
    plan = windows.plan_windows(1, (12, 8, 3), (4, 4, 3), shift=(2, 2, 0), device=CPU)
    chunks = list(windows._chunks(plan, torch.zeros(heads, size, size, dtype=torch.float64), 1, dtype=torch.float64))
    assert sorted(rows.stop - rows.start for rows, _ in chunks) == sorted(launches)
    assert [rows.start for rows, _ in chunks[1:]] == [rows.stop for rows, _ in chunks[:-1]]


def test_no_chunk_exceeds_the_launch_limit_of_cuda():
    plan = windows.plan_windows(3, (64, 64, 60), (2, 2, 2), shift=(0, 0, 0), device=CPU)
    bias = torch.zeros(4, 8, 8, device="meta")
    counts = [rows.stop - rows.start for rows, _ in windows._chunks(plan, bias, 1, dtype=torch.float32)]
    assert sum(counts) == 3 * 32 * 32 * 30
    assert max(counts) * 4 <= 65_535 < 2 * max(counts) * 4


@pytest.mark.parametrize("shape", [(21, 13, 16), (6, 8, 8)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_cuda_operators_accept_shapes_and_types_of_a_layer(monkeypatch, shape, dtype):
    """On fake CUDA tensors: padded and shifted windows of 7 x 7 x 7, in several chunks with shared and own biases."""
    sides, shift = windows.clip_window(shape, (7, 7, 7), (3, 3, 3))
    plan = windows.plan_windows(2, shape, sides, shift=shift, device=CPU)
    heads, channels, size = 3, 48, plan.size
    calls = []
    monkeypatch.setattr(windows, "GPU_LIMITS", windows.Limits(20 * heads * size**2, 4 * heads * size**2 * dtype.itemsize, 16))
    noting = FUSED._replace(forward=lambda qkv, bias: calls.append(bias.stride()) or FUSED.forward(qkv, bias))
    monkeypatch.setattr(windows, "choose_path", lambda *_: noting)
    with FakeTensorMode(allow_non_fake_inputs=True):
        groups = tuple(group._replace(mask=None if group.mask is None else group.mask.to("cuda")) for group in plan.groups)
        indices = {name: getattr(plan, name).to("cuda") for name in ("gather", "scatter", "absent")}
        fake = plan._replace(**indices, groups=groups)
        monkeypatch.setattr(windows, "_plan", lambda *_: fake)
        features = torch.empty(2, *shape, channels, device="cuda")
        norm, norm_bias = torch.empty(channels, device="cuda"), torch.empty(channels, device="cuda")
        weight = torch.empty(3 * channels, channels, device="cuda", dtype=dtype)
        weight_bias, bias = torch.empty(3 * channels, device="cuda", dtype=dtype), torch.empty(heads, size, size, device="cuda")
        parameters, options = [norm, norm_bias, weight, weight_bias, bias], {"window": sides, "shift": shift, "eps": 1e-5}
        out = windows.attend(features, parameters, **options)
        found = windows.attend_backward(out, features, parameters, **options)
    assert (out.shape, out.dtype, out.device.type) == (features.shape, dtype, "cuda")
    for gradient, tensor in zip(found, [features, *parameters], strict=True):
        assert (gradient.shape, gradient.dtype, gradient.device) == (tensor.shape, tensor.dtype, tensor.device)
    assert all(stride % 16 == 0 for strides in calls for stride in strides[:-1])
    assert all(strides[-1] == 1 for strides in calls)


def raising(*_):
    raise NotImplementedError("no kernel for sm_10\nsecond line")


def without_bias(qkv, bias):
    return FUSED.forward(qkv, torch.zeros_like(bias))


def with_nan(qkv, d_out, bias, d_bias):
    d_bias[0, 0, 0] = torch.nan
    return PLAIN.backward(qkv, d_out, bias, d_bias)


def with_halved_bias_gradient(qkv, d_out, bias, d_bias):
    gradient = PLAIN.backward(qkv, d_out, bias, d_bias)
    d_bias *= 0.5
    return gradient


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"forward": raising}, "no kernel for sm_10$"),
        ({"forward": without_bias}, "largest error 0.89 "),
        ({"backward": with_nan}, "largest error nan "),
        ({"backward": with_halved_bias_gradient}, "largest error 0.5 "),
    ],
    ids=["exception", "wrong output", "NaN", "wrong gradient of the bias"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_broken_path_is_left_out_with_one_warning(broken, reason, dtype):
    planted = PLAIN._replace(name="planted", **broken)
    with pytest.warns(UserWarning, match=f"'planted': {reason}") as warned:
        assert self_check(CPU, dtype, (planted, PLAIN)) is PLAIN
    assert len(warned) == 1
    with pytest.raises(RuntimeError, match=r"wrong results on cpu.*planted"):
        self_check(CPU, dtype, (planted,))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_correct_paths_pass_and_the_fastest_is_chosen(monkeypatch, dtype):
    seconds = {"fast": 1.0, "slow": 2.0}
    monkeypatch.setattr(window_paths, "_seconds", lambda path, *_: seconds[path.name])
    paths = PLAIN._replace(name="slow"), FUSED_FORWARD._replace(name="fast")
    with warnings.catch_warnings(), torch.autocast("cpu", torch.bfloat16):
        warnings.simplefilter("error")
        assert self_check(CPU, dtype, paths).name == "fast"


def test_the_self_check_draws_nothing_from_the_generator_of_training():
    before = torch.random.get_rng_state()
    self_check(CPU, torch.float32, (PLAIN,))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_only_cuda_is_checked_once_per_device_and_precision(monkeypatch):
    checked = []

    def check(device, dtype, paths):
        checked.append((device.index, dtype, [path.name for path in paths]))
        return paths[0]

    monkeypatch.setattr(window_paths, "self_check", check)
    choose_path.cache_clear()
    assert choose_path(CPU, torch.float64) is FUSED_FORWARD
    for dtype in (torch.bfloat16, torch.bfloat16, torch.float32):
        assert choose_path(torch.device("cuda", 1), dtype) is FUSED
    choose_path.cache_clear()
    names = [FUSED.name, FUSED_FORWARD.name, PLAIN.name]
    assert checked == [(1, torch.bfloat16, names), (1, torch.float32, names)]
