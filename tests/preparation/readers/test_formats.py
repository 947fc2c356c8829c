"""One scan in every file format, axis order and coordinate system is read as one array at one place."""

import gzip
import itertools
import re
import zipfile

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from small_dicom import write_series
from small_raw import SHAPE, chest, volume_record

from mg3d.preparation import geometry
from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.readers.registry import READERS, reader_of

CHEST = chest(7)
SPACING = (5.0, 3.0, 2.5)
CORNER = np.array([-31.0, -43.0, -207.0])
"""Position of the first voxel of the upright volume in LPS mm."""
AFFINE = geometry.ras_affine(np.diag(SPACING[::-1]), CORNER)
ORIENTATIONS = ["LPS", "RAS", "LAI", "RPI", "SPL", "PIR", "ASR", "ILA"]


def oriented(codes):
    """The chest [i, j, k] with axes along `codes`, and its affine to RAS mm."""
    image = nib.Nifti1Image(CHEST.transpose(2, 1, 0), AFFINE)
    change = nib.orientations.ornt_transform(nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(codes))
    image = image.as_reoriented(change)
    return np.asarray(image.dataobj), image.affine


def write_nifti(path, stored, affine, kind=nib.Nifti1Image):
    nib.save(kind(stored, affine), path)


def write_pair(path, stored, affine):
    nib.save(nib.Nifti1Pair(stored, affine), path)


