"""CTRG's annotation, slices and NIfTI files: order of slices, splits, hashed names, and what is quarantined."""

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_raw import LPS, SHAPE, SPACING, source_options, write_ctrg, write_nifti

from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.readers.jpeg_slices import read_jpeg_slices
from mg3d.preparation.readers.nifti import read_nifti_grey
from mg3d.preparation.recipe import Recipe
from mg3d.preparation.sources.ctrg import list_ctrg, missing_numbers, natural_key, read_annotation
from mg3d.preparation.voxels import make_volume

RECIPE = Recipe(shape=(32, 24, 32))


@pytest.fixture
def listed(tmp_path):
    """Lists `tmp_path` with a fixed salt."""

    def list_with(salt=b"0123456789abcdef", **changes):
        (tmp_path / "ctrg_salt.txt").write_bytes(salt)
        return list_ctrg(tmp_path, source_options(**{"out": tmp_path, "val_patients": 2, **changes}))

    return list_with


@pytest.mark.parametrize("as_list", [True, False])
def test_slices_are_stacked_from_inferior_to_superior(tmp_path, listed, as_list):
    write_ctrg(tmp_path, 3, as_list=as_list)
    record = listed().records[1]
    volume, spacing, hu_source, *_ = read_jpeg_slices(record, tmp_path)
    assert volume.shape == (20, *SHAPE[1:])
    np.testing.assert_allclose(volume[:, 10, 10], np.arange(190, -1, -10), atol=2)
    assert (spacing, hu_source) == (None, "uint8_unknown_window")
    image, facts = make_volume(record, tmp_path, RECIPE)
    assert image.dtype == np.uint8
    assert image[0].mean() > image[-1].mean()
    assert facts["spacing_mm"] is None


def test_numbers_in_names_sort_by_value():
    names = [f"a_05_{k}_{k}.jpg" for k in range(1, 120)]
    assert sorted(random.Random(0).sample(names, len(names)), key=natural_key) == names


def test_no_name_of_a_person_is_in_ids_and_reprs(tmp_path, listed):
    write_ctrg(tmp_path, 12)
    records = listed().records
    assert not [record for record in records if "Person" in repr(record) + record.source + record.volume_id]
    other = {record.volume_id for record in listed(salt=b"another salt 012").records}
    assert {record.volume_id for record in records}.isdisjoint(other)


def test_unreadable_folder_is_refused_without_its_name(tmp_path, listed, monkeypatch):
    write_ctrg(tmp_path, 6, as_list=False)
    iterdir = Path.iterdir

    def refuse(self):
        if self.name == "Person 2":
            raise PermissionError(13, "Permission denied", str(self))
        return iterdir(self)

    monkeypatch.setattr(Path, "iterdir", refuse)
    inventory = listed()
    assert len(inventory.records) == 5
    assert [(entry.code, entry.detail) for entry in inventory.quarantined] == [("unreadable", "PermissionError")]


def test_published_order_gives_the_published_counts(tmp_path):
    items = [{"image_path": f"Chest/{k}", "report": "x"} for k in range(1804)]
    (tmp_path / "annotation.json").write_text(json.dumps(items))
    parts = read_annotation(tmp_path / "annotation.json")
    assert {name: len(part) for name, part in parts.items()} == {"train": 1444, "test": 180, "val": 180}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("original", ["train"] * 17 + ["test"] * 2 + ["val"]), ("resplit", [("train", 16), ("val", 1), ("test", 3)])],
)
def test_original_keeps_the_published_splits_and_resplit_draws_val_from_train(tmp_path, listed, rule, expected):
    write_ctrg(tmp_path, 20)
    splits = [record.split for record in listed(ctrg_split=rule, val_patients=1).records]
    assert (splits if rule == "original" else sorted(Counter(splits).items(), key=lambda pair: pair[1] % 16)) == expected
    assert set(splits[17:]) == ({"test", "val"} if rule == "original" else {"test"})


def test_annotation_whose_val_repeats_test_needs_resplit(tmp_path, listed):
    write_ctrg(tmp_path, 12, edit=lambda items: {"train": items[:10], "val": items[10:], "test": items[10:]})
    inventory = listed()
    assert Counter(record.split for record in inventory.records) == {"train": 9, "val": 1, "test": 2}
    assert any("val and test of the annotation are the same 2 cases" in note for note in inventory.notes)
    with pytest.raises(ValueError, match="use --ctrg-split resplit"):
        listed(ctrg_split="original")


def test_absolute_paths_of_another_machine_are_found_by_their_end(tmp_path, listed):
    def edit(items):
        for item in items:
            item["image_path"] = [path.replace("./", "/data/of/somebody/") for path in item["image_path"]]
        return items

    write_ctrg(tmp_path, 5, edit=edit)
    assert len(listed().records) == 5


