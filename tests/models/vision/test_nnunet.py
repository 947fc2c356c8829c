import math

import pytest
import torch
from monai.networks.nets import DynUNet
from small_vision import small_encoder, volumes_and_mask
from torch.nn import functional as F


def norm(features, weights, name):
    mean, variance = features.mean((2, 3, 4), keepdim=True), features.var((2, 3, 4), unbiased=False, keepdim=True)
    scale, offset = (weights[f"{name}.{kind}"].view(1, -1, 1, 1, 1) for kind in ("weight", "bias"))
    return (features - mean) / (variance + 1e-5).sqrt() * scale + offset


def leak(features):
    return torch.where(features > 0, features, features * 0.01)


def slow_pyramid(weights, volumes):
    """The same pyramid from the state dict: conv, norm, leak, conv, norm, plus the (projected) input, leak."""
    maps, features = [], volumes
    for block, stride in (("input_block", 1), *((f"downsamples.{level}", 2) for level in range(4)), ("bottleneck", 2)):
        inner = F.conv3d(features, weights[f"{block}.conv1.conv.weight"], stride=stride, padding=1)
        inner = F.conv3d(leak(norm(inner, weights, f"{block}.norm1")), weights[f"{block}.conv2.conv.weight"], padding=1)
        straight = F.conv3d(features, weights[f"{block}.conv3.conv.weight"], stride=stride)
        features = leak(norm(inner, weights, f"{block}.norm2") + norm(straight, weights, f"{block}.norm3"))
        maps.append(features)
    return maps[1:]


def test_the_encoder_is_its_slow_version():
    encoder, volumes = small_encoder("nnunet").double().eval(), volumes_and_mask()[0].double()
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if ".norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
        for ours, theirs in zip(encoder(volumes), slow_pyramid(encoder.state_dict(), volumes), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_names_and_shapes_are_those_of_the_encoder_half_of_monais_dynunet():
    encoder = small_encoder("nnunet", mask_token=False)
    whole = DynUNet(
        spatial_dims=3, in_channels=1, out_channels=1, kernel_size=[3] * 6, strides=[1, 2, 2, 2, 2, 2],
        upsample_kernel_size=[2] * 5, filters=[2, 4, 8, 16, 32, 64], res_block=True,
    ).state_dict()  # fmt: skip
    half = {name: tensor.shape for name, tensor in whole.items() if name.startswith(("input_block", "downsamples", "bottleneck"))}
    assert {name: tensor.shape for name, tensor in encoder.state_dict().items()} == half


def test_patients_of_a_batch_do_not_change_one_another():
    encoder, volumes = small_encoder("nnunet").double().eval(), volumes_and_mask()[0].double()
    with torch.no_grad():
        torch.testing.assert_close(encoder.encode(volumes)[1:], encoder.encode(volumes[1:]))


def test_an_odd_width_is_refused():
    with pytest.raises(ValueError, match="embed_dim=5 must be even"):
        small_encoder("nnunet", embed_dim=5)


def test_kernels_begin_with_the_deviation_that_keeps_the_size_of_what_a_leaky_relu_lets_through():
    """sqrt(2 / (1 + 0.01 ** 2)) over the root of a kernel's inputs; PyTorch's own start is uniform and 2.4 times smaller."""
    encoder = small_encoder("nnunet", embed_dim=8)
    kernels = [module.weight for module in encoder.modules() if isinstance(module, torch.nn.Conv3d)]
    assert len(kernels) == 18
    scaled = torch.cat([kernel.detach().flatten() * math.sqrt(kernel[0].numel()) for kernel in kernels])
    assert scaled.std().item() == pytest.approx(math.sqrt(2 / (1 + 0.01**2)), rel=0.02)
    assert scaled.abs().max() > 4  # a normal distribution, not a uniform one
