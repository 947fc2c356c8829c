"""CONTRIBUTING.md, section Language: phrases that do not occur in code, help, messages or documentation."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COVERED = ("mg3d", "tools", "prepro", "downstream", "run_scripts", "docs", "README.md", "main.py")
SUFFIXES = {".py", ".sh", ".md", ".html", ".js", ".css"}
REJECTED = {
    r"\b(un)?told\b": "reported, logged, given",
    r"\basked\b(?! questions)": "requested, requires, predicted",
    r"\bwrong answers?\b": "negatives",
    r"(?<!there )\b(is|are) no (?!longer\b|more\b)\w+": "is not a ..., there is no ...",
    r"\bsaid aloud\b": "logged",
    r"\bof its own\b": "separate, own",
    r"\bin turn\b": "alternately",
    r"\bso many\b": "the number of",
    r"\bgo(es)? on (by|with|from|where)\b": "continues, resumes",
    r"\bset(s)? aside\b": "excludes, quarantines",
    r"\b(by itself|by themselves)\b": "automatically, alone",
    r"\bmade anew\b|\bdrawn anew\b|\bread anew\b": "rebuilt, resampled, reread",
    r"\bbit by bit\b": "bit-exactly",
    r"\bwhose numbers are no numbers\b": "NaN or Inf",
    r"\bnobody knows\b": "unknown",
    r"\bwithout a word\b": "silently",
}
"""Pattern -> what to write instead."""


def tracked():
    names = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard", *COVERED], cwd=ROOT, text=True).split()
    return [ROOT / name for name in names if Path(name).suffix in SUFFIXES and "static" not in name]


@pytest.mark.parametrize("pattern", REJECTED)
def test_no_covered_file_contains_a_rejected_phrase(pattern):
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in tracked()
        if path.is_file()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(pattern, line, re.I)
    ]
    assert not found, f"write {REJECTED[pattern]}:\n" + "\n".join(found)


def test_the_patterns_find_what_they_reject():
    bad = "told; asked; wrong answer; it is no mask; said aloud; of its own; in turn; so many; goes on from; sets aside"
    assert sum(bool(re.search(pattern, bad)) for pattern in REJECTED) == 10
    assert not any(re.search(pattern, "there is no mask; is no longer read; replaced in place") for pattern in REJECTED)
