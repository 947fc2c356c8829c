"""Our attention within windows against MONAI's blocks, forward and backward."""

import pytest
import torch
from monai.networks.nets.swin_unetr import SwinTransformer
from saved_tensors import saved_tensors, storage_bytes
from small_windows import SHAPES, block_of, monais

from mg3d.models.vision import recompute, windows
from mg3d.models.vision.swin import LegacyPatchMerging, SwinEncoder, _attended
from mg3d.models.vision.windows import clip_window, plan_windows


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("shift", [0, 2])
def test_attention_and_its_gradients_are_monais(monkeypatch, shape, shift):
    """Padded, clipped and rolled windows, two volumes, windows taken one by one."""
    monkeypatch.setitem(windows.LIMITS, "cpu", windows.Limits(1, 0, 1))
    block = block_of(shift)
    features = torch.randn(2, *shape, 12, dtype=torch.float64, requires_grad=True)
    inputs = [features, *(p for name, p in block.named_parameters() if name.startswith(("norm1", "attn")))]
    wanted, found = monais(block, features), _attended(block, features)
    assert torch.allclose(found, wanted, atol=1e-12)
    weight = torch.randn_like(wanted)
    for ours, theirs in zip(torch.autograd.grad(found, inputs, weight), torch.autograd.grad(wanted, inputs, weight), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-10)


def test_every_token_has_one_place_and_groups_cover_all_windows():
    window, shift = clip_window((9, 5, 3), (4, 4, 4), (2, 2, 2))
    assert (window, shift) == ((4, 4, 3), (2, 2, 0))
    plan = plan_windows(2, (9, 5, 3), window, shift=shift, device=torch.device("cpu"))
    count = 2 * 9 * 5 * 3
    is_real = plan.scatter < count
    assert torch.equal(plan.scatter[is_real].sort().values, torch.arange(count))
    assert torch.equal(plan.gather, torch.where(is_real, plan.scatter, 0))
    assert torch.equal(plan.absent, (~is_real).nonzero()[:, 0])
    starts = range(0, len(plan.gather) + 1, plan.size)
    assert list(plan.absent_before) == [int((~is_real[:start]).sum()) for start in starts]
    assert [group.first for group in plan.groups[1:]] == [group.last for group in plan.groups[:-1]]
    assert plan.groups[-1].last * plan.size == len(plan.gather)


def test_windows_of_a_group_share_their_mask():
    """Counted by hand: along each shifted axis the last window is torn, so that four kinds exist for two shifted axes."""
    plan = plan_windows(1, (12, 8, 3), (4, 4, 3), shift=(2, 2, 0), device=torch.device("cpu"))
    assert sorted(group.last - group.first for group in plan.groups) == [1, 1, 2, 2]
    assert sum(group.mask is None for group in plan.groups) == 1


@pytest.mark.parametrize("size", [(48, 32, 40), (40, 24, 72)])
def test_the_whole_encoder_is_monais(size):
    torch.manual_seed(1)
    depths, heads = (2, 1, 1, 1), (2, 4, 4, 4)
    ours = SwinEncoder(depths=depths, num_heads=heads, embed_dim=8, window_size=4)
    theirs = SwinTransformer(1, 8, (4, 4, 4), (2, 2, 2), depths, heads, downsample=LegacyPatchMerging)
    theirs.load_state_dict(ours.state_dict())
    volume = torch.rand(2, 1, *size)
    for mine, monai in zip(ours(volume), theirs(volume), strict=True):
        assert torch.allclose(mine, monai, atol=2e-5)


@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_what_is_computed_again_gives_the_gradients_of_what_is_kept(monkeypatch, chunk):
    monkeypatch.setitem(recompute.CHUNK_BYTES, "cpu", chunk)
    torch.manual_seed(0)
    layers = (torch.nn.LayerNorm(6), torch.nn.Linear(6, 10), torch.nn.GELU(), torch.nn.Linear(10, 6))
    for layer in layers:
        layer.double()
    tokens = torch.randn(3, 5, 6, dtype=torch.float64, requires_grad=True)
    inputs = [tokens, *(p for layer in layers for p in layer.parameters())]
    plain = tokens
    for layer in layers:
        plain = layer(plain)
    again = recompute.per_token(layers, tokens, widest=10)
    weight = torch.randn_like(plain)
    assert torch.allclose(again, plain, atol=1e-14)
    for ours, theirs in zip(torch.autograd.grad(again, inputs, weight), torch.autograd.grad(plain, inputs, weight), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)


