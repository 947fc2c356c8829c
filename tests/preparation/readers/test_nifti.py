"""Damaged and inconsistent NIfTI files are refused with a reason, or read as the undamaged volume."""

import gzip
import itertools
import struct
import tracemalloc
from collections import Counter
from functools import cache

import nibabel as nib
import numpy as np
import pytest
from small_raw import LPS, SHAPE, chest, volume_record

from mg3d.preparation.quarantine import REASONS, Refusal
from mg3d.preparation.readers import nifti
from mg3d.preparation.recipe import Recipe
from mg3d.preparation.records import TableGeometry
from mg3d.preparation.voxels import make_volume

RECIPE = Recipe(shape=(32, 24, 16))
VOXELS = 352


def make(path):
    return make_volume(volume_record(path.name, reader="nifti"), path.parent, RECIPE)[0]


def code_of(path):
    """The code of the refusal, whose detail contains no file name."""
    with pytest.raises(Refusal) as caught:
        make(path)
    assert path.name not in caught.value.detail
    return caught.value.code


@cache
def plain():
    """Bytes of a valid `.nii` file."""
    return nib.Nifti1Image(chest(3).transpose(2, 1, 0), LPS).to_bytes()


def with_field(offset, form, *values):
    content = bytearray(plain())
    struct.pack_into(form, content, offset, *values)
    return bytes(content)


def flip_bits(content, rng):
    array = np.frombuffer(content, np.uint8).copy()
    positions = rng.integers(0, len(array), rng.integers(1, 9))
    array[positions] ^= (1 << rng.integers(0, 8, len(positions))).astype(np.uint8)
    return array.tobytes()


def cut(content, rng):
    return content[: rng.integers(0, len(content))]


def zero_block(content, rng):
    start = rng.integers(0, len(content))
    length = min(int(rng.integers(1, 513)), len(content) - start)
    return content[:start] + bytes(length) + content[start + length :]


def insert_bytes(content, rng):
    position = rng.integers(0, len(content))
    return content[:position] + rng.bytes(rng.integers(1, 65)) + content[position:]


def garble_header(content, rng):
    position = rng.integers(0, VOXELS)
    return content[:position] + rng.bytes(rng.integers(1, 9)) + content[position + 8 :]


def corrupt_until(count, folder):
    """Corrupt a file `count` times: counts of reason codes, of `clean`, and of `unseen` (no checksum, so undetectable)."""
    rng, seen = np.random.default_rng(20), Counter()
    (folder / "clean.nii").write_bytes(plain())
    clean = make(folder / "clean.nii")
    kinds = (flip_bits, cut, zero_block, insert_bytes)
    ways = [*((kind, True) for kind in kinds), *((kind, False) for kind in kinds), (garble_header, False), (garble_header, None)]
    for number, (kind, packed) in zip(range(count), itertools.cycle(ways)):
        path = folder / f"{number}.{'nii' if packed is False else 'nii.gz'}"
        damaged = kind(gzip.compress(plain(), mtime=0) if packed else plain(), rng)
        path.write_bytes(gzip.compress(damaged, 1, mtime=0) if packed is None else damaged)
        try:
            image = make(path)
        except Refusal as refusal:
            seen[refusal.code] += 1
            path.unlink()
            continue
        path.unlink()
        assert image.shape == RECIPE.shape
        assert image.dtype == np.int16
        same = np.array_equal(image, clean)
        assert same or not packed, f"{kind.__name__}, case {number}: another volume from a file with a checksum"
        seen["clean" if same else "unseen"] += 1
    return seen


def test_random_damage_ends_in_a_refusal_or_the_clean_volume(tmp_path):
    seen = corrupt_until(20, tmp_path)
    print(dict(seen))
    assert seen.total() == 20
    assert set(seen) <= {*REASONS, "clean", "unseen"}
    assert seen["gzip_truncated"] >= 4
    assert not seen["unknown"]


