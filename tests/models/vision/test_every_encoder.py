"""What every encoder behind the registry must do."""

import math
from functools import cache

import pytest
import torch
from released_keys import released_keys
from saved_tensors import saved_tensors
from small_vision import SHAPE, SMALL, small_encoder, volumes_and_mask

from mg3d.config import resolve
from mg3d.models.build import build_vision
from mg3d.models.vision.masking import upsample_mask
from mg3d.models.vision.registry import VISION_ENCODERS, build_vision_encoder
from mg3d.settings.encoders import ENCODERS, unread
from mg3d.settings.schema import volume_shape
from mg3d.training.optim import parameter_groups

EVERY = pytest.mark.parametrize("name", SMALL)
PUBLISHED = {  # preset -> (parameters in millions, strides, channels of the pyramid, channels of encode)
    "swin_b": (8.06, (2, 4, 8, 16, 32), (48, 96, 192, 384, 768), 768),
    "swin_l": (33.95, (2, 4, 8, 16, 32), (96, 192, 384, 768, 1536), 768),
    "swin_l_unprojected": (31.59, (2, 4, 8, 16, 32), (96, 192, 384, 768, 1536), 1536),
    "unet": (15.8, (1, 2, 4, 8, 32), (96, 192, 384, 768, 768), 768),
    "nnunet": (None, (2, 4, 8, 16, 32), (48, 96, 192, 384, 768), 768),
}


@cache
def published(preset):
    """The encoder of this preset on the meta device."""
    return build_vision(resolve([preset], {"weight_mim": 0.0})).to("meta")


