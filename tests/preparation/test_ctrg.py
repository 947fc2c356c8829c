import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from small_raw import LPS, SHAPE, SPACING, write_ctrg, write_nifti

from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.readers.jpeg_slices import read_jpeg_slices
from mg3d.preparation.readers.nifti import read_nifti_grey
from mg3d.preparation.recipe import Recipe
from mg3d.preparation.sources.ctrg import _cases, left_out, list_ctrg, natural_key
from mg3d.preparation.sources.pseudonyms import read_salt
from mg3d.preparation.voxels import make_volume

SALT = b"salt"


def scan(root, **choice):
    return list_ctrg(root, **{"salt": SALT, "val_patients": 2, "seed": 0, **choice})


@pytest.mark.parametrize("as_list", [True, False])
def test_slices_are_stacked_from_inferior_to_superior(tmp_path, as_list):
    record = scan(write_ctrg(tmp_path, 3, as_list=as_list)).records[1]
    volume, spacing, rule, *_ = read_jpeg_slices(record, tmp_path)
    assert volume.shape == (20, *SHAPE[1:])
    np.testing.assert_allclose(volume[:, 10, 10], np.arange(190, -1, -10), atol=2)
    assert (spacing, rule) == (None, "uint8_unknown_window")
    image, facts = make_volume(record, tmp_path, Recipe(shape=(32, 24, 32)))
    assert image.dtype == np.uint8
    assert image[0].mean() > image[-1].mean()
    assert facts["spacing_mm"] is None


def test_numbers_in_names_sort_by_value():
    names = [f"a_05_{k}_{k}.jpg" for k in range(1, 120)]
    mixed = random.Random(0).sample(names, len(names))
    assert sorted(mixed, key=natural_key) == names


def test_no_name_of_a_person_leaves_the_scan(tmp_path):
    found = scan(write_ctrg(tmp_path, 12))
    for record in found.records:
        assert "Person" not in repr(record)
        assert "Person" not in record.source + record.volume_id
    assert {record.volume_id for record in found.records}.isdisjoint(
        {record.volume_id for record in scan(tmp_path, salt=b"other").records}
    )


def test_salt_is_drawn_once_and_private(tmp_path):
    path = tmp_path / "out" / "salt.txt"
    assert read_salt(path) == read_salt(path)
    assert path.stat().st_mode & 0o077 == 0


def test_a_salt_is_private_from_its_first_byte_and_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "salt.txt"
    seen = []

    def killed(descriptor):
        seen.extend(file.stat().st_mode & 0o777 for file in tmp_path.iterdir())
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mg3d.files.os.fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            read_salt(path)
    assert seen == [0o600]
    assert not list(tmp_path.iterdir())
    assert len(read_salt(path)) == 32


@pytest.mark.parametrize("content", [b"", b"\n", b"0123456789abcde\n", b"x" * 65])
def test_a_salt_that_hides_nothing_is_refused(tmp_path, content):
    path = tmp_path / "salt.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="16 to 64 are expected; bring back"):
        read_salt(path)
    assert path.read_bytes() == content


