"""Sentences, clauses and sections by example, by property, and against the clauses of the released preparation."""

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mg3d.glossary import LABELS
from mg3d.phantom.report import write_report
from mg3d.report_sections import clean_section
from mg3d.sentence_spans import build_report, normalize_text, split_clauses, split_sentences


def pieces(text, split):
    return [text[start:end] for start, end in split(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The heart is normal. No effusion.", ["The heart is normal.", "No effusion."]),
        ("A 0.8 cm nodule, see e.g. Fig. 3, is new.", ["A 0.8 cm nodule, see e.g. Fig. 3, is new."]),
        ("Emphysema  Pleural effusion", ["Emphysema", "Pleural effusion"]),
        ("One\nTwo", ["One", "Two"]),
        (" ... ", []),
        ("1. Emphysema  2. Hernia", ["1. Emphysema", "2. Hernia"]),
        ("1. Emphysema.\n2) Hernia", ["1. Emphysema.", "2) Hernia"]),
        ("- Emphysema\n* Hernia\n– Nodule", ["Emphysema", "Hernia", "Nodule"]),
        ("• Emphysema • Hernia", ["Emphysema", "Hernia"]),
        ("A node of 1.5 x 2.0 cm (0.8 cm before).", ["A node of 1.5 x 2.0 cm (0.8 cm before)."]),
        ("3.Subcarinal node. 4.Hilar node.", ["3.Subcarinal node.", "4.Hilar node."]),
        ("By Dr. Who vs. Before, cf. Smith et al. Approx. 5 mm.", ["By Dr. Who vs. Before, cf. Smith et al. Approx. 5 mm."]),
        ("See no. 3 and Fig. 2. Any node? No. Heart large.", ["See no. 3 and Fig. 2.", "Any node?", "No.", "Heart large."]),
        ("Fracture of the T4. Vertebra. L. Adrenal nodule.", ["Fracture of the T4. Vertebra.", "L. Adrenal nodule."]),
        ("Fracture at T4. No other. The 9. Rib is thin.", ["Fracture at T4.", "No other.", "The 9. Rib is thin."]),
        ("A nodule of 5 mm. Another of 2 cm. Stable", ["A nodule of 5 mm.", "Another of 2 cm.", "Stable"]),
        ("Clear... Heart large… Node (old.) Hernia", ["Clear...", "Heart large…", "Node (old.)", "Hernia"]),
        ("Kalp büyük. Şüpheli nodül. ılımlı sıvı. İzlenmedi.", ["Kalp büyük.", "Şüpheli nodül.", "ılımlı sıvı.", "İzlenmedi."]),
        ("Approx. şüpheli 5 mm. çok küçük", ["Approx. şüpheli 5 mm.", "çok küçük"]),
    ],
)
def test_sentences(text, expected):
    assert pieces(text, split_sentences) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Nodule (solid, apical), 5 mm; no effusion.", ["Nodule (solid, apical),", "5 mm;", "no effusion."]),
        ("Node 1,5 cm, old; stable", ["Node 1,5 cm,", "old;", "stable"]),
        ("Node (left, old, and the hilum, is clear.", ["Node (left,", "old,", "and the hilum,", "is clear."]),
        ("Node (a, (b, c), d), e", ["Node (a, (b, c), d),", "e"]),
    ],
)
def test_clauses(text, expected):
    assert pieces(text, split_clauses) == expected


def test_spans_index_the_report_and_know_their_section():
    report, spans = build_report("Heart is large, lungs clear.", "Cardiomegaly")
    assert report == "Heart is large, lungs clear.\nCardiomegaly"
    assert [(report[span.start : span.end], span.section, span.kind) for span in spans] == [
        ("Heart is large, lungs clear.", 0, 0),
        ("Cardiomegaly", 1, 0),
        ("Heart is large,", 0, 1),
        ("lungs clear.", 0, 1),
        ("Cardiomegaly", 1, 1),
    ]


def test_normal_form():
    assert normalize_text("A  5 mm Nodule.") == normalize_text("a 12 mm nodule")


def squeezed(text):
    return re.sub(r"[\W_]", "", text.lower())


def marked_reports():
    """(report, its sentences without white space and marks) of the hand-made set."""
    text = Path(__file__).with_name("sentence_boundaries.txt").read_text(encoding="utf-8").partition("\n")[2]
    for case in text.rstrip("\n").split("\n====\n"):
        report = re.sub(r"\{([\w ]+)\}", r" \1", case).replace("¦", "")
        yield report, [squeezed(part) for part in re.sub(r"\{[\w ]+\}", "", case).split("¦")]