def test_recomputing_the_attention_too_changes_no_gradient():
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(2)
        sizes = {"depths": (2,), "num_heads": (2,), "embed_dim": 8, "window_size": 4}
        encoder = SwinEncoder(**sizes, gradient_checkpointing=checkpointing).double()
        encoder(torch.rand(1, 1, 12, 20, 28, dtype=torch.float64))[-1].square().sum().backward()
        found.append([parameter.grad for parameter in encoder.parameters()])
    assert all(torch.allclose(one, other, atol=1e-13) for one, other in zip(*found, strict=True))


def test_a_block_keeps_three_maps_of_tokens():
    """Tokens before and after the attention and what it gave; the rest of the stage is the embedding and the merging."""
    sizes = []
    for depth in (1, 3):
        encoder = SwinEncoder(depths=(depth,), num_heads=(1,), embed_dim=32, window_size=2)
        with saved_tensors() as saved:
            encoder.encode(torch.rand(1, 1, 32, 24, 40))
        sizes.append(storage_bytes(saved))
    one_map = 16 * 12 * 20 * 32 * 4
    assert 6 <= (sizes[1] - sizes[0]) / one_map < 6.1


def compiled_beside_eager(dtype, backend, **how):
    """Largest differences of maps and gradients, and the number of graphs."""
    torch.manual_seed(4)
    torch._dynamo.reset()
    encoder = SwinEncoder(depths=(2, 1), num_heads=(2, 4), embed_dim=8, window_size=3, mask_token=True, **how).to(dtype)
    volume, mask = torch.rand(2, 1, 16, 20, 12, dtype=dtype), torch.rand(2, 4, 5, 3) < 0.5
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    maps = [encode(volume, mask) for encode in (encoder.encode, torch.compile(encoder.encode, fullgraph=True, backend=backend))]
    weight = torch.randn_like(maps[0])
    gradients = [torch.autograd.grad(found, list(encoder.parameters()), weight) for found in maps]
    gap = max(float((one - other).abs().max()) for one, other in zip(*gradients, strict=True))
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"] - before
    return float((maps[0] - maps[1]).detach().abs().max()), gap, graphs


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_encoder_compiles_as_one_graph(checkpointing):
    forward, backward, graphs = compiled_beside_eager(torch.float64, "aot_eager", gradient_checkpointing=checkpointing)
    assert forward < 1e-12
    assert backward < 1e-12
    assert graphs == 1


@pytest.mark.slow
def test_the_encoder_compiled_to_machine_code_is_the_eager_one():
    forward, backward, graphs = compiled_beside_eager(torch.float32, "inductor")
    assert forward < 1e-5
    assert backward < 1e-3
    assert graphs == 1


def test_a_frozen_block_passes_its_gradient_on():
    encoder = SwinEncoder(depths=(1,), num_heads=(2,), embed_dim=8, window_size=4)
    encoder.layers1.requires_grad_(False)
    encoder.encode(torch.rand(1, 1, 12, 8, 16)).square().sum().backward()
    assert encoder.patch_embed.proj.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in encoder.layers1.parameters())


def test_mixed_precision_stays_near_full_precision():
    torch.manual_seed(3)
    encoder = SwinEncoder(depths=(2,), num_heads=(2,), embed_dim=16, window_size=4)
    volume = torch.rand(1, 1, 16, 24, 12)
    full = encoder.encode(volume)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = encoder.encode(volume)
    half.float().square().sum().backward()
    assert torch.allclose(full, half.float(), atol=0.15)
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.dtype == p.dtype for p in encoder.parameters())


def test_a_backward_pass_within_autocast_gives_the_gradients_of_one_after_it(monkeypatch):
    monkeypatch.setitem(recompute.CHUNK_BYTES, "cpu", 1 << 14)  # several parts
    torch.manual_seed(3)
    encoder, found = SwinEncoder(depths=(2,), num_heads=(2,), embed_dim=16, window_size=4), []
    volume = torch.rand(1, 1, 16, 24, 12)
    for within in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            total = encoder.encode(volume).float().square().sum()
            if within:
                total.backward()
        if not within:
            total.backward()
        found.append([parameter.grad for parameter in encoder.parameters()])
        encoder.zero_grad()
    for after, inside in zip(*found, strict=True):
        torch.testing.assert_close(inside, after, rtol=0.05, atol=0.05 * float(after.abs().max()))


def test_the_gradient_of_a_gradient_is_refused():
    encoder, volume = SwinEncoder(depths=(1,), num_heads=(2,), embed_dim=8, window_size=4), torch.rand(1, 1, 8, 8, 8)
    first = torch.autograd.grad(encoder.encode(volume.requires_grad_()).square().sum(), volume, create_graph=True)
    with pytest.raises(RuntimeError):
        first[0].square().sum().backward()
