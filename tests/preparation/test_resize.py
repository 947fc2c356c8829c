import numpy as np
import pytest
import torch
from small_raw import chest

from mg3d.preparation import resize


def slow_axis(values, after):
    """Antialiased linear resize of one axis, one sample at a time."""
    before = len(values)
    scale = before / after
    result = []
    for k in range(after):
        center, width = (k + 0.5) * scale, max(scale, 1.0)
        pairs = [(max(0.0, 1 - abs(j + 0.5 - center) / width), values[j]) for j in range(before)]
        result.append(sum(w * v for w, v in pairs) / sum(w for w, _ in pairs))
    return np.array(result)


def test_resize_equals_a_slow_loop():
    volume = chest()[:, ::-1]
    expected = volume.astype(np.float64).clip(-900, 500) * 1.0
    for axis, after in enumerate((8, 30, 17)):
        expected = np.apply_along_axis(slow_axis, axis, expected, after)
    found = resize.resize(volume, (8, 30, 17), limits=(-900, 500))
    assert found.shape == (8, 30, 17)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-3)


def test_resize_weights_agree_with_torch_in_two_dimensions():
    plane = torch.rand(1, 1, 37, 50, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(plane, size=(12, 80), mode="bilinear", antialias=True)
    found = resize.resize_weights(37, 12) @ plane[0, 0] @ resize.resize_weights(50, 80).T
    torch.testing.assert_close(found, expected[0, 0], atol=1e-5, rtol=0)


def test_resize_scales_before_it_clips():
    volume = np.array([0.0, 4000.0]).reshape(1, 1, 2)
    found = resize.resize(volume, (1, 1, 1), scale=(1.0, -1024.0), limits=(-1024, 1000))
    assert found.item() == pytest.approx((-1024 + 1000) / 2)


@pytest.mark.parametrize("shape", [(8, 30, 17), (26, 5, 60), (1, 22, 3)])
def test_trilinear_resize_equals_torch(shape):
    volume = chest()[:, ::-1]
    found = resize.resize(volume, shape, limits=(-900, 500), kernel="trilinear")
    clipped = torch.from_numpy(volume.astype(np.float32)).clamp(-900, 500)
    theirs = torch.nn.functional.interpolate(clipped[None, None], size=shape, mode="trilinear", align_corners=False)
    torch.testing.assert_close(found, theirs[0, 0], atol=2e-3, rtol=0)


def test_trilinear_resize_equals_a_loop_over_the_eight_neighbors_of_each_voxel():
    volume, shape = chest().astype(np.float64).clip(-900, 500), (8, 30, 17)
    expected = np.zeros(shape)
    for target in np.ndindex(shape):
        positions = [max(0.0, (t + 0.5) * n / m - 0.5) for t, n, m in zip(target, volume.shape, shape)]
        for corner in np.ndindex(2, 2, 2):
            neighbor, weight = [], 1.0
            for position, upper, length in zip(positions, corner, volume.shape):
                neighbor.append(min(int(position) + upper, length - 1))
                weight *= position % 1 if upper else 1 - position % 1
            expected[target] += weight * volume[tuple(neighbor)]
    found = resize.resize(chest(), shape, limits=(-900, 500), kernel="trilinear")
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-3)


@pytest.mark.parametrize("kernel", ["antialias", "trilinear"])
def test_padding_equals_a_volume_padded_with_air(kernel):
    padding = ((3, 0), (0, 5), (2, 7))
    scale, limits = (1.0, -1024.0), (-1024, 1500)
    stored = chest() + 1024
    padded = np.pad(stored, padding, constant_values=24)
    expected = resize.resize(padded, (9, 31, 14), scale=scale, limits=limits, kernel=kernel)
    found = resize.resize(stored, (9, 31, 14), scale=scale, limits=limits, kernel=kernel, padding=padding)
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=0)
