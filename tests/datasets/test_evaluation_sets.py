import json
import random

import pytest
from small_arrow import write_split

from mg3d.datasets.evaluation_sets import EVALUATION_SETS, CatalogVolume, evaluation_set, read_volumes


def volume(name, code=""):
    split, patient, scan, reconstruction = name.split("_")
    patient = f"ct_rate/{split}_{patient}"
    return CatalogVolume(f"ct_rate/{name}", f"{patient}_{scan}", patient, "ct_rate", split, int(reconstruction), code)


VALID = ["valid_2_a_2", "valid_2_a_10", "valid_2_b_1", "valid_10_a_1", "valid_10_aa_1", "valid_10_b_1"]
NAMES = [*VALID, "train_1_a_1", "train_1_a_2"]
VOLUMES = [volume(name, "no_chest" if name in {"valid_2_a_2", "valid_2_b_1"} else "") for name in NAMES]
CTRG = [CatalogVolume(*[f"ctrg/{k}"] * 3, "ctrg", split, 1) for k, split in enumerate(("train", "val", "test"))]
RAD = [CatalogVolume(*[name] * 3, "rad_chestct", name[:3], 1) for name in ("trn00001", "val00001", "tst00001")]


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
def test_each_set_selects_its_volumes_in_natural_order(name, expected):
    mixed = [*VOLUMES, *CTRG, *RAD]
    random.Random(0).shuffle(mixed)
    assert [entry.volume_id.removeprefix("ct_rate/") for entry in evaluation_set(name, mixed)] == expected


def test_published_sizes_are_consistent():
    size = {name: entry.expected_size for name, entry in EVALUATION_SETS.items()}
    assert size["ct_rate_valid"] - 37 - 1 == size["ct_rate_valid_chest"]
    assert size["ct_rate_train"] - 752 - 3 - 1 == size["ct_rate_train_chest"]
    assert size["ct_rate_train"] + size["ct_rate_valid"] == 50_188
    assert size["ct_rate_train_scans"] + size["ct_rate_valid_scans"] == 25_692
    assert 1804 - sum(k <= int(0.8 * 1804) for k in range(1804)) == size["ctrg_test"]


def test_a_set_is_described_by_its_expected_and_actual_size():
    def describe(name, selected):
        return EVALUATION_SETS[name].describe(name, selected)

    assert describe("ct_rate_valid_scans", VOLUMES[3:5]) == "ct_rate_valid_scans: 1,564 expected on the full set, 2 here"
    patients = evaluation_set("ct_rate_valid_patients", VOLUMES)
    assert describe("ct_rate_valid_patients", patients).endswith("2 here, 1 of them quarantined (no voxels)")
    assert describe("ct_rate_valid_chest_scans", []) == "ct_rate_valid_chest_scans: no published count, 0 here"
    with pytest.raises(ValueError, match="unknown evaluation set 'valid'; choose from ct_rate_valid, "):
        evaluation_set("valid", VOLUMES)


def test_a_prepared_folder_contains_its_rows_and_its_quarantined_volumes(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no Arrow files"):
        read_volumes(tmp_path)
    write_split(tmp_path, "ct_rate", "test", patients=2, reconstructions=2)
    entries = [
        {"volume_id": "ct_rate/valid_7_a_1", "code": "no_chest"},
        {"volume_id": "ct_rate/test_0_0_0", "code": "unknown"},
        {"volume_id": "ctrg/0123", "code": "missing_file"},
    ]
    lines = "".join(json.dumps(entry) + "\n" for entry in entries)
    (tmp_path / "quarantine.jsonl").write_text(lines + '{"volume_id": "ct_r')
    volumes = read_volumes(tmp_path)
    stored = ["ct_rate/test_0_0_0", "ct_rate/test_0_0_1", "ct_rate/test_1_0_0", "ct_rate/test_1_0_1"]
    assert [entry.volume_id for entry in volumes] == [*stored, "ct_rate/valid_7_a_1"]
    assert volumes[-1] == volume("valid_7_a_1", "no_chest")
    assert evaluation_set("ct_rate_valid", volumes) == volumes[-1:]
