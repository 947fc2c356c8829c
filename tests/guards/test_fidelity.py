"""docs/fidelity.md names tests, settings and values of presets; each must be as it says."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

from mg3d.settings.parse import defaults
from mg3d.settings.presets import PRESETS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "fidelity.md").read_text()
TESTS = sorted(set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", TEXT)))
COLUMNS = ("mg3d", "mg3d_intended", "mg3d_released")


def table():
    """Rows (setting, value in each of COLUMNS) of the table of presets."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if line.startswith("| `")]
    return [row for row in rows if len(row) == 2 + len(COLUMNS)]


def numbered(letter):
    return Counter(int(number) for number in re.findall(rf"\b{letter}(\d+)\. ", TEXT))


@pytest.mark.parametrize(("file", "test"), TESTS, ids="::".join)
def test_every_test_it_names_exists(file, test):
    names = {node.name for node in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(node, ast.FunctionDef)}
    assert not test or test in names


def test_it_names_a_test_for_every_line():
    """Every numbered difference and defect ends in the test that shows it, or says why there is none."""
    for line in re.split(r"\n\* |\n\| |\n\n", TEXT):
        if re.search(r"\b[FD]\d+\. ", line):
            assert "`tests/" in line or "Nothing to show" in line, line


@pytest.mark.parametrize("row", table(), ids=lambda row: row[0].strip("`"))
def test_the_table_says_what_the_presets_set(row):
    setting, *values, _ = row
    assert values == [str(PRESETS[preset][setting.strip("`")]) for preset in COLUMNS]


def test_the_table_holds_every_setting_in_which_the_presets_differ():
    differing = {name for name in PRESETS["mg3d"] if len({str(PRESETS[preset][name]) for preset in COLUMNS}) > 1}
    assert {row[0].strip("`") for row in table()} == differing


def test_every_setting_it_names_exists():
    known = {*defaults(), *PRESETS}
    for name in re.findall(r"`([a-z_0-9]+)=", TEXT):
        assert name in known, name


def test_all_thirty_defects_are_told_once():
    assert numbered("D") == Counter(range(1, 31))


def test_differences_are_numbered_without_a_gap():
    found = numbered("F")
    assert found == Counter(range(1, max(found) + 1))


def test_numbers_named_in_the_code_are_told_here():
    for path in (ROOT / "mg3d").rglob("*.py"):
        for letter, number in re.findall(r"fidelity: ([FD])(\d+)", path.read_text()):
            assert int(number) in numbered(letter), f"{path.name}: {letter}{number}"