def test_a_folder_that_may_not_be_read_is_set_aside_without_its_name(tmp_path, monkeypatch):
    write_ctrg(tmp_path, 6, as_list=False)
    listed = Path.iterdir

    def iterdir(self):
        if self.name == "Person 2":
            raise PermissionError(13, "Permission denied", str(self))
        return listed(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    found = scan(tmp_path)
    assert len(found.records) == 5
    assert [(entry.code, entry.detail) for entry in found.refused] == [("unreadable", "PermissionError")]


def test_published_order_gives_the_published_counts(tmp_path):
    items = [{"image_path": f"Chest/{k}", "report": "x"} for k in range(1804)]
    (tmp_path / "annotation.json").write_text(json.dumps(items))
    assert Counter(case.official_split for case in _cases(tmp_path, None)) == {"train": 1444, "test": 180, "val": 180}


def test_original_keeps_the_published_splits(tmp_path):
    records = scan(write_ctrg(tmp_path, 20), split="original").records
    assert [record.split for record in records] == ["train"] * 17 + ["test"] * 2 + ["val"]


def test_own_carves_val_out_of_train_and_tests_on_the_rest(tmp_path):
    records = scan(write_ctrg(tmp_path, 20), val_patients=1).records
    assert Counter(record.split for record in records[:17]) == {"train": 16, "val": 1}
    assert {record.split for record in records[17:]} == {"test"}


def test_a_dict_whose_val_repeats_test_is_read_by_own_and_refused_by_original(tmp_path):
    def edit(items):
        return {"train": items[:10], "val": items[10:], "test": items[10:]}

    write_ctrg(tmp_path, 12, edit=edit)
    found = scan(tmp_path)
    assert Counter(record.split for record in found.records) == {"train": 9, "val": 1, "test": 2}
    assert any("val and test of the annotation are the same 2 cases" in note for note in found.notes)
    with pytest.raises(ValueError, match="use --ctrg-split resplit"):
        scan(tmp_path, split="original")


def test_absolute_paths_of_another_machine_are_found_by_their_end(tmp_path):
    def edit(items):
        for item in items:
            item["image_path"] = [path.replace("./", "/data/of/somebody/") for path in item["image_path"]]
        return items

    found = scan(write_ctrg(tmp_path, 5, edit=edit))
    assert len(found.records) == 5


def test_missing_folders_slices_and_reports(tmp_path):
    def edit(items):
        items[0] |= {"image_path": "./Chest_New/Nobody"}
        items[1] |= {"report": "", "result": "Not given."}
        items[2]["image_path"].append("./Chest_New/Person 2/Person 2_05_21_21.jpg")
        return items

    found = scan(write_ctrg(tmp_path, 6, edit=edit))
    assert sorted(entry.code for entry in found.refused) == ["missing_file", "report_missing"]
    with pytest.raises(Refusal, match="missing_file"):
        make_volume(found.records[0], tmp_path, Recipe(shape=(32, 24, 32)))


def test_a_torn_slice_is_refused_without_its_name(tmp_path):
    record = scan(write_ctrg(tmp_path, 5)).records[0]
    path = tmp_path / record.files[4]
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(Refusal) as caught:
        make_volume(record, tmp_path, Recipe(shape=(32, 24, 32)))
    assert caught.value.code == "jpeg_truncated"
    assert "Person" not in caught.value.detail


def named(pattern, numbers):
    return [pattern.format(number) for number in numbers]


WHOLE = range(1, 25)


@pytest.mark.parametrize(
    "names",
    [
        named("P_05_{0:04d}_{0:04d}.jpg", WHOLE),
        named("P_05_{0}_{0}.jpg", range(7, 31)),
        named("{0}.jpg", range(0, 90, 3)),
        named("{0}_05_512.jpg", WHOLE),
        named("scan{0}.jpg", [10**25, 10**25 + 1, 10**25 + 2]),
        named("P_05_{0}.jpg", WHOLE) + named("P_06_{0}.jpg", WHOLE),
        [*named("P_05_{0}.jpg", WHOLE), "localizer.jpg"],
        ["one.jpg"],
        [],
    ],
)
def test_numbers_without_a_gap_or_that_tell_nothing_leave_nothing_out(names):
    assert left_out(names) is None


@pytest.mark.parametrize(
    ("names", "lost", "gaps"),
    [
        (named("P_05_{0:04d}_{0:04d}.jpg", [*range(1, 10), *range(12, 25)]), 2, 1),
        (named("{0}.jpg", [1, 2, 3, 5, 6, 9, 10, 11]), 3, 2),
        (named("{0}_05_512.jpg", [1, 2, 3, 5, 6, 7]), 1, 1),
        (named("{0}.jpg", [0, 3, 6, 12, 15]), 1, 1),
        (named("P_05_{0}.jpg", WHOLE) + named("P_06_{0}.jpg", [1, 2, 4]), 1, 1),
    ],
)
def test_numbers_that_are_left_out_are_counted(names, lost, gaps):
    assert left_out(names) == f"{lost} numbers left out in {gaps} gaps, {len(names)} slices are there"


@pytest.mark.parametrize("as_list", [True, False])
def test_a_case_with_a_gap_is_set_aside_and_its_neighbours_stay(tmp_path, as_list):
    def edit(items):
        for number in (9, 10, 11):
            (tmp_path / "Chest_New" / "Person 2" / f"Person 2_05_{number}_{number}.jpg").unlink()
        if as_list:
            items[2]["image_path"] = [path for path in items[2]["image_path"] if (tmp_path / path).is_file()]
        return items

    found = scan(write_ctrg(tmp_path, 5, slices=24, as_list=as_list, edit=edit))
    assert [(entry.code, entry.stage, entry.detail) for entry in found.refused] == [
        ("missing_slices", "scan", "3 numbers left out in 1 gaps, 21 slices are there")
    ]
    assert len(found.records) == 4


def test_names_whose_numbers_are_equal_have_one_order_on_every_machine(tmp_path, monkeypatch):
    write_ctrg(tmp_path, 1, as_list=False)
    folder = tmp_path / "Chest_New" / "Person 0"
    (folder / "Person 0_05_7_7.jpg").rename(folder / "Person 0_05_06_6.jpg")
    listed = Path.iterdir
    orders = []
    for seed in range(9):
        monkeypatch.setattr(Path, "iterdir", lambda self, seed=seed: random.Random(seed).sample([*listed(self)], 20))
        orders.append(_record_files(tmp_path, monkeypatch))
    assert len(orders[0]) == 20
    assert len(set(orders)) == 1


def _record_files(root, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("mg3d.preparation.sources.ctrg.left_out", lambda names: None)
        return scan(root).records[0].files


@pytest.mark.parametrize("wrap", [list, lambda items: {"train": items[:3], "test": items[3:4], "val": items[4:]}])
@pytest.mark.parametrize("keys", [("report", "result"), ("findings", "impression"), ("report", None)])
def test_both_shapes_of_the_annotation_and_both_names_of_its_texts(tmp_path, wrap, keys):
    def edit(items):
        texts = [(item.pop("report"), item.pop("result")) for item in items]
        for item, text in zip(items, texts):
            item |= {key: part for key, part in zip(keys, text) if key}
        return wrap([{**item, "clip_indices": [1, 2]} for item in items])

    records = scan(write_ctrg(tmp_path, 5, edit=edit), split="original").records
    assert [record.findings for record in records] == [f"Case {case} lung clear, heart large." for case in range(5)]
    assert {record.impression for record in records} == {"Normal." if keys[1] else None}
    # a flat list of five is cut after int(0.8 * 5) + 1 and int(0.9 * 5) + 1
    expected = ["train"] * 5 if wrap is list else ["train"] * 3 + ["test", "val"]
    assert [record.split for record in records] == expected


def test_an_annotation_with_a_mark_of_its_encoding_is_read(tmp_path):
    path = write_ctrg(tmp_path, 4) / "chest_ctrg_jpg.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(scan(tmp_path).records) == 4


def test_equal_names_of_folders_in_two_places_have_ids_of_their_own(tmp_path):
    def edit(items):
        for item, place in zip(items, ("A", "B")):
            (tmp_path / place).mkdir()
            (tmp_path / "Chest_New" / f"Person {item['id']}").rename(tmp_path / place / "CT")
            item["image_path"] = f"./{place}/CT"
        return items

    records = scan(write_ctrg(tmp_path, 4, as_list=False, edit=edit)).records
    assert len({record.volume_id for record in records}) == len({record.patient_id for record in records}) == 4


def grey(seed):
    """Grey [z, y, x] that grows towards superior, posterior and left."""
    z, y, x = np.meshgrid(*(np.arange(length) for length in SHAPE), indexing="ij")
    return (5 * z + 3 * y + x + seed).astype(np.uint8)


@pytest.mark.parametrize("form", ["blank", "LPS", "RAS"])
def test_ctrg_as_nifti_has_the_axes_of_the_pictures(tmp_path, form):
    items = [{"id": f"{k}.nii.gz", "image_path": f"./Chest_nifti/{k}.nii.gz", "report": "Clear.", "result": ""} for k in range(3)]
    for number in range(3):
        path = tmp_path / "Chest_nifti" / f"{number}.nii.gz"
        if form == "blank":  # slices from superior to inferior, as the pictures
            write_nifti(path, grey(number)[::-1].transpose(2, 1, 0), np.eye(4), blank=True)
        elif form == "LPS":
            write_nifti(path, grey(number).transpose(2, 1, 0), LPS)
        else:
            write_nifti(path, grey(number)[:, ::-1, ::-1].transpose(2, 1, 0), np.diag([3.0, 3.0, 5.0, 1.0]))
    content = {"train": items[:2], "val": items[2:], "test": items[2:]}
    (tmp_path / "chest_ctrg_nitfy_ori_split.json").write_text(json.dumps(content))
    found = scan(tmp_path)
    assert [(record.reader, record.files) for record in found.records] == [
        ("grey_nifti", (f"Chest_nifti/{number}.nii.gz",)) for number in range(3)
    ]
    raw = read_nifti_grey(found.records[1], tmp_path)
    np.testing.assert_array_equal(raw.voxels, grey(1))
    assert (raw.hu_source, raw.spacing_mm) == ("uint8_unknown_window", None if form == "blank" else pytest.approx(SPACING))


@pytest.mark.parametrize(("factor", "code"), [(0, "constant_image"), (2, "grey_range"), (-1, "grey_range")])
def test_a_nifti_that_is_no_picture_is_refused(tmp_path, factor, code):
    write_nifti(tmp_path / "0.nii", (factor * grey(20).astype(np.int16)).transpose(2, 1, 0), LPS)
    (tmp_path / "annotation.json").write_text(json.dumps([{"image_path": "0.nii", "report": "x"}]))
    with pytest.raises(Refusal, match=code):
        read_nifti_grey(scan(tmp_path).records[0], tmp_path)


@pytest.mark.parametrize("suffix", [".jpg", ".JPG", ".jpeg"])
def test_names_of_pictures_may_end_in_several_ways_and_other_files_do_not_count(tmp_path, suffix):
    write_ctrg(tmp_path, 1, as_list=False)
    folder = tmp_path / "Chest_New" / "Person 0"
    for path in [*folder.iterdir()]:
        path.rename(path.with_suffix(suffix))
    (folder / "report.txt").write_text("no picture")
    assert len(scan(tmp_path).records[0].files) == 20
