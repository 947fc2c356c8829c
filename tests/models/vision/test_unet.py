import pytest
import torch
from small_vision import SHAPE, small_encoder, volumes_and_mask
from torch.nn import functional as F


def slow_pyramid(weights, volumes, *, each_alone):
    """The same pyramid from the state dict, one convolution after the other, statistics by hand."""
    maps, features = [], volumes
    for index, stage in enumerate(("down_tr64", "down_tr128", "down_tr256", "down_tr512")):
        features = features if index == 0 else F.max_pool3d(features, kernel_size=2, stride=2)
        for unit in ("0", "1"):
            conv, norm = f"{stage}.ops.{unit}.conv1", f"{stage}.ops.{unit}.bn1"
            features = F.conv3d(features, weights[f"{conv}.weight"], weights[f"{conv}.bias"], stride=1, padding=1)
            axes = (2, 3, 4) if each_alone else (0, 2, 3, 4)
            mean = features.mean(axes, keepdim=True)
            variance = ((features - mean) ** 2).mean(axes, keepdim=True)
            scale, offset = (weights[f"{norm}.{kind}"].view(1, -1, 1, 1, 1) for kind in ("weight", "bias"))
            features = ((features - mean) / (variance + 1e-5).sqrt() * scale + offset).clamp(min=0)
        maps.append(features)
    batch, channels, *sides = features.shape
    cells = [part for side in sides for part in (side // 4, 4)]
    maps.append(features.reshape(batch, channels, *cells).mean((3, 5, 7)))
    return maps


def shaken(name):
    """An encoder in float64 whose norms are not the identity."""
    encoder = small_encoder(name).double()
    with torch.no_grad():
        for parameter_name, parameter in encoder.named_parameters():
            if ".bn1." in parameter_name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return encoder


@pytest.mark.parametrize("name", ["unet", "unet instance"])
def test_the_encoder_is_its_slow_version(name):
    encoder, (volumes, _) = shaken(name).eval(), volumes_and_mask(3)
    with torch.no_grad():
        fast = encoder(volumes.double())
        slow = slow_pyramid(encoder.state_dict(), volumes.double(), each_alone=name.endswith("instance"))
    assert len(fast) == len(slow) == 5
    for ours, theirs in zip(fast, slow, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_fifth_map_is_the_mean_of_4_x_4_x_4_cells():
    encoder = small_encoder("unet").eval()
    with torch.no_grad():
        *_, fourth, fifth = encoder(torch.rand(1, 1, *SHAPE))
    torch.testing.assert_close(fifth[0, 3, 0, 1, 2], fourth[0, 3, 0:4, 4:8, 8:12].mean())


def test_evaluation_and_training_give_equal_features_and_leave_the_running_statistics():
    encoder, (volumes, _) = small_encoder("unet"), volumes_and_mask()
    before = {name: tensor.clone() for name, tensor in encoder.named_buffers()}
    with torch.no_grad():
        torch.testing.assert_close(encoder.train().encode(volumes), encoder.eval().encode(volumes), rtol=0, atol=0)
        for name, tensor in encoder.named_buffers():
            assert torch.equal(tensor, before[name]), name
            tensor.fill_(7)
        changed = encoder.encode(volumes)
        for name, tensor in encoder.named_buffers():
            tensor.copy_(before[name])
        torch.testing.assert_close(changed, encoder.encode(volumes), rtol=0, atol=0)


def test_only_batch_statistics_let_the_patients_of_a_batch_change_one_another():
    batch, instance = shaken("unet").eval(), shaken("unet instance").eval()
    instance.load_state_dict(batch.state_dict())
    volumes = volumes_and_mask(2)[0].double()
    volumes[1] *= 0.2
    with torch.no_grad():
        alone, together = (encoder.encode(volumes)[:1] for encoder in (instance, batch))
        torch.testing.assert_close(alone, instance.encode(volumes[:1]))
        torch.testing.assert_close(alone, batch.encode(volumes[:1]))
        assert (together - alone).abs().max() > 1e-2


def test_other_statistics_are_refused():
    with pytest.raises(ValueError, match="choose 'batch' or 'instance'"):
        small_encoder("unet", norm_statistics="running")
