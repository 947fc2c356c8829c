import pytest

from mg3d.config import resolve
from mg3d.datasets.studies import ReportText
from mg3d.models.build import build_untrained
from mg3d.training.build import build_data, build_tokenizer, fit_sentence_space

SMALL = {
    "image_size": 32, "mim_patch_size": 8, "patch_size": 4, "embed_dim": 12, "num_heads": [2], "hidden_size": 24,
    "embedding_size": 16,
}  # fmt: skip


@pytest.mark.parametrize(("common", "rare", "refused"), [(30, 4, True), (20, 20, False)])
def test_sentences_that_mostly_say_the_same_are_refused(arrows, tmp_path, common, rare, refused):
    """Of random pairs (common^2 + rare^2) / (common + rare)^2 are equal: 79 % of the first reports, 50 % of the second, where
    pairs within a report are left out and so a little less."""
    settings = resolve(["tiny"], SMALL | {"data_root": str(arrows)})
    data = build_data(settings)
    data.tokenizer = build_tokenizer(settings, tmp_path, data)
    texts = ["the heart is enlarged"] * common + ["no lesion of the liver"] * rare
    data.training_reports = lambda most=None: [ReportText(text, ((0, len(text)),)) for text in texts]
    model = build_untrained(settings, len(data.tokenizer))
    if refused:
        with pytest.raises(ValueError, match=r"(7[6-9]|8[0-2])% of random sentence pairs have .*; raise ssm_same_above or set"):
            fit_sentence_space(model, data, settings)
    else:
        fit = fit_sentence_space(model, data, settings)
        assert 0.45 < fit["share_same"] < 0.5
        assert fit["quantiles"]["0.05"] == pytest.approx(-1)
        assert fit["quantiles"]["0.95"] == pytest.approx(1)
