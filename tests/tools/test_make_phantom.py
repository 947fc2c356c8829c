import importlib.util
import json
from pathlib import Path

import pytest

from mg3d.phantom.generate import PhantomSettings

SPEC = importlib.util.spec_from_file_location("make_phantom", Path(__file__).parents[2] / "tools/make_phantom.py")
TOOL = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(TOOL)
SMALL = ["--train-patients", "4", "--valid-patients", "2", "--ctrg-cases", "1", "--grid", "20", "--workers", "1"]


def test_shares_of_second_scans_and_reconstructions_are_what_is_asked_for(tmp_path, capsys):
    assert TOOL.main([*SMALL, "--out", str(tmp_path), "--second-scans", "1", "--second-reconstructions", "1", "--masks"]) == 0
    assert "13 synthetic studies, 25 volumes" in capsys.readouterr().out  # 6 patients x 2 scans x 2, and one case of CTRG
    assert len(list(tmp_path.glob("ct_rate/dataset/*/*/*_b/*_2.nii.gz"))) == 6
    assert len(list(tmp_path.glob("truth/masks/*/*.nii.gz"))) == 25


def test_without_an_option_the_set_is_the_default_one(tmp_path):
    assert TOOL.main([*SMALL, "--out", str(tmp_path)]) == 0
    kept = json.loads((tmp_path / "phantom.json").read_text())["settings"]
    defaults = PhantomSettings()
    assert (kept["second_scans"], kept["second_reconstructions"]) == (0.05, 0.15)
    assert (defaults.second_scans, defaults.second_reconstructions) == (0.05, 0.15)
    assert not (tmp_path / "truth" / "masks").exists()


@pytest.mark.parametrize("share", ["1.5", "-0.1", "nan"])
def test_what_is_no_share_is_refused(tmp_path, capsys, share):
    with pytest.raises(SystemExit):
        TOOL.main([*SMALL, "--out", str(tmp_path), f"--second-scans={share}"])
    assert "must lie between 0 and 1" in capsys.readouterr().err


def test_faults_are_planted_once_and_listed(tmp_path, capsys):
    arguments = [*SMALL, "--out", str(tmp_path), "--faults", "truncated_gzip", "blank_age"]
    assert TOOL.main(arguments) == 0
    assert "2 kinds of faults are planted" in capsys.readouterr().out
    planted = json.loads((tmp_path / "faults.json").read_text())
    assert set(planted) == {"truncated_gzip", "blank_age"}
    sizes = {path: path.stat().st_size for path in tmp_path.rglob("*.nii.gz")}
    assert TOOL.main(arguments) == 0
    assert {path: path.stat().st_size for path in tmp_path.rglob("*.nii.gz")} == sizes
    assert json.loads((tmp_path / "faults.json").read_text()) == planted


def test_a_fault_that_does_not_exist_is_told_before_anything_is_made(tmp_path, capsys):
    assert TOOL.main([*SMALL, "--out", str(tmp_path / "set"), "--faults", "rust"]) == 2
    assert "there is no fault rust; choose from: all, nan_spacing" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()