@pytest.mark.slow
def test_a_thousand_damaged_files_end_in_a_refusal_or_the_clean_volume(tmp_path):
    seen = corrupt_until(1000, tmp_path)
    print(dict(seen))
    assert seen.total() == 1000
    assert set(seen) <= {*REASONS, "clean", "unseen"}
    assert not seen["unknown"]


HEADERS = {
    "intercept nan": (with_field, (116, "<f", float("nan")), "nifti_header"),
    "negative length": (with_field, (42, "<h", -24), "not_3d"),
    "length 0": (with_field, (44, "<h", 0), "not_3d"),
    "no axes": (with_field, (40, "<h", 0), "not_3d"),
    "four axes": (with_field, (40, "<5h", 4, 24, 22, 13, 2), "not_3d"),
    "longer than the file": (with_field, (46, "<h", SHAPE[0] + 1), "gzip_truncated"),
    "far too large": (with_field, (42, "<3h", 4000, 4000, 4000), "too_large"),
    "too long an axis": (with_field, (42, "<3h", 4097, 3, 30), "too_large"),
    "voxels before the header ends": (with_field, (108, "<f", 100.0), "nifti_header"),
    "voxel offset nan": (with_field, (108, "<f", float("nan")), "nifti_header"),
    "voxel offset inf": (with_field, (108, "<f", float("inf")), "nifti_header"),
    "voxels far away": (with_field, (108, "<f", 1e9), "gzip_truncated"),
    "voxels behind the end": (with_field, (108, "<f", 400.0), "gzip_truncated"),
    "rgb": (with_field, (70, "<hh", 128, 24), "nifti_header"),
    "complex": (with_field, (70, "<hh", 32, 64), "nifti_header"),
    "unknown type": (with_field, (70, "<hh", 3, 16), "nifti_header"),
    "voxels in another file": (with_field, (344, "4s", b"ni1"), "nifti_header"),
    "affine nan": (with_field, (280, "<f", float("nan")), "nan_spacing"),
    "affine of zeros": (with_field, (280, "<12f", *[0.0] * 12), "nan_spacing"),
    "voxels of 4 m": (with_field, (280, "<12f", -4e3, 0, 0, 0, 0, -3e3, 0, 0, 0, 0, 5e3, 0), "spacing_out_of_range"),
    "singular affine": (with_field, (280, "<12f", -3, -3, 0, 0, 0, 0, 1, 0, 0, 0, 5, 0), "gantry_tilt"),
}


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("packed", [False, True])
def test_inconsistent_header_is_refused(tmp_path, header, packed):
    change, arguments, code = HEADERS[header]
    path = tmp_path / ("secret.nii.gz" if packed else "secret.nii")
    path.write_bytes(gzip.compress(change(*arguments)) if packed else change(*arguments))
    assert code_of(path) == code


@pytest.mark.parametrize(
    "field",
    [(112, "<ff", 0.0, 0.0), (112, "<ff", 0.0, -1024.0), (112, "<f", float("nan")), (112, "<f", float("inf")), (72, "<h", 32)],
)
def test_slope_that_is_zero_or_not_finite_means_no_scaling_and_bitpix_follows_the_datatype(tmp_path, field):
    (tmp_path / "plain.nii").write_bytes(plain())
    (tmp_path / "odd.nii").write_bytes(with_field(*field))
    np.testing.assert_array_equal(make(tmp_path / "odd.nii"), make(tmp_path / "plain.nii"))


