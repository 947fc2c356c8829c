"""Arrays of Rad-ChestCT and of CT-CLIP: axes, scale and refusals."""

import zipfile

import numpy as np
import pytest
from numpy.lib import format as npy
from small_raw import SHAPE, chest, volume_record

from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.readers.npz import read_array, read_ct_clip, read_rad_chestct

RECORD = volume_record("Muster.npz", reader="rad_chestct")


def read(reader, root, save=np.savez_compressed, **arrays):
    save(root / "Muster.npz", **arrays)
    return reader(RECORD, root)


def refusal(reader, root, **arrays):
    with pytest.raises(Refusal) as caught:
        read(reader, root, **arrays)
    assert "Muster" not in str(caught.value)
    return caught.value.code


def as_rad_chestct(hu):
    """int16 HU cut to -1000..1000, slices from superior to inferior."""
    return hu.clip(-1000, 1000)[::-1].astype(np.int16)


def as_ct_clip(hu):
    """float32 [z, x, y], HU / 1000 cut to -1..1."""
    return (hu.transpose(0, 2, 1) / 1000).clip(-1, 1).astype(np.float32)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_rad_chestct_is_flipped_to_inferior_first(tmp_path, save, order):
    found = read(read_rad_chestct, tmp_path, save, ct=np.asarray(as_rad_chestct(chest(7)), order=order), extra=np.zeros(3))
    np.testing.assert_array_equal(found.voxels, chest(7).clip(-1000, 1000))
    assert found[1:] == ((0.8, 0.8, 0.8), "already_hu", (1.0, 0.0), (("short", "21 mm"),), None)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_ct_clip_is_transposed_and_rescaled_to_hu(tmp_path, save):
    found = read(read_ct_clip, tmp_path, save, arr_0=as_ct_clip(chest(7)))
    assert found.voxels.shape == SHAPE
    np.testing.assert_allclose(found.voxels * found.scale[0] + found.scale[1], chest(7).clip(-1000, 1000), atol=1e-3)
    assert found[1:] == ((1.5, 0.75, 0.75), "ct_clip", (1000.0, 0.0), (("short", "39 mm"),), None)


def test_two_voxels_of_each_format_are_read_where_their_axes_say(tmp_path):
    """SHAPE is 26 x 22 x 24. Rad-ChestCT is stored [z from superior, y, x], CT-CLIP [z from inferior, x, y]."""
    ct, arr_0 = as_rad_chestct(chest(7)), as_ct_clip(chest(7))
    ct[0, 3, 20], ct[2, 15, 1] = 711, 722
    arr_0[25, 20, 3], arr_0[23, 1, 15] = 0.711, 0.722
    for found in (read(read_rad_chestct, tmp_path, ct=ct), read(read_ct_clip, tmp_path, arr_0=arr_0)):
        hu = found.voxels * found.scale[0] + found.scale[1]
        assert (hu[25, 3, 20], hu[23, 15, 1]) == (pytest.approx(711, abs=0.01), pytest.approx(722, abs=0.01))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda v: v[0], "not_3d"),
        (lambda v: v[None], "not_3d"),
        (lambda v: v[:, :0], "not_3d"),
        (lambda v: v.astype(np.float32), "array_damaged"),
        (lambda v: v.astype(object), "array_damaged"),
        (lambda v: v[:19], "too_few_slices"),
        (lambda v: v * 0 - 1000, "constant_image"),
        (lambda v: v + np.int16(1024), "hu_ambiguous"),
        (lambda v: np.broadcast_to(v[:1, :1, :1], (1900, 2, 3)), "too_long"),
    ],
)
def test_unusable_rad_chestct_array_is_refused_with_a_reason(tmp_path, change, code):
    assert refusal(read_rad_chestct, tmp_path, ct=change(as_rad_chestct(chest(7)))) == code


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda v: v * 1000, "hu_ambiguous"),
        (lambda v: (v - 1.024).clip(-1, 1), "hu_ambiguous"),
        (lambda v: np.where(v > 0.2, np.nan, v), "hu_ambiguous"),
        (lambda v: v / 2 + 0.5, "hu_ambiguous"),
        (lambda v: v * 0, "constant_image"),
        (lambda v: v[:19], "too_few_slices"),
        (lambda v: v.astype(np.int16), "array_damaged"),
    ],
)
def test_unusable_ct_clip_array_is_refused_with_a_reason(tmp_path, change, code):
    assert refusal(read_ct_clip, tmp_path, arr_0=change(as_ct_clip(chest(7)))) == code


def test_missing_file_and_missing_key_are_refused(tmp_path):
    with pytest.raises(Refusal, match="missing_file"):
        read_rad_chestct(RECORD, tmp_path)
    assert refusal(read_rad_chestct, tmp_path, arr_0=as_rad_chestct(chest(7))) == "array_damaged"


@pytest.mark.parametrize("shape", [(20_000,) * 3, (1200, 500, 600), (2, 3, 4)])
def test_header_with_another_size_than_the_data_is_refused(tmp_path, shape):
    header = {"descr": "<i2", "fortran_order": False, "shape": shape}
    with zipfile.ZipFile(tmp_path / "Muster.npz", "w") as archive, archive.open("ct.npy", "w") as stream:
        npy.write_array_header_1_0(stream, header)
        stream.write(bytes(100))
    with pytest.raises(Refusal, match="array_damaged"):
        read_rad_chestct(RECORD, tmp_path)


def test_header_with_an_open_bracket_is_refused(tmp_path):
    np.savez(tmp_path / "Muster.npz", ct=as_rad_chestct(chest(7)))
    with zipfile.ZipFile(tmp_path / "Muster.npz") as archive:
        content = archive.read("ct.npy")
    with zipfile.ZipFile(tmp_path / "Muster.npz", "w") as archive:
        archive.writestr("ct.npy", content.replace(b"), }", b" , }", 1))
    with pytest.raises(Refusal, match="array_damaged"):
        read_rad_chestct(RECORD, tmp_path)


def test_array_of_more_than_3_gb_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("mg3d.preparation.readers.npz.MAX_BYTES", 1000)
    assert refusal(read_rad_chestct, tmp_path, ct=as_rad_chestct(chest(7))) == "too_large"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_files_are_refused_or_read_as_the_undamaged_array(tmp_path, save):
    rng = np.random.default_rng(0)
    whole = rng.integers(-1000, 1000, (3, 4, 5), np.int16)
    path = tmp_path / "Muster.npz"
    save(path, ct=whole)
    content = np.frombuffer(path.read_bytes(), np.uint8)
    refused = 0
    for number in range(400):
        damaged = content.copy()
        # Every second time only in the headers of the archive and of the array
        positions = rng.integers(0, 170 if number % 2 else len(content), rng.integers(1, 5))
        damaged[positions] = rng.integers(0, 256, len(positions))
        path.write_bytes(damaged[: rng.integers(1, 2 * len(content))].tobytes())
        try:
            found = read_array(path, "ct", "iu")
        except Refusal:
            refused += 1
        else:
            np.testing.assert_array_equal(found, whole)
    assert refused > 100
