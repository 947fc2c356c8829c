import json

import pytest
from small_raw import CtRateTree

from mg3d.preparation.recipe import Recipe
from mg3d.preparation.run import PrepareOptions, prepare
from tools import evaluation_sets


@pytest.fixture
def prepared(tmp_path):
    tree = CtRateTree(tmp_path / "raw")
    for name in ("train_1_a_1", "train_2_a_1", "valid_1_a_1", "valid_1_a_2", "valid_2_a_1"):
        tree.add(name)
    tree.no_chest.append("valid_1_a_1")
    recipe = Recipe(shape=(32, 24, 32))
    prepare(PrepareOptions(out=tmp_path / "out", roots={"ct_rate": tree.write()}, recipe=recipe, val_patients=1))
    return tmp_path / "out"


def test_actual_and_expected_sizes_of_all_sets_are_printed(prepared, capsys):
    assert evaluation_sets.main([str(prepared)]) == 0
    said = capsys.readouterr().out
    assert "ct_rate_valid: 3,039 expected on the full set, 3 here, 1 of them quarantined (no voxels)" in said
    assert "ct_rate_valid_scans: 1,564 expected on the full set, 2 here" in said
    assert "ct_rate_valid_chest: 3,001 expected on the full set, 2 here (" in said
    assert "ct_rate_train: 47,149 expected on the full set, 2 here (" in said


def test_ids_are_printed_or_written(prepared, tmp_path, capsys):
    assert evaluation_sets.main([str(prepared), "--set", "ct_rate_valid_scans"]) == 0
    assert capsys.readouterr().out.split() == ["ct_rate/valid_1_a_1", "ct_rate/valid_2_a_1"]
    out = tmp_path / "list.txt"
    assert evaluation_sets.main([str(prepared), "--set", "ct_rate_valid_scans", "--stored", "--out", str(out)]) == 0
    assert out.read_text() == "ct_rate/valid_2_a_1\n"
    assert "1,564 expected on the full set, 2 here" in capsys.readouterr().err
    assert [json.loads(line)["code"] for line in (prepared / "quarantine.jsonl").read_text().splitlines()] == ["no_chest"]


def test_errors_are_reported(prepared, tmp_path, capsys):
    assert evaluation_sets.main([str(tmp_path)]) == 2
    assert "has no Arrow files" in capsys.readouterr().err
    assert evaluation_sets.main([str(prepared), "--set", "valid"]) == 2
    assert "unknown evaluation set 'valid'" in capsys.readouterr().err