def test_missing_folders_slices_and_reports(tmp_path, listed):
    def edit(items):
        items[0] |= {"image_path": "./Chest_New/Nobody"}
        items[1] |= {"report": "", "result": "Not given."}
        items[2]["image_path"].append("./Chest_New/Person 2/Person 2_05_21_21.jpg")
        return items

    write_ctrg(tmp_path, 6, edit=edit)
    inventory = listed()
    assert sorted(entry.code for entry in inventory.quarantined) == ["missing_file", "report_missing"]
    with pytest.raises(Refusal, match="missing_file"):
        make_volume(inventory.records[0], tmp_path, RECIPE)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:300]), "jpeg_truncated"),
        (lambda path: Image.new("L", (SHAPE[2] - 4, SHAPE[1] - 2)).save(path), "shape_mismatch"),
    ],
)
def test_damaged_slice_and_slice_of_another_size_are_refused_without_their_name(tmp_path, listed, change, code):
    write_ctrg(tmp_path, 5)
    record = listed().records[0]
    change(tmp_path / record.files[4])
    with pytest.raises(Refusal) as caught:
        make_volume(record, tmp_path, RECIPE)
    assert caught.value.code == code
    assert "Person" not in caught.value.detail


def named(pattern, numbers):
    return [pattern.format(number) for number in numbers]


COMPLETE = range(1, 25)


@pytest.mark.parametrize(
    ("names", "missing", "gaps"),
    [
        (named("P_05_{0:04d}_{0:04d}.jpg", COMPLETE), 0, 0),
        (named("P_05_{0}_{0}.jpg", range(7, 31)), 0, 0),
        (named("{0}.jpg", range(0, 90, 3)), 0, 0),
        (named("{0}_05_512.jpg", COMPLETE), 0, 0),
        (named("scan{0}.jpg", [10**25, 10**25 + 1, 10**25 + 2]), 0, 0),
        (named("P_05_{0}.jpg", COMPLETE) + named("P_06_{0}.jpg", COMPLETE), 0, 0),
        ([*named("P_05_{0}.jpg", COMPLETE), "localizer.jpg"], 0, 0),
        (["one.jpg"], 0, 0),
        ([], 0, 0),
        (named("P_05_{0:04d}_{0:04d}.jpg", [*range(1, 10), *range(12, 25)]), 2, 1),
        (named("{0}.jpg", [1, 2, 3, 5, 6, 9, 10, 11]), 3, 2),
        (named("{0}_05_512.jpg", [1, 2, 3, 5, 6, 7]), 1, 1),
        (named("{0}.jpg", [0, 3, 6, 12, 15]), 1, 1),
        (named("P_05_{0}.jpg", COMPLETE) + named("P_06_{0}.jpg", [1, 2, 4]), 1, 1),
    ],
)
def test_gaps_in_the_numbers_of_slices_are_counted(names, missing, gaps):
    expected = f"{missing} numbers missing in {gaps} gaps, {len(names)} slices found" if gaps else None
    assert missing_numbers(names) == expected


@pytest.mark.parametrize("as_list", [True, False])
def test_case_with_a_gap_is_refused_and_the_others_stay(tmp_path, listed, as_list):
    def edit(items):
        for number in (9, 10, 11):
            (tmp_path / "Chest_New" / "Person 2" / f"Person 2_05_{number}_{number}.jpg").unlink()
        if as_list:
            items[2]["image_path"] = [path for path in items[2]["image_path"] if (tmp_path / path).is_file()]
        return items

    write_ctrg(tmp_path, 5, slices=24, as_list=as_list, edit=edit)
    inventory = listed()
    assert [(entry.code, entry.detail) for entry in inventory.quarantined] == [
        ("missing_slices", "3 numbers missing in 1 gaps, 21 slices found")
    ]
    assert len(inventory.records) == 4


def test_names_with_equal_numbers_have_the_same_order_on_every_machine(tmp_path, listed, monkeypatch):
    write_ctrg(tmp_path, 1, as_list=False)
    folder = tmp_path / "Chest_New" / "Person 0"
    (folder / "Person 0_05_7_7.jpg").rename(folder / "Person 0_05_06_6.jpg")
    monkeypatch.setattr("mg3d.preparation.sources.ctrg.missing_numbers", lambda names: None)
    iterdir, orders = Path.iterdir, set()
    for seed in range(9):
        monkeypatch.setattr(Path, "iterdir", lambda self, seed=seed: iter(random.Random(seed).sample([*iterdir(self)], 20)))
        orders.add(listed().records[0].files)
    assert [len(order) for order in orders] == [20]


