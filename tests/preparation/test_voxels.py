"""From the file of one volume to the stored voxels."""

import gzip
import struct

import nibabel as nib
import numpy as np
import pytest
from small_raw import LPS, SHAPE, SPACING, chest, source_options

from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.recipe import Recipe
from mg3d.preparation.sources.ct_rate import list_ct_rate
from mg3d.preparation.voxels import make_volume

STORED = (32, 24, 16)


def make(tree, name, **volume):
    tree.add("valid_1_a_1")
    tree.add(name, **volume)
    records = list_ct_rate(tree.write(), source_options()).records
    record = next(record for record in records if record.volume_id == f"ct_rate/{name}")
    return make_volume(record, tree.root / "dataset", Recipe(shape=STORED))


def right_anterior_superior():
    lps = nib.Nifti1Image(chest(7).transpose(2, 1, 0), LPS)
    change = nib.orientations.ornt_transform(nib.io_orientation(LPS), nib.orientations.axcodes2ornt("RAS"))
    ras = lps.as_reoriented(change)
    return {"stored": np.asarray(ras.dataobj), "affine": ras.affine}


RAW = chest(7).transpose(2, 1, 0).astype(np.float64)
FIRST_RELEASE = {"folder": "train", "stored": RAW + 1024, "affine": np.eye(4), "blank": True}


@pytest.mark.parametrize(
    ("volume", "hu_source"),
    [
        ({"hu": chest(7)}, "already_hu"),
        ({"hu": chest(7), "folder": "train"}, "already_hu"),  # its intercept must not be applied a second time
        (right_anterior_superior(), "already_hu"),
        (FIRST_RELEASE, "metadata_table"),
        ({**FIRST_RELEASE, "blank": False}, "metadata_table"),
        ({**FIRST_RELEASE, "stored": RAW + 8192, "row": {"RescaleIntercept": -8192}}, "metadata_table"),
        *(
            ({**FIRST_RELEASE, "row": row}, "metadata_table")
            for row in (
                {"XYSpacing": "['3.0', '3.0']"}, {"XYSpacing": "(3, 3)"},
                {"XYSpacing": "[np.float64(3.0), np.float64(3.0)]"}, {"PatientPosition": "FFS"}, {"PatientAge": ""},
                {"ImageOrientationPatient": "['1', '0', '0', '0', '1', '0']"}, {"ImageOrientationPatient": ""},
            )
        ),
    ],
)  # fmt: skip
def test_every_release_orientation_and_spelling_gives_the_same_voxels(tree, volume, hu_source):
    image, facts = make(tree, "train_1_a_1", **volume)
    expected, _ = make(tree, "train_2_a_1", hu=chest(7))
    np.testing.assert_array_equal(image, expected)
    assert image.dtype == np.int16
    assert facts["hu_source"] == hu_source
    assert facts["source_shape"] == list(SHAPE)
    # 0.88 * 26 = 23 slices, 0.65625 * 22 = 14 rows, 0.875 * 24 = 21 columns are kept
    kept = np.array([23, 14, 21]) * SPACING / STORED
    assert facts["spacing_mm"] == pytest.approx(kept)


def test_padding_is_stored_as_the_lowest_value(tree):
    volume = chest()
    volume[:, 4:6] = -8192
    image, _ = make(tree, "train_1_a_1", hu=volume)
    assert image.min() == -1024


@pytest.mark.parametrize(
    ("volume", "code"),
    [
        ({"row": {"ZSpacing": ""}}, "nan_spacing"),
        ({"row": {"ZSpacing": ""}, "affine": np.eye(4)}, "nan_spacing"),
        ({"row": {"XYSpacing": "[0.7]"}, "affine": np.eye(4)}, "nan_spacing"),
        ({"row": {"NumberofSlices": 25}}, "shape_mismatch"),
        ({"stored": np.full(SHAPE[::-1], -1000, np.int16)}, "constant_image"),
    ],
)
def test_an_unusable_volume_is_refused_with_a_reason(tree, volume, code):
    with pytest.raises(Refusal) as caught:
        make(tree, "train_1_a_1", **volume)
    assert caught.value.code == code


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.6, 0.999])
def test_a_truncated_file_is_refused(tree, kept):
    path = tree.add("train_1_a_1")
    tree.add("valid_1_a_1")
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    record = list_ct_rate(tree.write(), source_options()).records[0]
    with pytest.raises(Refusal) as caught:
        make_volume(record, tree.root / "dataset", Recipe(shape=STORED))
    assert caught.value.code in {"gzip_truncated", "nifti_header"}
    assert kept == 0 or caught.value.code == "gzip_truncated"


def test_a_header_with_nan_spacing_is_refused(tree):
    tree.add("valid_1_a_1")
    path = tree.add("train_1_a_1")
    content = bytearray(gzip.decompress(path.read_bytes()))
    for offset in (88, 320):  # pixdim[3], and the third number of srow_z
        content[offset : offset + 4] = struct.pack("<f", float("nan"))
    path.write_bytes(gzip.compress(bytes(content)))
    record = list_ct_rate(tree.write(), source_options()).records[0]
    with pytest.raises(Refusal, match="nan_spacing"):
        make_volume(record, tree.root / "dataset", Recipe(shape=STORED))