def test_scaling_of_the_header_is_applied(tmp_path):
    (tmp_path / "plain.nii").write_bytes(plain())
    scaled = nib.Nifti1Image(((chest(3).astype(np.int32) + 1000) // 2).astype(np.int16).transpose(2, 1, 0), LPS)
    scaled.header.set_slope_inter(2.0, -1000.0)
    (tmp_path / "scaled.nii.gz").write_bytes(gzip.compress(scaled.to_bytes()))
    np.testing.assert_allclose(make(tmp_path / "scaled.nii.gz"), make(tmp_path / "plain.nii"), atol=1)


def test_decompression_stops_after_the_announced_voxels(tmp_path):
    """256 MB of zeros after the 27 KB of voxels that the header announces."""
    behind = tmp_path / "behind.nii.gz"
    behind.write_bytes(gzip.compress(plain(), 1) + gzip.compress(bytes(1 << 28), 1))
    tracemalloc.start()
    assert code_of(behind) == "nifti_header"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 23


def test_all_gzip_members_are_read_and_every_checksum_is_verified(tmp_path):
    path = tmp_path / "volume.nii.gz"
    (tmp_path / "plain.nii").write_bytes(plain())
    members = [gzip.compress(plain()[start : start + 5000], mtime=0) for start in range(0, len(plain()), 5000)]
    path.write_bytes(b"".join(members))
    np.testing.assert_array_equal(make(path), make(tmp_path / "plain.nii"))
    for number in (0, len(members) - 1):
        wrong = [bytearray(member) for member in members]
        wrong[number][-6] ^= 1
        path.write_bytes(b"".join(wrong))
        assert code_of(path) == "gzip_truncated"


def test_a_gzip_file_without_its_last_bytes_is_refused(tmp_path):
    path = tmp_path / "volume.nii.gz"
    packed = gzip.compress(plain())
    for missing in (1, 4, 8, 9):
        path.write_bytes(packed[:-missing])
        assert code_of(path) == "gzip_truncated"


def raw(path, **changes):
    return nifti.read_nifti_ct(volume_record(path.name, reader="nifti", **changes), path.parent)


@pytest.mark.parametrize(
    ("size", "guess"), [(0.003, "metres"), (0.3, "centimetres"), (3000, "micrometres")]
)
def test_voxels_in_another_unit_are_refused_with_the_guess(tmp_path, size, guess):
    affine = np.diag([-size, -size, size * 5 / 3, 1]) if size != 0.3 else np.diag([-0.15, -0.15, 0.5, 1])
    (tmp_path / "a.nii").write_bytes(nib.Nifti1Image(chest(3).transpose(2, 1, 0), affine).to_bytes())
    with pytest.raises(Refusal, match=f"spacing_out_of_range.*seems to be in {guess}"):
        raw(tmp_path / "a.nii")


def test_a_header_with_1_mm_voxels_at_the_origin_is_used_unless_a_table_has_the_geometry(tmp_path):
    (tmp_path / "a.nii").write_bytes(nib.Nifti1Image(chest(3).transpose(2, 1, 0), np.eye(4)).to_bytes())
    found = raw(tmp_path / "a.nii")
    np.testing.assert_array_equal(found.voxels, chest(3)[:, ::-1, ::-1])
    assert found.spacing_mm == (1, 1, 1)
    table = TableGeometry(SHAPE, (5.0, 3.0, 2.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), 1, -1024)
    found = raw(tmp_path / "a.nii", table=table)
    np.testing.assert_array_equal(found.voxels, chest(3))
    assert found.spacing_mm == pytest.approx((5.0, 3.0, 2.0))


@pytest.mark.parametrize("sform_code", [0, 2])
@pytest.mark.parametrize("qfac", [0.0, 1.0])
def test_a_qform_is_used_without_sform_or_with_one_of_zeros(tmp_path, sform_code, qfac):
    image = nib.Nifti1Image(chest(3).transpose(2, 1, 0), None)
    image.set_qform(LPS, 1)
    content = bytearray(image.to_bytes())
    struct.pack_into("<f", content, 76, qfac)
    struct.pack_into("<h", content, 254, sform_code)
    struct.pack_into("<12f", content, 280, *[0.0] * 12)
    (tmp_path / "a.nii").write_bytes(content)
    found = raw(tmp_path / "a.nii")
    np.testing.assert_array_equal(found.voxels, chest(3))
    assert found.spacing_mm == pytest.approx((5.0, 3.0, 3.0))


def with_nan(*places, dtype=np.float32):
    volume = chest(3).astype(dtype)
    for place in places:
        volume[place] = np.nan
    return volume


def save(path, volume):
    nib.save(nib.Nifti1Image(volume.transpose(2, 1, 0), LPS), path)
    return path


Z, Y, X = np.indices(SHAPE)
OUTSIDE = {
    "circle": (Y - 10.5) ** 2 / 110 + (X - 11.5) ** 2 / 130 > 1,
    "wedge": Y + Z > 40,
    "last slices": np.s_[24:],
    "one corner": (0, 0, 0),
}
INSIDE = {"one voxel": (13, 11, 12), "one slice": np.s_[13], "half a slice": np.s_[13, 10:], "hole": np.s_[10:14, 8:12, 9:15]}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("place", OUTSIDE)
def test_nan_outside_the_field_of_view_becomes_air(tmp_path, place, dtype):
    volume = with_nan(OUTSIDE[place], dtype=dtype)
    found = raw(save(tmp_path / "a.nii.gz", volume))
    np.testing.assert_array_equal(found.voxels, np.where(np.isnan(volume), -1024, chest(3)))
    assert [change.code for change in found.changes] == ["filled_nan"]


@pytest.mark.parametrize("place", INSIDE)
def test_nan_inside_the_field_of_view_is_refused(tmp_path, place):
    path = save(tmp_path / "volume.nii.gz", with_nan(INSIDE[place], OUTSIDE["circle"]))
    with pytest.raises(Refusal, match=r"hu_ambiguous.*voxels are NaN, some of them between measured ones"):
        make(path)


def test_an_infinite_voxel_is_refused(tmp_path):
    volume = with_nan(OUTSIDE["circle"])
    volume[13, 11, 12] = np.inf
    with pytest.raises(Refusal, match="infinite voxels"):
        make(save(tmp_path / "volume.nii.gz", volume))


def test_hu_without_air_are_read_only_if_they_are_trusted(tmp_path):
    path = save(tmp_path / "cardiac.nii.gz", np.maximum(chest(3), -600))
    with pytest.raises(Refusal, match="hu_ambiguous"):
        raw(path)
    found = raw(path, hu="trust")
    np.testing.assert_array_equal(found.voxels, np.maximum(chest(3), -600))
    assert (found.hu_source, [change.code for change in found.changes]) == ("trusted", ["no_air"])
    with pytest.raises(Refusal, match="less dense than air"):
        raw(save(tmp_path / "twice.nii.gz", chest(3) - np.int16(1024)), hu="trust")


@pytest.mark.parametrize("dtype", [">i2", "<i4", ">f4", "<f8"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_every_dtype_and_byte_order_gives_the_same_volume(tmp_path, dtype, kind):
    image = kind(chest(3).transpose(2, 1, 0).astype(dtype), LPS)
    image.header.set_data_dtype(np.dtype(dtype))
    (tmp_path / "volume.nii.gz").write_bytes(gzip.compress(image.to_bytes()))
    (tmp_path / "plain.nii").write_bytes(plain())
    stored, _ = nifti.read_nifti(tmp_path / "volume.nii.gz")
    np.testing.assert_array_equal(stored, chest(3).transpose(2, 1, 0))
    np.testing.assert_array_equal(make(tmp_path / "volume.nii.gz"), make(tmp_path / "plain.nii"))


def test_huge_values_are_refused_without_a_histogram_of_their_range(tmp_path):
    volume = np.random.default_rng(0).uniform(0, 1e30, SHAPE[::-1])
    nib.save(nib.Nifti1Image(volume, LPS), tmp_path / "volume.nii.gz")
    assert code_of(tmp_path / "volume.nii.gz") == "hu_ambiguous"


def test_missing_and_unreadable_files_are_refused(tmp_path):
    assert code_of(tmp_path / "none.nii.gz") == "missing_file"
    (tmp_path / "folder.nii.gz").mkdir()
    assert code_of(tmp_path / "folder.nii.gz") == "unreadable"
