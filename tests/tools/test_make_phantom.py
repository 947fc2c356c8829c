import importlib.util
import json
from pathlib import Path

import pytest

from mg3d.phantom.generate import PhantomSettings

SPEC = importlib.util.spec_from_file_location("make_phantom", Path(__file__).parents[2] / "tools/make_phantom.py")
TOOL = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(TOOL)
SMALL = ["--train-patients", "4", "--valid-patients", "2", "--ctrg-cases", "1", "--grid", "20", "--workers", "1"]


def test_fractions_of_second_scans_and_reconstructions(tmp_path, capsys):
    assert TOOL.main([*SMALL, "--out", str(tmp_path), "--second-scans", "1", "--second-reconstructions", "1", "--masks"]) == 0
    # 6 patients x 2 scans x 2 reconstructions, and one case of CTRG
    assert "holds 13 synthetic studies (25 volumes) with ground truth; 13 of them are new" in capsys.readouterr().out
    assert len(list(tmp_path.glob("ct_rate/dataset/*/*/*_b/*_2.nii.gz"))) == 6
    assert len(list(tmp_path.glob("truth/masks/*/*.nii.gz"))) == 25


def test_default_settings_are_stored_and_a_second_run_writes_nothing(tmp_path, capsys):
    assert TOOL.main([*SMALL, "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert TOOL.main([*SMALL, "--out", str(tmp_path)]) == 0
    assert "; 0 of them are new" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    stored = json.loads((tmp_path / "phantom.json").read_text())["settings"]
    defaults = PhantomSettings()
    assert (stored["second_scans"], stored["second_reconstructions"]) == (0.05, 0.15)
    assert (defaults.second_scans, defaults.second_reconstructions) == (0.05, 0.15)
    assert not (tmp_path / "truth" / "masks").exists()


@pytest.mark.parametrize("fraction", ["1.5", "-0.1", "nan"])
def test_invalid_fractions_are_refused(tmp_path, capsys, fraction):
    with pytest.raises(SystemExit):
        TOOL.main([*SMALL, "--out", str(tmp_path), f"--second-scans={fraction}"])
    assert "is not between 0 and 1" in capsys.readouterr().err
