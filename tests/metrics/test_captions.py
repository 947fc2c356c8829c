import math

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from mg3d.metrics.captions import caption_counts, caption_scores, tokenize

REFERENCES = ["There is a small left pleural effusion.", "No pneumothorax."]
GENERATED = ["There is a left pleural effusion.", "No effusion."]


def counts_of(generated, references):
    return caption_counts(*([tokenize(text) for text in texts] for texts in (generated, references)))


def test_tokens_are_lower_case_words_numbers_and_compounds():
    text = "Ground-glass opacity, 1.5 x 2 cm (S3/S4).\nThe patient's heart: NORMAL."
    assert tokenize(text) == "ground-glass opacity 1.5 x 2 cm s3/s4 the patient's heart normal"
    assert tokenize("effusion.No nodule") == "effusion no nodule"
    assert tokenize(" . ") == ""


def test_bleu_by_hand():
    # Unigrams: 6 of 6 and 1 of 2. Bigrams: there-is, is-a, left-pleural, pleural-effusion of 5, and 0 of 1. Trigrams: there-is-a
    # and left-pleural-effusion of 4, and none in the second. 4-grams: 0 of 3. 8 words against 9: brevity exp(1 - 9 / 8).
    found = caption_scores(counts_of(GENERATED, REFERENCES))
    brevity = math.exp(1 - 9 / 8)
    assert found["bleu1"] == pytest.approx(brevity * 7 / 8)
    assert found["bleu2"] == pytest.approx(brevity * (7 / 8 * 4 / 6) ** (1 / 2))
    assert found["bleu3"] == pytest.approx(brevity * (7 / 8 * 4 / 6 * 2 / 4) ** (1 / 3))
    assert found["bleu4"] == 0


def test_rouge_l_by_hand():
    # Longest common subsequences of 6 words (of 6 generated, 7 reference words) and 1 (of 2 and 2). F = 2.44 P R / (R + 1.44 P).
    counts = counts_of(GENERATED, REFERENCES)
    first, second = 2.44 * (6 / 7) / (6 / 7 + 1.44), 0.5
    assert counts["rouge_l"].tolist() == pytest.approx([first, second])
    assert caption_scores(counts)["rouge_l"] == pytest.approx((first + second) / 2)


def test_cider_by_hand():
    # "no" is in both references and weighs ln(2 / 2) = 0; all else weighs ln 2. References "no nodule" and "no effusion here".
    # First, generated as the reference, 2 words: cosine of unigrams 1, of bigrams 1, of longer ones 0: 10 * 2 / 4.
    # Second, generated "no effusion": unigrams (effusion) against (effusion, here): 1 / sqrt 2; bigrams likewise (1 of 2);
    # the length that is compared is the number of bigrams, 1 and 2: exp(-1 / 72).
    counts = counts_of(["no nodule", "no effusion"], ["no nodule", "no effusion here"])
    second = 10 * 2 / math.sqrt(2) * math.exp(-1 / 72) / 4
    assert counts["cider"].tolist() == pytest.approx([5, second])
    assert caption_scores(counts)["cider"] == pytest.approx((5 + second) / 2)


def test_equal_reports_score_best_whatever_their_case_and_punctuation():
    references = ["The heart is normal in size.", "A nodule of 5 mm is seen in the right lung."]
    found = caption_scores(counts_of([text.upper().replace(".", " !") for text in references], references))
    assert [found[name] for name in ("bleu1", "bleu4", "rouge_l", "cider")] == pytest.approx([1, 1, 1, 10])


def random_reports(seed=0, count=12):
    """Reports of few different words, so that they share n-grams; the first generated one is empty."""
    generator = np.random.default_rng(seed)
    words = np.array(["no", "effusion", "left", "lung", "is", "clear", "."])

    def report():
        return " ".join(generator.choice(words, generator.integers(4, 15)))

    return ["", *(report() for _ in range(count - 1))], [report() for _ in range(count)]


def test_scores_of_any_resample_are_those_of_pycocoevalcap():
    generated, references = random_reports()
    counts = caption_counts(generated, references)
    rows = [3, 0, 7, 7, 1]
    drawn = caption_scores({name: values[rows] for name, values in counts.items()})
    targets, hypotheses = ({i: [texts[row]] for i, row in enumerate(rows)} for texts in (references, generated))
    bleu, _ = Bleu(4).compute_score(targets, hypotheses, verbose=0)
    assert [drawn[f"bleu{order}"] for order in (1, 2, 3, 4)] == pytest.approx(bleu, rel=1e-6, abs=1e-5)  # theirs is never quite 0
    for name, scorer in {"rouge_l": Rouge, "cider": Cider}.items():
        _, values = scorer().compute_score(*({i: [text] for i, text in enumerate(texts)} for texts in (references, generated)))
        assert counts[name] == pytest.approx(values)
        assert drawn[name] == pytest.approx(values[rows].mean())


def test_empty_reports_score_0_and_a_single_report_has_no_cider():
    found = caption_scores(caption_counts(["", ""], ["no effusion", "clear lung"]))
    assert found == {"bleu1": 0, "bleu2": 0, "bleu3": 0, "bleu4": 0, "rouge_l": 0, "cider": 0}
    assert math.isnan(caption_scores(caption_counts(["no"], ["no effusion"]))["cider"])


@pytest.mark.parametrize(("generated", "references"), [(["no"], ["no", "yes"]), ([], [])])
def test_different_numbers_of_reports_are_refused(generated, references):
    with pytest.raises(ValueError, match=f"{len(generated)} generated reports for {len(references)} references"):
        caption_counts(generated, references)
