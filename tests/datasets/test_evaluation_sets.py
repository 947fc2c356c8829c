"""Lists as rules: what each takes, in which order, and how it tells what is missing."""

import json
import random

import pytest
from small_arrow import write_split

from mg3d.datasets import evaluation_sets
from mg3d.datasets.evaluation_sets import RULES, ListedVolume, evaluation_set, read_volumes, told


def volume(name, set_aside=""):
    split, patient, scan, reconstruction = name.split("_")
    study = f"ct_rate/{split}_{patient}_{scan}"
    return ListedVolume(f"ct_rate/{name}", study, f"ct_rate/{split}_{patient}", "ct_rate", split, int(reconstruction), set_aside)


NAMES = [
    "valid_2_a_2",
    "valid_2_a_10",
    "valid_2_b_1",
    "valid_10_a_1",
    "valid_10_aa_1",
    "valid_10_b_1",
    "train_1_a_1",
    "train_1_a_2",
]
VOLUMES = [volume(name, "no_chest" if name in {"valid_2_a_2", "valid_2_b_1"} else "") for name in NAMES]
CASES = [
    ListedVolume(f"ctrg/{k}", f"ctrg/{k}", f"ctrg/{k}", "ctrg", split, 1) for k, split in enumerate(("train", "val", "test"))
]
OUTSIDE = [ListedVolume(name, name, name, "rad_chestct", name[:3], 1) for name in ("trn00001", "val00001", "tst00001")]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ct_rate_valid", NAMES[:4] + ["valid_10_b_1", "valid_10_aa_1"]),
        ("ct_rate_valid_scans", ["valid_2_a_2", "valid_2_b_1", "valid_10_a_1", "valid_10_b_1", "valid_10_aa_1"]),
        ("ct_rate_valid_patients", ["valid_2_a_2", "valid_10_a_1"]),
        ("ct_rate_valid_chest", ["valid_2_a_10", "valid_10_a_1", "valid_10_b_1", "valid_10_aa_1"]),
        ("ct_rate_valid_chest_scans", ["valid_2_a_10", "valid_10_a_1", "valid_10_b_1", "valid_10_aa_1"]),
        ("ct_rate_train", ["train_1_a_1", "train_1_a_2"]),
        ("ct_rate_train_scans", ["train_1_a_1"]),
        ("ct_rate_train_chest", ["train_1_a_1", "train_1_a_2"]),
        ("ctrg_test", ["ctrg/1", "ctrg/2"]),
        ("rad_chestct", ["trn00001", "tst00001", "val00001"]),
        ("rad_chestct_test", ["tst00001"]),
    ],
)
def test_a_rule_takes_what_it_says_in_the_order_of_ids(name, expected):
    mixed = [*VOLUMES, *CASES, *OUTSIDE]
    random.Random(0).shuffle(mixed)
    assert [entry.volume_id.removeprefix("ct_rate/") for entry in evaluation_set(name, mixed)] == expected
    assert RULES[name].choose.__doc__
    assert RULES[name].source


def test_counts_of_the_whole_set_follow_from_one_another():
    expected = {name: rule.expected for name, rule in RULES.items()}
    assert expected["ct_rate_valid"] - 37 - 1 == expected["ct_rate_valid_chest"]
    assert expected["ct_rate_train"] - 752 - 3 - 1 == expected["ct_rate_train_chest"]
    assert expected["ct_rate_train"] + expected["ct_rate_valid"] == 50_188
    assert expected["ct_rate_train_scans"] + expected["ct_rate_valid_scans"] == 25_692
    assert len(range(1804)) - sum(place <= int(0.8 * 1804) for place in range(1804)) == expected["ctrg_test"]


def test_what_is_here_is_told_beside_what_is_expected():
    assert told("ct_rate_valid_scans", VOLUMES[3:5]) == "ct_rate_valid_scans: 1,564 expected on the full set, 2 here"
    found = evaluation_set("ct_rate_valid_patients", VOLUMES)
    assert told("ct_rate_valid_patients", found).endswith("2 here, of which 1 are set aside and have no voxels")
    assert told("ct_rate_valid_chest_scans", []) == "ct_rate_valid_chest_scans: no published count, 0 here"
    with pytest.raises(ValueError, match="no list 'valid'; choose from ct_rate_valid, "):
        evaluation_set("valid", VOLUMES)


def test_a_prepared_folder_gives_its_rows_and_what_was_set_aside(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no Arrow file"):
        read_volumes(tmp_path)
    write_split(tmp_path, "ct_rate", "test", patients=2, reconstructions=2)
    entries = [
        {"volume_id": "ct_rate/valid_7_a_1", "code": "no_chest"},
        {"volume_id": "ct_rate/test_0_0_0", "code": "unknown"},
        {"volume_id": "ctrg/0123", "code": "missing_file"},
    ]
    lines = "".join(json.dumps(entry) + "\n" for entry in entries)
    (tmp_path / "quarantine.jsonl").write_text(lines + '{"volume_id": "ct_r')
    found = read_volumes(tmp_path)
    stored = ["ct_rate/test_0_0_0", "ct_rate/test_0_0_1", "ct_rate/test_1_0_0", "ct_rate/test_1_0_1"]
    assert [entry.volume_id for entry in found] == [*stored, "ct_rate/valid_7_a_1"]
    assert found[-1] == ListedVolume(
        *("ct_rate/valid_7_a_1", "ct_rate/valid_7_a", "ct_rate/valid_7"), "ct_rate", "valid", 1, "no_chest"
    )
    assert evaluation_sets.evaluation_set("ct_rate_valid", found) == found[-1:]
