"""Findings and impression of whole reports, missing sections, hard-wrapped lines, tables and dictated marks."""

import pytest

from mg3d.report_sections import clean_section, split_report

FINDINGS, IMPRESSION = "The lungs are clear.\nHeart: normal.", "No acute disease."


@pytest.mark.parametrize(
    "report",
    [
        f"HISTORY: Cough. Smoker.\nTECHNIQUE: CT.\nCOMPARISON: None.\nFINDINGS:\n{FINDINGS}\nIMPRESSION:\n{IMPRESSION}",
        f"CT CHEST\n\nIndication: cough.\n\n**Findings**\n{FINDINGS}\n\n**Conclusion:** {IMPRESSION}\n\nDictated by: A\nB",
        f"Reason for exam\nCough.\n\nThe lungs are clear.\nHeart: normal.\n\nOpinion - {IMPRESSION}\nRecommendation: CT.",
        f"EXAM: CT CHEST\nCOMPARISON: None.\n{FINDINGS}\nIMPRESSION: {IMPRESSION}",
        f"REPORT\n EXAM:  CT\n \n COMPARISON:  ___\n \n FINDINGS: \n \n {FINDINGS}\n \n IMPRESSION: \n \n {IMPRESSION}",
        f"EXAM: CT CHEST\nCOMPARISON: CT of 2019.\n\n{FINDINGS}\n\nIMPRESSION: {IMPRESSION} Electronically signed by A",
        "<p>Technique: CT.</p><p>Findings: The lungs are clear.<br/>Heart:&nbsp;normal.</p><p>Impression: No acute disease.</p>",
    ],
)
def test_only_findings_and_impression_of_a_report_are_kept(report):
    assert split_report(report) == (FINDINGS, IMPRESSION)


def test_sections_in_one_line_need_a_colon_after_a_sentence_or_capitals():
    report = "HISTORY: Cough. FINDINGS: The impression of the aorta is deep. No findings: none. Impression: Normal."
    assert split_report(report) == ("The impression of the aorta is deep. No findings: none.", "Normal.")


@pytest.mark.parametrize(
    ("report", "sections"),
    [
        ("Lungs: clear. Contrast: 80 ml. Heart: normal.", ("Lungs: clear. Contrast: 80 ml. Heart: normal.", None)),
        ("Findings: No effusion. Impression: Normal. Dr. A. Smith, MD", ("No effusion.", "Normal.")),
        ("INDICATION: Pain.\nFINDINGS/IMPRESSION: No embolism.\nJ. Smith, MD", ("No embolism.", None)),
        ("FINDINGS:\nTold to\nDr. A. Smith at 10.\nA mass.\nDr. A. Smith", ("Told to Dr. A. Smith at 10.\nA mass.", None)),
        ("Reported by: Dr. A. Smith\n\nNo effusion.", ("No effusion.", None)),
        ("TECHNIQUE: CT. FINDINGS: Nodule of 5 mm. ADDENDUM: It is 6 mm.", ("Nodule of 5 mm.", "It is 6 mm.")),
    ],
)
def test_no_finding_is_lost_between_headings_and_signature(report, sections):
    assert split_report(report) == sections


def test_a_german_report_is_split_by_its_own_headings():
    report = "Klinische Angaben: Husten.\nTechnik: Nativ.\nBefund: Kein Erguss.\nBeurteilung: Normal.\nMit freundlichen Grüßen\nA"
    assert split_report(report) == ("Kein Erguss.", "Normal.")


def test_a_report_without_headings_is_findings():
    assert split_report("Lungs clear. No effusion.\nSigned by Dr. A") == ("Lungs clear. No effusion.", None)
    assert split_report(float("nan")) == (None, None)


@pytest.mark.parametrize(
    "text",
    ["Not given.", "", "  ", "NaN", None, float("nan"), "N/A", "n/a.", "None.", "null", "&nbsp;", "-", "--", "___", "...",
     "Keine Angabe.", "<br/>", "See above."],
)  # fmt: skip
def test_missing_sections_are_none(text):
    assert clean_section(text) is None
    assert split_report(text) == (None, None)


def test_wrapped_lines_are_joined_and_items_are_not():
    text = "There is no pneumothorax or pleural\neffusion. The nodule of the\nRight lobe measures\n8 mm\n- old scar\n\nHeart"
    joined = "There is no pneumothorax or pleural effusion. The nodule of the Right lobe measures 8 mm"
    assert clean_section(text) == f"{joined}\n- old scar\nHeart"


def test_capital_letters_continue_a_full_line_of_a_wrapped_text_only():
    lines = ["Scarring and loss of volume lie in the left upper", "lobe. The wall is thickened along the whole of the", "Arch"]
    assert clean_section("\n".join(lines)) == " ".join(lines)
    separate = "Minimal scarring and volume loss are present in the left lobe\nArch"
    assert clean_section(separate) == separate


def test_rows_of_tables_stay_whole():
    assert clean_section("Lobe\tSize\nRUL\t5 mm\nLLL\t8 mm") == "Lobe | Size\nRUL | 5 mm\nLLL | 8 mm"
    assert clean_section("Nodule   of the apex") == "Nodule  of the apex"


def test_dictated_words_become_marks_unless_the_text_has_typed_marks():
    dictated = "lungs clear comma no effusion period new paragraph heart normal over the follow-up period full stop"
    assert clean_section(dictated) == "lungs clear, no effusion.\nheart normal over the follow-up period."
    assert clean_section("Lungs clear. Stable period.") == "Lungs clear. Stable period."
