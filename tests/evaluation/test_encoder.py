import pytest
import torch
from small_arrow import small_tokenizer
from small_model import SHAPE, build
from torch.nn import functional as F

from mg3d.datasets.studies import ReportText
from mg3d.datasets.tokenizer import pad_reports
from mg3d.evaluation.encoder import MG3DEncoder, as_sentence, embed_batches
from mg3d.models.text.encoder import tiny_text_encoder

REPORT = ReportText("The heart is enlarged. No lesion of the liver.", ((0, 22), (23, 46)))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("words"))


def make_encoder(tokenizer, wiring="paper", **changes):
    model = build(wiring, **changes).float()
    torch.manual_seed(0)
    model.text = tiny_text_encoder(vocab_size=len(tokenizer), width=16, layers=1, heads=2, max_positions=32)
    branch = dict(model.branches.items()).get("disentangled")
    if hasattr(branch, "sentence_space"):
        ids, _, index = pad_reports(tokenizer, [REPORT, as_sentence("The aorta is normal.")], 32)
        branch.sentence_space = type(branch.sentence_space)(model.text)
        model.fit_sentence_space(ids, index)
    return MG3DEncoder(model, tokenizer, max_text_len=32, batch_size=2)


def test_texts_have_the_same_embedding_alone_and_in_batches(tokenizer):
    encoder = make_encoder(tokenizer)
    texts = [as_sentence("The heart is enlarged."), REPORT, as_sentence("No lesion.")]
    together = encoder.embed_texts(texts)
    torch.testing.assert_close(together, torch.cat([encoder.embed_texts([text]) for text in texts]), atol=1e-5, rtol=0)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3))
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_volumes_are_clipped_to_the_window_before_they_are_embedded(tokenizer):
    encoder, volumes = make_encoder(tokenizer), torch.rand(3, 1, *SHAPE, generator=torch.Generator().manual_seed(1)) * 2 - 0.5
    found = embed_batches(encoder, volumes.split(2))
    torch.testing.assert_close(found, encoder.model.embed_volume(volumes.clamp(0, 1)).detach())


def test_the_attention_map_is_that_of_the_sentence_over_image_tokens(tokenizer):
    encoder, volumes = make_encoder(tokenizer), torch.rand(2, 1, *SHAPE)
    texts = ["The heart is enlarged.", "No lesion.", "The aorta is normal."]
    maps = encoder.ground(volumes, [(text, "Clear.") for text in texts])["attention"]
    assert maps.shape == (2, 3, *encoder.model.grid)
    torch.testing.assert_close(maps.flatten(2).sum(2), torch.ones(2, 3))
    model = encoder.model
    ids, mask, _ = pad_reports(tokenizer, [as_sentence(texts[1])], 32)
    inside = mask[0].clone()
    inside[[0, int(mask.sum()) - 1]] = False  # neither [CLS] nor [SEP]
    sentence = model.encode_report(ids, mask)[0, inside].mean(0)
    image = model.encode_volume(volumes)[1]
    part = model.branches["disentangled"].aggregation
    scores = part.key(image) @ part.query(sentence) / sentence.numel() ** 0.5
    torch.testing.assert_close(maps[1, 1].flatten(), F.softmax(scores, 0).detach(), atol=1e-5, rtol=1e-4)


def test_a_model_without_attention_has_contrast_maps_only(tokenizer):
    encoder, volumes = make_encoder(tokenizer, objectives=("cml",)), torch.rand(2, 1, *SHAPE)
    pairs = [("The heart is enlarged.", "The heart is normal."), ("No lesion.", "A lesion.")]
    (maps,) = encoder.ground(volumes, pairs).values()
    torch.testing.assert_close(maps.flatten(2).sum(2), torch.ones(2, 2))
    torch.testing.assert_close(maps[1:, :1], encoder.ground(volumes[1:], pairs[:1])["contrast"], atol=1e-3, rtol=1e-3)


def test_sentence_vectors_leave_out_truncated_sentences(tokenizer):
    ((whole, vectors),) = make_encoder(tokenizer).sentence_vectors([REPORT])
    assert whole.sentence_spans == REPORT.sentence_spans
    assert vectors.shape == (2, 16)
    short = make_encoder(tokenizer)
    short.max_text_len = 7
    ((cut, vectors),) = short.sentence_vectors([REPORT])
    assert cut.sentence_spans == REPORT.sentence_spans[:1]
    assert len(vectors) == 1


def test_a_model_that_contrasts_fused_vectors_is_refused(tokenizer):
    with pytest.raises(ValueError, match="no joint embedding"):
        make_encoder(tokenizer, "intended")
