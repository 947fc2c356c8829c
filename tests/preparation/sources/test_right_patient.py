"""Whatever a tree contains and whatever a row names: the voxels that come out are those of the named patient."""

import shutil
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import SimpleITK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_dicom import write_series
from small_raw import LPS, SPACING, source_options

from mg3d.finetune.images import read_array
from mg3d.finetune.table import read_cases, read_tables
from mg3d.inference.scan import Preprocessing, read_scan
from mg3d.inference.scan_sources import list_scans
from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.readers.registry import READERS
from mg3d.preparation.recipe import Recipe
from mg3d.preparation.sources.custom import list_custom

FOLDERS = ("", "a", "a/b", "c")
FILE_SUFFIXES = (".nii", ".nii.gz", ".NII.GZ", ".mha", ".MHA", ".npz", ".nrrd")
SLICE_SUFFIXES = (".dcm", ".IMA", "", ".v2")
PREPROCESSING = Preprocessing(Recipe(shape=(20, 10, 12)), (-1000.0, 1000.0))


def body(patient):
    """HU [z, y, x]: air around a body of 100 + `patient` HU."""
    volume = np.full((20, 10, 12), -1000, np.int16)
    volume[:, 2:-2, 2:-2] = 100 + patient
    volume[3, 4, 5] = 90 + patient
    return volume



def write_file(path, patient):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez(path, ct=body(patient)[::-1])
    elif path.suffix.lower() in (".mha", ".nrrd"):
        image = SimpleITK.GetImageFromArray(body(patient))
        image.SetSpacing(SPACING[::-1])
        SimpleITK.WriteImage(image, str(path.with_suffix(path.suffix.lower())))
        path.with_suffix(path.suffix.lower()).rename(path)
    else:
        lower = path.with_name(path.name.lower())
        nib.save(nib.Nifti1Image(body(patient).transpose(2, 1, 0), LPS), lower)
        lower.rename(path)
    return {path: patient}


def write_dicom(folder, patient, suffix, *, shared_uid):
    start = f"p{patient}-"
    uid = "1.2.3" if shared_uid else f"1.2.3.{patient}"
    write_series(folder, body(patient), start=start, SeriesInstanceUID=uid, PatientID=f"P{patient}")
    owner = {}
    for path in sorted(folder.glob(f"{start}*.dcm")):
        renamed = path.with_suffix(suffix)
        owner[path.rename(renamed)] = patient
    return owner


items = st.lists(
    st.tuples(st.sampled_from(FOLDERS), st.sampled_from([*FILE_SUFFIXES, *SLICE_SUFFIXES])), min_size=2, max_size=4
)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(items, st.booleans(), st.data())
def test_voxels_carry_the_marker_of_the_named_patient(places, shared_uid, data):
    top = Path(tempfile.mkdtemp())
    try:
        check_rows(top, places, shared_uid, data)
    finally:
        shutil.rmtree(top)


def check_rows(top, places, shared_uid, data):
    root, owner = top / "root", {}
    for patient, (folder, suffix) in enumerate(places, start=1):
        if suffix in SLICE_SUFFIXES:
            owner |= write_dicom(root / folder, patient, suffix, shared_uid=shared_uid)
        else:
            owner |= write_file(root / folder / f"p{patient}{suffix}", patient)
    paths = [path.relative_to(root) for path in sorted(root.rglob("*"))]
    named = data.draw(st.lists(st.sampled_from(paths), min_size=1, max_size=3, unique=True), label="rows")
    table = root.parent / "table.csv"
    pd.DataFrame({"volume": [str(path) for path in named], "target": ["0"] * len(named)}).to_csv(table, index=False)

    def expected(path):
        return {patient for file, patient in owner.items() if file == root / path or root / path in file.parents}

    try:
        inventory = list_custom(root, source_options(out=top, table=table, keep_ids=True))
        scans = list_scans(Reader(), root, table=table)
    except ValueError:  # no row names a file that can be read
        return
    for record in inventory.records:
        try:
            voxels = READERS[record.reader](record, root).voxels
        except Refusal:
            continue
        check(voxels, expected(record.files[0]), record.files[0])
    for scan in scans:
        try:
            volume = scan.read().volume
        except (ValueError, OSError):
            continue
        check(volume * 2000 - 1000, expected(scan.key), scan.key)
    shutil.move(table, root / "table.csv")
    cases = read_cases(read_tables([root / "table.csv"]), "binary", targets=["target"])
    for case in cases:
        try:
            voxels, _ = read_array(case.image)
        except (ValueError, OSError, AttributeError):
            continue
        check(voxels, expected(Path(case.image).relative_to(root)), case.image)


def check(voxels, allowed, name):
    """Rounding and interpolation add no patient: the body has one value everywhere inside."""
    values, counts = np.unique(np.rint(voxels[voxels > 60]).astype(int), return_counts=True)
    found = {int(values[counts.argmax()]) - 100}
    assert found <= allowed, f"{name} gave the voxels of patient {found}, not {allowed}"
    assert found


class Reader:
    def read(self, path):
        return read_scan(path, PREPROCESSING)