@pytest.mark.parametrize("wrap", [list, lambda items: {"train": items[:3], "test": items[3:4], "val": items[4:]}])
@pytest.mark.parametrize("keys", [("report", "result"), ("findings", "impression"), ("report", None)])
def test_both_structures_of_the_annotation_and_both_names_of_its_texts(tmp_path, listed, wrap, keys):
    def edit(items):
        texts = [(item.pop("report"), item.pop("result")) for item in items]
        for item, text in zip(items, texts):
            item |= {key: part for key, part in zip(keys, text) if key}
        return wrap([{**item, "clip_indices": [1, 2]} for item in items])

    write_ctrg(tmp_path, 5, edit=edit)
    path = tmp_path / "chest_ctrg_jpg.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # with a byte order mark
    records = listed(ctrg_split="original").records
    assert [record.findings for record in records] == [f"Case {case} lung clear, heart large." for case in range(5)]
    assert {record.impression for record in records} == {"Normal." if keys[1] else None}
    # a flat list of five is divided after int(0.8 * 5) + 1 and int(0.9 * 5) + 1
    expected = ["train"] * 5 if wrap is list else ["train"] * 3 + ["test", "val"]
    assert [record.split for record in records] == expected


def test_equal_folder_names_in_two_folders_get_different_ids(tmp_path, listed):
    def edit(items):
        for item, parent in zip(items, ("A", "B")):
            (tmp_path / parent).mkdir()
            (tmp_path / "Chest_New" / f"Person {item['id']}").rename(tmp_path / parent / "CT")
            item["image_path"] = f"./{parent}/CT"
        return items

    write_ctrg(tmp_path, 4, as_list=False, edit=edit)
    assert len({record.volume_id for record in listed().records}) == 4


def grey(seed):
    """Grey [z, y, x] that increases towards superior, posterior and left."""
    z, y, x = np.meshgrid(*(np.arange(length) for length in SHAPE), indexing="ij")
    return (5 * z + 3 * y + x + seed).astype(np.uint8)


@pytest.mark.parametrize("axes", ["blank", "LPS", "RAS"])
def test_nifti_is_oriented_by_its_header_or_like_the_jpeg_slices(tmp_path, listed, axes):
    items = [{"id": f"{k}.nii.gz", "image_path": f"./Chest_nifti/{k}.nii.gz", "report": "Clear.", "result": ""} for k in range(3)]
    for number in range(3):
        path = tmp_path / "Chest_nifti" / f"{number}.nii.gz"
        if axes == "blank":  # slices from superior to inferior
            write_nifti(path, grey(number)[::-1].transpose(2, 1, 0), np.eye(4), blank=True)
        elif axes == "LPS":
            write_nifti(path, grey(number).transpose(2, 1, 0), LPS)
        else:
            write_nifti(path, grey(number)[:, ::-1, ::-1].transpose(2, 1, 0), np.diag([3.0, 3.0, 5.0, 1.0]))
    content = {"train": items[:2], "val": items[2:], "test": items[2:]}
    (tmp_path / "chest_ctrg_nitfy_ori_split.json").write_text(json.dumps(content))
    records = listed().records
    assert [(record.reader, record.files) for record in records] == [
        ("grey_nifti", (f"Chest_nifti/{number}.nii.gz",)) for number in range(3)
    ]
    raw = read_nifti_grey(records[1], tmp_path)
    np.testing.assert_array_equal(raw.voxels, grey(1))
    assert (raw.hu_source, raw.spacing_mm) == ("uint8_unknown_window", None if axes == "blank" else pytest.approx(SPACING))


@pytest.mark.parametrize(("factor", "code"), [(0, "constant_image"), (2, "grey_range"), (-1, "grey_range")])
def test_nifti_that_is_not_8_bit_grey_is_refused(tmp_path, listed, factor, code):
    write_nifti(tmp_path / "0.nii", (factor * grey(20).astype(np.int16)).transpose(2, 1, 0), LPS)
    (tmp_path / "annotation.json").write_text(json.dumps([{"image_path": "0.nii", "report": "x"}]))
    with pytest.raises(Refusal, match=code):
        read_nifti_grey(listed().records[0], tmp_path)


@pytest.mark.parametrize("suffix", [".JPG", ".jpeg"])
def test_jpeg_suffixes_vary_and_other_files_are_ignored(tmp_path, listed, suffix):
    write_ctrg(tmp_path, 1, as_list=False)
    folder = tmp_path / "Chest_New" / "Person 0"
    for path in [*folder.iterdir()]:
        path.rename(path.with_suffix(suffix))
    (folder / "report.txt").write_text("not an image")
    assert len(listed().records[0].files) == 20