def test_98_of_100_difficult_sentences_are_found():
    expected, found = [], []
    for index, (text, sentences) in enumerate(marked_reports()):
        report, spans = build_report(clean_section(text), None)
        expected += [(index, sentence) for sentence in sentences]
        found += [(index, squeezed(report[span.start : span.end])) for span in spans if span.kind == 0]
    correct = (Counter(expected) & Counter(found)).total()
    assert len(expected) >= 300
    assert correct >= 0.98 * max(len(expected), len(found))


# Properties

SIGNS = [*".,;:!?()[]-–*•●…\"' \n\t\u00a0", "  ", ". ", ", "]
SIGNS += ["\n- ", "\n1. ", " 2) ", "e.g. ", "no. ", "T4. ", "L. ", "et al. ", "\n\n", "\t", "   ", " | ", "___"]
SIGNS += [" 1) ", " 3. ", " (1) ", " period ", " new line ", " the ", ",\n", " and "]
WORDS = ["Heart", "mass", "5", "0.8", "1,5", "mm", "cm.", "İzlenmedi", "şüpheli", "ığüöç", "Vertebra", "Rib", "Dr", "é"]
WORDS += ["结节", "3.Subcarinal"]
REPORTS = st.one_of(st.lists(st.sampled_from(SIGNS + WORDS), max_size=24).map("".join), st.text(max_size=60))
FEW = settings(max_examples=150, deadline=None, derandomize=True)


@FEW
@given(findings=REPORTS, impression=REPORTS)
def test_spans_are_disjoint_cover_every_word_and_lie_in_their_section(findings, impression):
    sections = [clean_section(findings), clean_section(impression)]
    report, spans = build_report(*sections)
    assert report == "\n".join(section for section in sections if section)
    for kind in (0, 1):
        ends = [(span.start, span.end) for span in spans if span.kind == kind]
        assert all(0 <= start < end <= len(report) for start, end in ends)
        assert all(before[1] <= after[0] for before, after in pairwise(ends))
        inside = {index for start, end in ends for index in range(start, end)}
        assert not [index for index in range(len(report)) if re.match(r"[^\W_]", report[index]) and index not in inside]
    offsets = {0: 0, 1: len(sections[0]) + 1 if sections[0] else 0}
    for span in spans:
        start, end = (index - offsets[span.section] for index in (span.start, span.end))
        text = sections[span.section][start:end]
        assert start >= 0
        assert report[span.start : span.end] == text == text.strip() != ""


@FEW
@given(text=REPORTS)
def test_every_clause_lies_in_one_sentence_and_splitting_is_idempotent(text):
    sentences = split_sentences(text)
    for start, end in split_clauses(text):
        assert sum(first <= start and end <= last for first, last in sentences) == 1
    for split in (split_sentences, split_clauses):
        for start, end in split(text):
            assert split(text[start:end]) == [(0, end - start)]
    assert clean_section(clean_section(text)) == clean_section(text)


# The released preparation


def released_clauses(section):
    """Single white space, split at every `. ` (which is dropped) and after every comma or semicolon outside brackets."""
    clauses = []
    for sentence in " ".join((section or "").split()).split(". "):
        depth, begin = 0, 0
        for index, letter in enumerate(sentence + ";"):
            depth = max(0, depth + {"(": 1, ")": -1}.get(letter, 0))
            if index == len(sentence) or (letter in ",;" and not depth):
                clauses.append(sentence[begin : index + 1].strip())
                begin = index + 1
    return [clause for clause in clauses if clause]


def test_released_clauses_by_hand():
    findings = "Heart is large, (old, known) clear. no effusion; e.g. Mass 1,5 cm.\nLungs clear."
    expected = ["Heart is large,", "(old, known) clear", "no effusion;", "e.g", "Mass 1,", "5 cm", "Lungs clear."]
    assert released_clauses(findings) == expected


@pytest.mark.parametrize("style", ["ctrg", "ctrate"])
def test_clauses_of_plain_reports_equal_the_released_ones_except_for_the_full_stop(style):
    compared = 0
    for seed in range(60):
        written = write_report(dict.fromkeys(LABELS), style=style, generator=np.random.default_rng(seed))
        findings = clean_section(written.findings)
        ours = [piece.rstrip(".") for piece in pieces(findings or "", split_clauses)]
        assert ours == [piece.rstrip(".") for piece in released_clauses(findings)]
        compared += len(ours)
    assert compared > 300
