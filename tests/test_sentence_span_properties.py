"""What holds for the units of any report: found by search, not by example."""

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mg3d.sentence_spans import clean_section, original_clauses, report_units, split_clauses, split_sentences

SIGNS = list(".,;:!?()[]-–*•●…\"' \n\t\u00a0") + [
    "  ",
    ". ",
    ", ",
    "\n- ",
    "\n1. ",
    " 2) ",
    "e.g. ",
    "no. ",
    "T4. ",
    "L. ",
    "et al. ",
]
WORDS = [
    "Heart",
    "mass",
    "5",
    "0.8",
    "1,5",
    "mm",
    "cm.",
    "İzlenmedi",
    "şüpheli",
    "ığüöç",
    "Vertebra",
    "Rib",
    "Dr",
    "3.Subcarinal",
    "é",
    "结节",
]
REPORTS = st.one_of(st.lists(st.sampled_from(SIGNS + WORDS), max_size=24).map("".join), st.text(max_size=60))
FEW = settings(max_examples=150, deadline=None, derandomize=True)


def words_outside(text, spans):
    inside = {place for start, end in spans for place in range(start, end)}
    return [place for place in range(len(text)) if re.match(r"\w", text[place]) and place not in inside]


@FEW
@given(findings=REPORTS, impression=REPORTS)
def test_units_cut_the_report_exactly(findings, impression):
    sections = [clean_section(findings), clean_section(impression)]
    report, units = report_units(*sections)
    assert report == "\n".join(section for section in sections if section)
    for kind in (0, 1):
        spans = [(unit.start, unit.end) for unit in units if unit.kind == kind]
        assert all(0 <= start < end <= len(report) for start, end in spans)
        assert all(before[1] <= after[0] for before, after in pairwise(spans))
        assert words_outside(report, spans) == []
    begins = {0: 0, 1: len(sections[0]) + 1 if sections[0] else 0}
    for unit in units:
        section = sections[unit.section]
        start, end = (place - begins[unit.section] for place in (unit.start, unit.end))
        assert 0 <= start < end <= len(section)
        assert report[unit.start : unit.end] == section[start:end] == section[start:end].strip()


@FEW
@given(text=REPORTS)
def test_every_clause_lies_in_one_sentence(text):
    sentences = split_sentences(text)
    for start, end in split_clauses(text):
        assert sum(first <= start and end <= last for first, last in sentences) == 1


@pytest.mark.parametrize("split", [split_sentences, split_clauses])
@FEW
@given(text=REPORTS)
def test_a_unit_is_not_cut_once_more(split, text):
    for start, end in split(text):
        assert split(text[start:end]) == [(0, end - start)]


@FEW
@given(text=REPORTS)
def test_a_clean_section_stays_as_it_is(text):
    section = clean_section(text)
    assert clean_section(section) == section


@FEW
@given(text=REPORTS)
def test_the_clauses_of_the_original_lose_nothing_but_full_stops_and_white_space(text):
    (clauses,) = original_clauses(text)
    assert re.sub(r"[.\s]", "", "".join(clauses)) == re.sub(r"[.\s]", "", text)
