import math
import shutil

import numpy as np
import pytest

from mg3d.metrics.captions import NEEDS_JAVA, caption_scores, tokenize

REFERENCES = ["There is a small left pleural effusion.", "No pneumothorax."]
GENERATED = ["There is a left pleural effusion.", "No effusion."]


def test_tokens_are_lower_case_words_numbers_and_compounds():
    text = "Ground-glass opacity, 1.5 x 2 cm (S3/S4).\nThe patient's heart: NORMAL."
    assert tokenize(text).split() == [
        "ground-glass",
        "opacity",
        "1.5",
        "x",
        "2",
        "cm",
        "s3/s4",
        "the",
        "patient's",
        "heart",
        "normal",
    ]
    assert tokenize("effusion.No nodule") == "effusion no nodule"
    assert tokenize(" . ") == ""


def test_bleu_by_hand():
    # Words: 6 of 6 and 1 of 2. Pairs: there-is, is-a, left-pleural, pleural-effusion of 5, and 0 of 1. Triples: there-is-a and
    # left-pleural-effusion of 4, and none in the second. Fours: 0 of 3. 8 words against 9: brevity exp(1 - 9 / 8).
    found = caption_scores(GENERATED, REFERENCES).corpus
    brevity = math.exp(1 - 9 / 8)
    assert found["bleu_1"] == pytest.approx(brevity * 7 / 8, rel=1e-6)
    assert found["bleu_2"] == pytest.approx(brevity * (7 / 8 * 4 / 6) ** (1 / 2), rel=1e-6)
    assert found["bleu_3"] == pytest.approx(brevity * (7 / 8 * 4 / 6 * 2 / 4) ** (1 / 3), rel=1e-6)
    assert found["bleu_4"] == pytest.approx(0, abs=1e-3)


def test_rouge_l_by_hand():
    # Longest common sequences of 6 words (of 6 made, 7 told) and 1 (of 2 and 2). F = (1 + 1.44) P R / (R + 1.44 P).
    found = caption_scores(GENERATED, REFERENCES)
    first, second = 2.44 * (6 / 7) / (6 / 7 + 1.44), 0.5
    assert found.per_report["rouge_l"].tolist() == pytest.approx([first, second])
    assert found.corpus["rouge_l"] == pytest.approx((first + second) / 2)


def test_cider_by_hand():
    # "no" is in both references and weighs ln(2 / 2) = 0; all else weighs ln 2. Told "no nodule" and "no effusion here".
    # First, made as told, 2 words: cosine of words 1, of pairs 1, of triples and fours 0: 10 * 2 / 4.
    # Second, made "no effusion": words (effusion) against (effusion, here): 1 / sqrt 2; pairs likewise, one against two;
    # the length that is compared is the number of pairs, 1 and 2: exp(-1 / 72).
    found = caption_scores(["no nodule", "no effusion"], ["no nodule", "no effusion here"])
    second = 10 * 2 / math.sqrt(2) * math.exp(-1 / 72) / 4
    assert found.per_report["cider"].tolist() == pytest.approx([5, second])
    assert found.corpus["cider"] == pytest.approx((5 + second) / 2)


def test_reports_as_told_are_perfect_whatever_their_case_and_punctuation():
    told = ["The heart is normal in size.", "A nodule of 5 mm is seen in the right lung."]
    found = caption_scores([text.upper().replace(".", " !") for text in told], told).corpus
    for name, best in {"bleu_1": 1, "bleu_4": 1, "rouge_l": 1, "cider": 10}.items():
        assert found[name] == pytest.approx(best)


def test_an_empty_report_scores_nothing_and_one_report_has_no_cider():
    found = caption_scores(["", "no effusion"], ["no nodule", "no effusion here"])
    assert found.per_report["rouge_l"][0] == found.per_report["cider"][0] == 0
    assert caption_scores(["..."], ["no nodule"]).corpus["bleu_1"] == pytest.approx(0, abs=1e-6)
    alone = caption_scores(["no nodule"], ["no nodule"])
    assert np.isnan(alone.corpus["cider"])
    assert np.isnan(alone.per_report["cider"]).all()


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="1 generated reports for 2"):
        caption_scores(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="at least one"):
        caption_scores([], [])
    with pytest.raises(ValueError, match="1 references have no word, the first in place 1"):
        caption_scores(["a", "b"], ["a", "."])


def test_meteor_says_that_it_needs_java(monkeypatch):
    monkeypatch.setenv("PATH", "")
    found = caption_scores(GENERATED, REFERENCES, meteor=True)
    assert found.corpus["meteor"] == NEEDS_JAVA
    assert "meteor" not in found.per_report
    assert "meteor" not in caption_scores(GENERATED, REFERENCES).corpus


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("java"), reason="METEOR needs Java")
def test_meteor_prefers_what_is_told():
    found = caption_scores([REFERENCES[0], "Large heart."], REFERENCES, meteor=True)
    assert found.per_report["meteor"].tolist() == pytest.approx([1, 0], abs=0.01)
    assert 0 < found.corpus["meteor"] < 1
