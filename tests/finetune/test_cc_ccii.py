import gzip
import re
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from downstream.folders import load
from PIL import Image

from mg3d.finetune.cases import FinetuneCase
from mg3d.finetune.data_check import inspect_files
from mg3d.finetune.predict import find_scans
from mg3d.finetune.run import run

MODULE = load("cc-ccii")
SMALL = ["epochs=1", "accelerator=cpu", "n_bootstrap=2"]


def read(root, **overrides):
    return MODULE.read_cases(root, MODULE.TASK.settings(**overrides))


@pytest.fixture(scope="module")
def arrays(tiny_set, tmp_path_factory):
    """The synthetic set as the published code has it: p<patient>-s<scan>.npy and the lists of fold 0."""
    root = tmp_path_factory.mktemp("arrays")
    cases = read(tiny_set("cc-ccii"))
    for case in cases:
        np.save(root / f"{case.case_id}.npy", np.stack([np.asarray(Image.open(file)) for file in case.image]))
    rows = [
        {"zip_file": "z", "target": case.target[0], "label": MODULE.CLASSES[case.target[0]], "patient_id": case.patient_id,
         "scan_id": case.case_id.partition("-s")[2]} for case in cases
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    patients = sorted(set(table["patient_id"]), key=int)
    valid = table["patient_id"].isin(patients[:4])
    table[~valid].to_csv(root / "CC_CCII_fold0_train.csv", index=False)
    table[valid].to_csv(root / "CC_CCII_fold0_valid.csv", index=False)
    return root


def test_slices_run_upwards_and_are_sorted_numerically(tmp_path):
    folder = tmp_path / "CP" / "7" / "70"
    folder.mkdir(parents=True)
    for number in (10, 9, 1, 2):
        Image.new("L", (4, 4), number).save(folder / f"{number}.png")
    for name in MODULE.CLASSES[::2]:
        (tmp_path / name).mkdir()
    (case,) = read(tmp_path)
    assert [file.name for file in case.image] == ["10.png", "9.png", "2.png", "1.png"]
    assert (case.case_id, case.patient_id, case.target) == ("p7-s70", "7", (1,))


def test_arrays_have_the_targets_of_the_lists(tiny_set, arrays):
    slices = {case.case_id: (case.patient_id, case.target) for case in read(tiny_set("cc-ccii"))}
    assert {case.case_id: (case.patient_id, case.target) for case in read(arrays)} == slices


def test_the_central_crop_is_the_middle_of_a_slice(tmp_path):
    slices = np.zeros((40, 512, 512), np.uint8)
    slices[:, 64:-64, 64:-64] = 255
    np.save(tmp_path / "a.npy", slices)
    read_sample = MODULE.build(MODULE.TASK.settings(center_crop=384)).read(with_masks=False)
    image = read_sample(FinetuneCase(case_id="a", patient_id="p", image=tmp_path / "a.npy"))["image"]
    assert tuple(image.shape) == (1, 32, 384, 384)
    assert float(image.min()) == pytest.approx(1, abs=1e-3)


def test_a_run_excludes_broken_scans(tiny_set, tmp_path, capsys):
    root = shutil.copytree(tiny_set("cc-ccii"), tmp_path / "set")
    scans = sorted(path.parent for path in root.glob("*/*/*/0000.*"))
    first, truncated = next(scans[0].glob("0001.*")), next(scans[-1].glob("0002.*"))
    Image.new("L", (14, 14)).save(first)
    truncated.write_bytes(truncated.read_bytes()[:40])
    assert run(MODULE.TASK, [f"data_root={root}", f"log_dir={tmp_path}", "run_name=r", "center_crop=24", *SMALL]) == 0
    assert "excluded 2 of 11 cases" in capsys.readouterr().out
    reasons = " / ".join(pd.read_csv(tmp_path / "cc-ccii" / "r" / "excluded.csv")["reason"])
    assert "cannot be read as an image" in reasons
    assert "have sizes" in reasons


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: None, None),
        (lambda folder: (folder / "a.raw").unlink(), "a.mhd .* voxels are not where"),
        (lambda folder: (folder / "a.raw").write_bytes(bytes(119)), "a.mhd .* truncated"),
        (lambda folder: (folder / "a.mhd").unlink(), "there is no file"),
        (lambda folder: (folder / "d.mha").write_bytes((folder / "d.mha").read_bytes()[:-1]), "d.mha .* truncated"),
        (lambda folder: (folder / "a.mhd").write_bytes(b""), "a.mhd cannot be read as a scan"),
        (lambda folder: (folder / "b.nii.gz").write_bytes((folder / "b.nii.gz").read_bytes()[:200]), "b.nii.gz cannot be read"),
        (lambda folder: (folder / "b.nii.gz").write_bytes(gzip.compress(bytes(400))), "b.nii.gz cannot be read"),
        (lambda folder: (folder / "c.npy").write_bytes((folder / "c.npy").read_bytes()[:-1]), "c.npy cannot be read as a scan"),
        (lambda folder: np.save(folder / "c.npy", np.zeros((3, 4))), r"c.npy holds an array of shape \(3, 4\)"),
        (lambda folder: (folder / "2.jpg").unlink(), "2.jpg cannot be read as an image"),
        (lambda folder: (folder / "2.jpg").write_bytes((folder / "1.jpg").read_bytes()[:-200]), "2.jpg cannot be read as an im"),
        (lambda folder: Image.new("L", (4, 4)).save(folder / "2.jpg"), "have sizes"),
    ],
)
def test_unreadable_files_are_reported_with_a_reason(tmp_path, spoil, message):
    noise = np.random.default_rng(0).integers(0, 255, (3, 40, 50)).astype(np.uint8)
    for name in ("a.mhd", "d.mha"):
        sitk.WriteImage(sitk.GetImageFromArray(noise[:2, :6, :10].copy()), str(tmp_path / name))
    nib.save(nib.Nifti1Image(noise, np.eye(4)), tmp_path / "b.nii.gz")
    np.save(tmp_path / "c.npy", noise)
    for index in (1, 2):
        Image.fromarray(noise[index]).save(tmp_path / f"{index}.jpg")
    sources = [*(tmp_path / name for name in ("a.mhd", "b.nii.gz", "c.npy", "d.mha")), (tmp_path / "1.jpg", tmp_path / "2.jpg")]
    spoil(tmp_path)
    cases = [FinetuneCase(case_id=str(index), patient_id="p", image=source) for index, source in enumerate(sources)]
    errors = [summary["error"] for summary in inspect_files(cases, tmp_path / "files.json").values() if "error" in summary]
    assert len(errors) == (message is not None)
    if message:
        assert re.search(message, errors[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "CC_CCII_fold0_valid.csv").unlink(), "there is no CC_CCII_fold0_valid.csv"),
        (lambda root: (root / "CC_CCII_fold0_valid.csv").write_text("a\n1\n"), "lacks the columns"),
        (
            lambda root: (root / "CC_CCII_fold0_valid.csv").write_text("target,label,patient_id,scan_id\n2,CP,1,1\n"),
            "line 2: target does not match label",
        ),
        (lambda root: [path.unlink() for path in root.glob("*.npy")], "has none of the folders"),
    ],
)
def test_bad_lists_are_refused(arrays, tmp_path, change, message):
    root = tmp_path / "deep" / "copy"
    shutil.copytree(arrays, root)
    change(root)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read(root)


def test_new_slices_are_read_in_the_order_of_training(tiny_set):
    root = tiny_set("cc-ccii")
    learned = sorted(case.image for case in read(root))
    assert any(len(image) > 10 for image in learned)
    assert sorted(case.image for case in MODULE.build(MODULE.TASK.settings()).for_prediction(find_scans(root), root)) == learned
