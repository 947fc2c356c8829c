import numpy as np
import pytest

from mg3d.glossary import LABELS
from mg3d.phantom.report import write_report
from mg3d.sentence_spans import clean_section, normalise, original_clauses, polarity, report_units, split_clauses, split_sentences


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
    ],
)
def test_sentences_end_at_marks_double_spaces_and_line_breaks(text, expected):
    assert pieces(text, split_sentences) == expected


def test_clauses_are_cut_at_commas_outside_brackets():
    text = "Nodule (solid, apical), 5 mm; no effusion."
    assert pieces(text, split_clauses) == ["Nodule (solid, apical),", "5 mm;", "no effusion."]


def test_units_index_the_canonical_report_and_know_their_section():
    report, units = report_units("Heart is large, lungs clear.", "Cardiomegaly")
    assert report == "Heart is large, lungs clear.\nCardiomegaly"
    found = [(report[u.start : u.end], u.section, u.kind) for u in units]
    assert found == [
        ("Heart is large, lungs clear.", 0, 0),
        ("Cardiomegaly", 1, 0),
        ("Heart is large,", 0, 1),
        ("lungs clear.", 0, 1),
        ("Cardiomegaly", 1, 1),
    ]


@pytest.mark.parametrize("text", ["Not given.", "", "  ", "NaN", None, float("nan")])
def test_missing_sections_are_none(text):
    assert clean_section(text) is None


def test_polarity_and_normal_form():
    assert polarity("There is no pleural effusion.") == -1
    assert polarity("A nodule is noted.") == 1
    assert normalise("A  5 mm Nodule.") == normalise("a 12 mm nodule")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1. Emphysema  2. Hernia", ["1. Emphysema", "2. Hernia"]),
        ("1. Emphysema.\n2) Hernia", ["1. Emphysema.", "2) Hernia"]),
        ("- Emphysema\n* Hernia\n– Nodule", ["Emphysema", "Hernia", "Nodule"]),
        ("• Emphysema • Hernia", ["Emphysema", "Hernia"]),
        ("A node of 1.5 x 2.0 cm (0.8 cm before).", ["A node of 1.5 x 2.0 cm (0.8 cm before)."]),
        ("3.Subcarinal node. 4.Hilar node.", ["3.Subcarinal node.", "4.Hilar node."]),
        (
            "Seen by Dr. Who vs. Before, cf. Smith et al. Approx. 5 mm.",
            ["Seen by Dr. Who vs. Before, cf. Smith et al. Approx. 5 mm."],
        ),
        ("See no. 3 and Fig. 2. Any node? No. Heart large.", ["See no. 3 and Fig. 2.", "Any node?", "No.", "Heart large."]),
        ("Fracture of the T4. Vertebra. L. Adrenal nodule.", ["Fracture of the T4. Vertebra.", "L. Adrenal nodule."]),
        ("Fracture at T4. No other. The 9. Rib is thin.", ["Fracture at T4.", "No other.", "The 9. Rib is thin."]),
        ("A nodule of 5 mm. Another of 2 cm. Stable", ["A nodule of 5 mm.", "Another of 2 cm.", "Stable"]),
        ("Clear... Heart large… Node (old.) Hernia", ["Clear...", "Heart large…", "Node (old.)", "Hernia"]),
        (
            "Kalp büyük. Şüpheli nodül. ılımlı efüzyon. İzlenmedi.",
            ["Kalp büyük.", "Şüpheli nodül. ılımlı efüzyon.", "İzlenmedi."],
        ),
        ("Approx. şüpheli 5 mm. çok küçük", ["Approx. şüpheli 5 mm. çok küçük"]),
    ],
)
def test_what_looks_like_an_end_and_what_is_one(text, expected):
    assert pieces(text, split_sentences) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Node 1,5 cm, old; stable", ["Node 1,5 cm,", "old;", "stable"]),
        ("Node (left, old, and the hilum, is clear.", ["Node (left,", "old,", "and the hilum,", "is clear."]),
        ("Node (a, (b, c), d), e", ["Node (a, (b, c), d),", "e"]),
    ],
)
def test_commas_of_figures_and_in_brackets_cut_nothing(text, expected):
    assert pieces(text, split_clauses) == expected


def test_the_clauses_of_the_original_are_cut_by_its_rules():
    findings = "Heart is large, (old, known) clear. no effusion; e.g. Mass 1,5 cm.\nLungs clear."
    expected = ["Heart is large,", "(old, known) clear", "no effusion;", "e.g", "Mass 1,", "5 cm", "Lungs clear."]
    assert original_clauses(findings, None, "Emphysema  Hernia") == [expected, [], ["Emphysema Hernia"]]


@pytest.mark.parametrize("style", ["ctrg", "ctrate"])
def test_on_plain_reports_our_clauses_are_those_of_the_original_but_for_the_full_stop(style):
    compared = 0
    for seed in range(60):
        written = write_report(dict.fromkeys(LABELS), style=style, generator=np.random.default_rng(seed))
        findings = clean_section(written.findings)
        ours = [piece.rstrip(".") for piece in pieces(findings or "", split_clauses)]
        (theirs,) = original_clauses(findings)
        assert ours == [piece.rstrip(".") for piece in theirs]
        compared += len(ours)
    assert compared > 300