def write_itk(path, stored, affine):
    image = SimpleITK.GetImageFromArray(stored.transpose(2, 1, 0))
    axes = (geometry.LPS_TO_RAS @ affine)[:3]
    spacing = np.linalg.norm(axes[:, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((axes[:, :3] / spacing).ravel().tolist())
    image.SetOrigin(axes[:, 3].tolist())
    SimpleITK.WriteImage(image, str(path), useCompression=path.suffix in {".mha", ".nrrd"})


def write_nrrd(path, stored, affine, space="right-anterior-superior"):
    """By hand, in RAS, with detached voxels."""
    vectors = " ".join("({:.6f},{:.6f},{:.6f})".format(*affine[:3, axis]) for axis in range(3))
    origin = "({:.6f},{:.6f},{:.6f})".format(*affine[:3, 3])
    lines = [
        "NRRD0004", "type: short", "dimension: 3", f"space: {space}", "sizes: {} {} {}".format(*stored.shape),
        f"space directions: {vectors}", f"space origin: {origin}", "endian: little", "encoding: raw",
        f"data file: {path.stem}.raw",
    ]  # fmt: skip
    path.write_text("\n".join(lines) + "\n\n")
    path.with_suffix(".raw").write_bytes(stored.astype("<i2").tobytes(order="F"))


def zipped(name, write):
    def write_zip(path, stored, affine):
        inner = path.parent / "inner"
        inner.mkdir()
        write(inner / name, stored, affine)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(inner.rglob("*")):
                archive.write(file, f"export/{file.relative_to(inner)}")
            archive.writestr("__MACOSX/export/._scan.nii.gz", b"x")

    return write_zip


FORMATS = {
    "a.nii": write_nifti, "a.nii.gz": write_nifti, "A.NII.GZ": write_nifti, "a.hdr": write_pair, "a.mha": write_itk,
    "a.mhd": write_itk, "a.nrrd": write_itk, "a.nhdr": write_nrrd, "nifti.zip": zipped("scan.nii.gz", write_nifti),
    "meta.zip": zipped("scan.mhd", write_itk),
}  # fmt: skip


def read(path, reader=None):
    return READERS[reader or reader_of(path)](volume_record(path.name, reader="x"), path.parent)


def assert_is_the_chest(raw):
    np.testing.assert_array_equal(raw.voxels, CHEST)
    assert raw.spacing_mm == pytest.approx(SPACING)
    found = geometry.lps_affine(raw.affine, raw.voxels.shape)
    np.testing.assert_allclose(found, AFFINE, atol=1e-4)


@pytest.mark.parametrize(("name", "codes"), itertools.product(FORMATS, ORIENTATIONS))
def test_every_format_and_orientation_gives_one_array_at_one_place(tmp_path, name, codes):
    FORMATS[name](tmp_path / name, *oriented(codes))
    assert_is_the_chest(read(tmp_path / name))


@pytest.mark.parametrize("kind", ["folder", "zip", "gzip", "DICOMDIR"])
def test_dicom_gives_the_same_array_at_the_same_place(tmp_path, kind):
    folder = write_series(tmp_path / "export" / "series", CHEST)
    path = folder
    if kind == "zip":
        path = tmp_path / "series.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in folder.iterdir():
                archive.write(file, f"a/b/{file.name}")
    elif kind == "gzip":
        for file in [*folder.iterdir()]:
            (folder / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
            file.unlink()
    elif kind == "DICOMDIR":
        path = folder.parent / "DICOMDIR"
        path.write_bytes(bytes(128) + b"DICM" + bytes(100))
    assert_is_the_chest(read(path, "zip" if kind == "zip" else "dicom"))


@pytest.mark.parametrize("suffix", [".img", ".img.gz"])
def test_an_analyze_pair_is_read_with_a_note_on_its_axes(tmp_path, suffix):
    """Analyze stores axes to left, anterior and superior."""
    stored, _ = oriented("LAS")
    image = nib.AnalyzeImage(stored, np.diag([-SPACING[2], SPACING[1], SPACING[0], 1]))
    nib.save(image, tmp_path / "a.hdr")
    if suffix == ".img.gz":
        (tmp_path / "a.img.gz").write_bytes(gzip.compress((tmp_path / "a.img").read_bytes()))
        (tmp_path / "a.img").unlink()
    raw = read(tmp_path / "a.hdr")
    np.testing.assert_array_equal(raw.voxels, CHEST)
    assert raw.spacing_mm == pytest.approx(SPACING)
    assert [change.code for change in raw.changes] == ["assumed_axes"]


def test_the_scale_of_an_spm_analyze_pair_is_applied(tmp_path):
    stored, _ = oriented("LAS")
    image = nib.Spm99AnalyzeImage((stored // 2 * 2).astype(np.float32), np.diag([-SPACING[2], SPACING[1], SPACING[0], 1]))
    image.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "a.hdr")
    assert nib.load(tmp_path / "a.hdr").header["scl_slope"] not in (0, 1)
    np.testing.assert_allclose(read(tmp_path / "a.hdr").voxels, CHEST // 2 * 2, atol=0.05)


def two_scans(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.nii.gz", b"")
        archive.writestr("b.nii.gz", b"")


def cut_archive(path):
    two_scans(path)
    path.write_bytes(path.read_bytes()[:-30])


def nrrd_with(**changes):
    def write(path):
        write_nrrd(path, *oriented("LPS"), **{key: value for key, value in changes.items() if key == "space"})
        if "file" in changes:
            path.write_text(path.read_text().replace("data file: bad", f"data file: {changes['file']}"))

    return write


def write_by_itk(path):
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(CHEST), str(path))


def changed(write, pattern, text=""):
    """Write a file and replace the first match of a pattern in its header."""

    def write_changed(path):
        write(path)
        path.write_bytes(re.sub(pattern.encode(), text.encode(), path.read_bytes(), count=1))

    return write_changed


REFUSED = {
    "two scans": ("bad.zip", two_scans, "several_scans"),
    "cut archive": ("bad.zip", cut_archive, "archive_damaged"),
    "empty archive": ("bad.zip", lambda path: zipfile.ZipFile(path, "w").close(), "dicom_damaged"),
    "pair without image": ("bad.hdr", lambda path: path.write_bytes(bytes(400)), "missing_file"),
    "voxels elsewhere": ("bad.nhdr", nrrd_with(file="../secret.raw"), "image_damaged"),
    "many files": ("bad.nhdr", nrrd_with(file="LIST"), "image_damaged"),
    "no space": ("bad.nhdr", nrrd_with(space="scanner-xyz"), "nan_spacing"),
    "NRRD without spacing": ("bad.nrrd", changed(write_by_itk, "(?m)^space directions.*\n"), "nan_spacing"),
    "MetaImage without spacing": ("bad.mha", changed(write_by_itk, "(?m)^ElementSpacing.*\n"), "nan_spacing"),
    "MetaImage of -3 axes": ("bad.mha", changed(write_by_itk, "NDims = 3", "NDims =-3"), "not_3d"),
    "NRRD without an end of its header": ("bad.nrrd", changed(write_by_itk, "\n\n", "\n"), "image_damaged"),
    "text": ("bad.nrrd", lambda path: path.write_text("words"), "image_damaged"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_that_are_not_one_scan_are_refused(tmp_path, case):
    name, write, code = REFUSED[case]
    write(tmp_path / name)
    with pytest.raises(Refusal) as caught:
        read(tmp_path / name)
    assert caught.value.code == code
    assert "secret" not in caught.value.detail
    assert CHEST.shape == SHAPE