@EVERY
def test_the_pyramid_has_maps_of_the_channels_and_strides_it_declares(name):
    encoder, (levels, stride) = small_encoder(name).eval(), (4, 8) if name == "vit" else (5, 32)
    volume, _ = volumes_and_mask()
    with torch.no_grad():
        maps, last = encoder(volume), encoder.encode(volume)
    assert len(maps) == len(encoder.pyramid_channels) == len(encoder.pyramid_strides) == levels
    for features, channels, steps in zip(maps, encoder.pyramid_channels, encoder.pyramid_strides, strict=True):
        assert features.shape == (2, channels, *(side // step for side, step in zip(SHAPE, steps, strict=True)))
    assert last.shape == (2, encoder.channels, *encoder.grid(SHAPE)) == (2, encoder.channels, *(n // stride for n in SHAPE))
    assert encoder.stride == encoder.pyramid_strides[-1] == (stride,) * 3
    if encoder.channels == encoder.pyramid_channels[-1]:
        torch.testing.assert_close(last, maps[-1], rtol=0, atol=0)


@EVERY
def test_the_grid_of_a_volume_that_does_not_divide_is_the_one_computed(name):
    encoder, shape = small_encoder(name).eval(), (35, 64, 95)
    with torch.no_grad():
        assert encoder.encode(torch.rand(1, 1, *shape)).shape[2:] == encoder.grid(shape)


@pytest.mark.parametrize("preset", PUBLISHED)
def test_published_sizes_give_48_tokens_and_have_the_published_number_of_parameters(preset):
    millions, strides, pyramid, channels = PUBLISHED[preset]
    encoder = published(preset)
    assert encoder.pyramid_channels == pyramid
    assert encoder.pyramid_strides == tuple((side,) * 3 for side in strides)
    maps = encoder(torch.empty(1, 1, 128, 96, 128, device="meta"))  # shapes only
    assert [tuple(features.shape[1:]) for features in maps] == [
        (width, 128 // side, 96 // side, 128 // side) for width, side in zip(pyramid, strides, strict=True)
    ]
    assert encoder.encode(torch.empty(1, 1, 128, 96, 128, device="meta")).shape == (1, channels, 4, 3, 4)
    assert math.prod(encoder.grid((128, 96, 128))) == 48
    if millions is not None:
        assert sum(parameter.numel() for parameter in encoder.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize(
    ("preset", "stem"),
    [("swin_b", "vision_swinb"), ("vit3d16", "vision_swinb"), ("swin_l_unprojected", "vision_swinl"),
     ("swin_l", "vision_swinl_with_projhead"), ("unet", "vision_unet")],
)  # fmt: skip
def test_names_and_shapes_are_those_of_the_released_weights(preset, stem):
    ours = {name: tuple(tensor.shape) for name, tensor in published(preset).state_dict().items()}
    assert ours == released_keys(stem, without="vision_encoder.")


@pytest.mark.parametrize(
    ("presets", "updates"),
    [([preset], {}) for preset in (*PUBLISHED, "tiny", "vit3d16", "vit_b")]
    + [(["swin_b"], {"patch_size": 4, "depths": [1, 1, 1], "num_heads": [2, 2, 2]}), (["tiny", "nnunet"], {"image_size": 128})]
    + [(["vit_b"], {"patch_size": [8, 16, 16]})],
)
def test_settings_know_the_geometry_of_the_encoder_they_build(presets, updates):
    settings = resolve(presets, updates)
    encoder = build_vision(settings)
    row = ENCODERS[settings.vision.vision_encoder]
    assert tuple(encoder.patch_size) == row.patch_size(settings.vision)
    assert encoder.stride == row.stride(settings.vision)
    assert all(side % step == 0 for side, step in zip(volume_shape(settings.data.image_size), encoder.stride, strict=True))


def test_every_kind_has_a_row_in_the_settings_and_every_setting_a_reader():
    assert ENCODERS.keys() == VISION_ENCODERS.keys()
    unread_by_all = set.intersection(*(set(unread(resolve([], {"vision_encoder": kind}).vision)) for kind in ENCODERS))
    assert not unread_by_all


@EVERY
def test_masked_voxels_do_not_matter_and_visible_ones_do(name):
    encoder = small_encoder(name).eval()
    volume, mask = volumes_and_mask(1)
    voxel_mask = upsample_mask(mask, SHAPE)[:, None]
    inside, outside = (torch.where(where, 1 - volume, volume) for where in (voxel_mask, ~voxel_mask))
    with torch.no_grad():
        true, same, other = (encoder(one, mask) for one in (volume, inside, outside))
        for ours, equal, different in zip(true, same, other, strict=True):
            torch.testing.assert_close(ours, equal, rtol=0, atol=0)
            assert (ours - different).abs().max() > 1e-2
        torch.testing.assert_close(encoder.encode(volume, mask), encoder.encode(inside, mask), rtol=0, atol=0)
        assert (encoder.encode(volume) - encoder.encode(inside)).abs().max() > 1e-2


@EVERY
def test_an_empty_mask_changes_nothing_and_the_mask_token_matters(name):
    encoder = small_encoder(name).eval()
    volume, mask = volumes_and_mask(1)
    with torch.no_grad():
        torch.testing.assert_close(encoder.encode(volume, torch.zeros_like(mask)), encoder.encode(volume), rtol=0, atol=0)
        before = encoder.encode(volume, mask)
        encoder.mask_token[0] += 0.5  # of one channel: the same step in all would leave Swin's first norm as it was
        assert (encoder.encode(volume, mask) - before).abs().max() > 1e-3


@EVERY
def test_an_untrained_encoder_distinguishes_masked_patches_from_air(name):
    """Air has intensity 0. In a volume of air alone, masked patches still change the features."""
    encoder = small_encoder(name).eval()
    air, mask = torch.zeros(1, 1, *SHAPE), volumes_and_mask(1)[1]
    with torch.no_grad():
        for plain, masked in zip(encoder(air), encoder(air, mask), strict=True):
            assert (plain - masked).abs().max() > 1e-2
    if encoder.mask_token.numel() == 1:  # an intensity: below every other
        assert encoder.mask_token.item() < 0


@EVERY
def test_a_mask_without_a_mask_token_is_refused(name):
    volume, mask = volumes_and_mask(1)
    with pytest.raises(ValueError, match="mask_token=True"):
        small_encoder(name, mask_token=False).encode(volume, mask)


@EVERY
def test_the_gradient_of_the_last_map_reaches_every_parameter(name):
    encoder = small_encoder(name, **({"pyramid": False} if name == "vit" else {}))
    features = encoder.encode(*volumes_and_mask(1))
    features.backward(torch.randn(features.shape, generator=torch.Generator().manual_seed(1)))
    for parameter_name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, parameter_name
        if parameter.ndim > 1 or parameter_name.endswith("mask_token"):
            assert parameter.grad.abs().max() > 0, parameter_name


@EVERY
def test_checkpointing_gives_equal_gradients_and_saves_less(name):
    volume, mask = volumes_and_mask(1)
    gradients, values = [], []
    for checkpointing in (False, True):
        encoder = small_encoder(name, gradient_checkpointing=checkpointing)
        with saved_tensors() as saved:
            features = encoder.encode(volume, mask)
        features.square().sum().backward()
        gradients.append([parameter.grad for parameter in encoder.parameters()])
        values.append(sum(tensor.numel() for tensor in saved if tensor.data_ptr() != volume.data_ptr()))
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)
    # Swin has one block per stage here: three maps and those of the merging against one map, those of the merging and the bias.
    assert values[1] < (0.6 if name.startswith("swin") else 0.5) * values[0]


@pytest.mark.parametrize("name", ["unet", "unet instance", "nnunet"])
def test_half_precision_gives_nearly_the_same_features(name):
    encoder = small_encoder(name).eval()
    volume, mask = volumes_and_mask(1)
    with torch.no_grad():
        exact = encoder.encode(volume, mask)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = encoder.encode(volume, mask)
    assert torch.nn.functional.cosine_similarity(rough.float(), exact, dim=1).min() > 0.98


@EVERY
def test_decay_is_for_kernels_and_matrices_only(name):
    model = torch.nn.ModuleDict({"vision": small_encoder(name)})
    groups = {group["name"]: group["params"] for group in parameter_groups(model, resolve([], {}).optim)}
    assert groups.keys() == {"encoders", "encoders_no_decay"}  # all at the base rate
    decayed = {id(parameter) for parameter in groups["encoders"]}
    layers = (torch.nn.Conv3d, torch.nn.ConvTranspose3d, torch.nn.Linear)
    assert decayed == {id(module.weight) for module in model.modules() if isinstance(module, layers)}
    assert sum(map(len, groups.values())) == len(list(model.parameters()))


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'resnet' is unknown; choose one of \['nnunet', 'swin', 'unet', 'vit'\]"):
        build_vision_encoder("resnet")
