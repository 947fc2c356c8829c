import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from small_raw import SHAPE, write_ctrg

from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.readers.slices import read_slices
from mg3d.preparation.recipe import Recipe
from mg3d.preparation.sources.ctrg import _cases, natural_key, scan_ctrg
from mg3d.preparation.sources.pseudonyms import read_salt
from mg3d.preparation.voxels import make_volume

SALT = b"salt"


def scan(root, **choice):
    return scan_ctrg(root, **{"salt": SALT, "val_patients": 2, "seed": 0, **choice})


@pytest.mark.parametrize("as_list", [True, False])
def test_slices_are_stacked_from_inferior_to_superior(tmp_path, as_list):
    record = scan(write_ctrg(tmp_path, 3, as_list=as_list)).records[1]
    volume, spacing, rule, *_ = read_slices(record, tmp_path)
    assert volume.shape == (20, *SHAPE[1:])
    np.testing.assert_allclose(volume[:, 10, 10], np.arange(190, -1, -10), atol=2)
    assert (spacing, rule) == (None, "grey8")
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
    with pytest.raises(ValueError, match="use --split own"):
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
        items[2]["image_path"].append("./Chest_New/Person 2/Person 2_05_99_99.jpg")
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
