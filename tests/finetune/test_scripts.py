"""prepro/make_arrow.py."""

import re

import numpy as np
import pandas as pd
import pytest
from downstream.folders import load, script
from PIL import Image

from mg3d.finetune import arrows
from mg3d.finetune.images import read_image
from mg3d.finetune.run import run

MAKE_ARROW = script("make_arrow")


def write_table(tmp_path, rows=6):
    """Scans of STOIC2021's kind in one's own table; patient 1 has two scans."""
    for number in range(rows):
        np.save(tmp_path / f"scan{number}.npy", np.random.default_rng(number).integers(-1000, 300, (40, 36, 32), np.int16))
    table = pd.DataFrame({
        "image": [f"scan{number}.npy" for number in range(rows)], "patient_id": ["1", "1", *map(str, range(2, rows))],
        "probCOVID": [1, 1, 1, 0, 0, 1][:rows], "probSevere": ["1", "0", "0", "", "", "1"][:rows],
        "fold": [0, 0, 1, 1, 2, 2][:rows],
    })  # fmt: skip
    table.to_csv(tmp_path / "own.csv", index=False)
    return tmp_path / "own.csv"


def test_a_custom_table_becomes_a_data_root(tmp_path):
    out = tmp_path / "out" / "own.arrow"
    assert MAKE_ARROW["main"]([str(write_table(tmp_path)), "folder=stoic2021", f"out={out}"]) == 0
    cases = arrows.read_cases(out)
    assert [case.case_id for case in cases] == [f"scan{number}" for number in range(6)]
    assert [case.target for case in cases] == [(1, 1), (1, 0), (1, 0), (0, -1), (0, -1), (1, 1)]
    assert [case.fold for case in cases] == [0, 0, 1, 1, 2, 2]
    assert cases[1].patient_id == "1"
    assert np.array_equal(read_image(cases[4].image)[0], np.load(tmp_path / "scan4.npy"))


@pytest.mark.slow
def test_a_run_trains_on_a_custom_table(tmp_path):
    out = MAKE_ARROW["make"](write_table(tmp_path), {"folder": "stoic2021", "out": tmp_path / "own.arrow"})
    arguments = [f"data_root={out}", f"log_dir={tmp_path}", "run_name=r", "epochs=1", "accelerator=cpu", "encoder=tiny"]
    assert run(load("stoic2021").TASK, arguments) == 0


def test_exclusive_targets_and_masks_come_from_their_columns(tmp_path):
    write_table(tmp_path, 2)
    (tmp_path / "t.csv").write_text("image,target,mask,split\nscan0.npy,NCP,scan1.npy,test\nscan1.npy,Normal,,\n")
    file = MAKE_ARROW["make"](tmp_path / "t.csv", {"folder": "cc-ccii", "out": tmp_path / "t.arrow"})
    one, two = arrows.read_cases(file)
    assert (one.target, one.split, two.target, two.split, two.mask) == ((2,), "test", (0,), "train", None)
    assert np.array_equal(read_image(one.mask), read_image(two.image))


def test_slices_are_sorted_by_the_numbers_in_their_names(tmp_path):
    for grey, name in enumerate(("s2.png", "s10.png", "s010.png", "s100.PNG")):
        Image.fromarray(np.full((3, 4), 10 * grey, np.uint8)).save(tmp_path / name)
    (tmp_path / ".s1.png").write_bytes(b"no picture")
    (tmp_path / "t.csv").write_text("image,target\n.,CP\n")
    file = MAKE_ARROW["make"](tmp_path / "t.csv", {"folder": "cc-ccii", "out": tmp_path / "t.arrow"})
    assert read_image(arrows.read_cases(file)[0].image)[0, :, 0, 0].tolist() == [0, 20, 10, 30]  # equal numbers: by the name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("picture\na.npy\n", "has no column image"),
        ("image,colour\na.npy,red\n", r"the unknown columns \['colour'\]"),
        ("image,probCOVID\na.npy,3\n", r"line 2: the targets are \(3, -1\)"),
        ("image,probCOVID\na.npy,1\nb.npy,yes\n", "line 3: probCOVID is 'yes'; expected an integer"),
        ("image,split\na.npy,val\n", "line 2: split is 'val'"),
        ("image,fold\na.npy,1\nb.npy,5\n", "line 3: fold is 5; expected 0 to 4"),
        ("image\na.npy\na.npy\n", "1 case names are not unique"),
        ("image\na.npy\n", "none of the 1 cases could be read"),
    ],
)
def test_a_bad_table_is_one_sentence(tmp_path, capsys, text, message):
    (tmp_path / "t.csv").write_text(text)
    assert MAKE_ARROW["main"]([str(tmp_path / "t.csv"), "folder=stoic2021", f"out={tmp_path / 't.arrow'}"]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1
    assert not (tmp_path / "t.arrow").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["folder=stoic2021"], "out=... is missing"),
        (["folder=CT-RATE", "out=a.arrow"], "folder=CT-RATE: expected one of"),
        (["folder=stoic2021", "out=a.bin"], "must end in .arrow"),
        (["folder=stoic2021", "out=a.arrow", "x=1"], "x=... is unknown"),
    ],
)
def test_bad_arguments_are_one_sentence(tmp_path, capsys, arguments, message):
    assert MAKE_ARROW["main"]([str(write_table(tmp_path)), *arguments]) == 2
    assert message in capsys.readouterr().err
