import pytest

from mg3d.text_units import clean_section, normalise, polarity, report_units, split_clauses, split_sentences


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
