"""Every block alone, on closed-form inputs, against the output of the released code's module."""

import pytest
import torch
from golden import recipe
from golden.harness import build, recorded
from torch import nn

from mg3d.checkpoints.released_names import to_released

SHAPES = {
    "image": (48, 768),
    "sent": (5, 768),
    "tokens": (20, 768),
    "pair": (3, 1536),
    "pairtext": (3, 1536),
    "dec": (1, 768, 4, 3, 4),
}
TEMPERATURE = 0.1


@pytest.fixture(scope="module")
def model(dtype):
    return build("mg3d_released", dtype, nn.Identity())[1]


@pytest.fixture
def inputs(dtype):
    return {name: torch.from_numpy(recipe.block_input(name, *shape)).to(dtype) for name, shape in SHAPES.items()}


@pytest.fixture
def same(compare, dtype):
    """Compares with the recorded array or number of this name."""

    def check(ours, name):
        arrays, numbers = recorded("pretrain_step.npz"), recorded("pretrain_step.json")
        compare(ours, arrays[name] if name in arrays else numbers[name], dtype)

    return check


def gate(gated, value):
    """The factor by which `value` [..., d] was multiplied."""
    return (gated * value).sum(-1) / value.square().sum(-1)


def all_valid(sentences):
    return torch.ones(sentences.shape[:2], dtype=torch.bool)


def test_image_fusion_layer(model, inputs, same):
    image, text = model.fusion_volume.layers[0](inputs["image"][None], inputs["sent"][None], None)
    same(image[0, :, :64], "block_img_cross0_image_out_first64")
    same(text[0, :, :64], "block_img_cross0_text_out_first64")


def test_agreement_of_image_tokens_with_single_sentences(model, inputs, same):
    layer, image, sentences = model.fusion_volume.layers[0], inputs["image"][None], inputs["sent"][None]
    alone = [layer(image, sentences[:, s : s + 1], None)[0] for s in range(5)]
    same(torch.stack([gate(gated, layer.value1(image))[0] for gated in alone], 1), "block_img_cross0_probs_img_by_text")


def test_agreement_of_sentences_with_single_image_tokens(model, inputs, same):
    layer, image, sentences = model.fusion_volume.layers[0], inputs["image"][None], inputs["sent"][None]
    alone = [layer(image[:, n : n + 1], sentences, None)[1] for n in range(48)]
    same(torch.stack([gate(gated, layer.value2(sentences))[0] for gated in alone], 1), "block_img_cross0_probs_text_by_img")


def test_report_fusion_layer(model, inputs, same):
    text, image = model.fusion_report.layers[1](inputs["tokens"][None], inputs["image"][None], None)
    same(text[0, :, :64], "block_text_cross1_text_out_first64")
    same(image[0, :, :64], "block_text_cross1_image_out_first64")


def test_sentence_gate_of_one_sentence(model, inputs, same):
    layer, sentence = model.branches["disentangled"].aggregation.layers[0], inputs["sent"][None, :1]
    gated = layer(sentence, inputs["image"][:1])
    same(gated[0, :, :64], "block_agg_img0_out_first64")
    same(gate(gated, layer.value1(sentence))[0, 0], "block_agg_img0_prob")


def test_sentence_gate_of_several_sentences_and_images(model, inputs, same):
    """The recorded module sums over its sentences; the aggregation returns them one at a time."""
    layer, sentences = model.branches["disentangled"].aggregation.layers[1], inputs["sent"][None]
    gated = torch.cat([layer(sentences, image[None]) for image in inputs["image"][:3]])
    same(gated.sum(1)[:, :64], "block_agg_img1_multi_out_first64")
    same(gate(gated, layer.value1(sentences)), "block_agg_img1_multi_prob")


@pytest.mark.parametrize("side", ["unimodal", "multimodal"])
def test_report_pool(model, inputs, same, side):
    pool, sentences = getattr(model.fused_contrast, f"{side}_report_pool"), inputs["sent"][None]
    same(pool(sentences, all_valid(sentences))[:, :64], f"block_{side.removesuffix('modal')}_global_text_attention_first64")


def test_image_pool(model, inputs, same):
    same(model.fused_contrast.unimodal_image_pool(inputs["image"][None])[:, :64], "block_uni_modal_vision_pooler_first64")


def test_pool_of_gated_sentences(model, inputs, same):
    sentences = inputs["sent"][None]
    pool = model.branches["disentangled"].aggregation.pool
    same(pool(sentences, all_valid(sentences))[:, :64], "block_agg_vision_pooler_first64")


def test_sentence_head_of_the_aggregation(model, inputs, same):
    same(model.branches["disentangled"].aggregation.sentence_head(inputs["sent"]), "block_sen_vision_pooler")


def test_sal_prediction_head(model, inputs, same):
    same(model.branches["report"].sal_head.prediction(inputs["sent"]), "block_mlm_head_fc")


def test_cml_heads(model, inputs, same):
    first, second = model.fused_contrast.multimodal_head(inputs["pair"]), model.fused_contrast.unimodal_head(inputs["pairtext"])
    same(first @ second.T / TEMPERATURE, "block_itc_cross_head_logits")


def test_dcl_heads(model, inputs, same):
    branch = model.branches["disentangled"]
    first, second = branch.image_head(inputs["pair"][:, :768]), branch.aggregate_head(inputs["pairtext"][:, :768])
    same(first @ second.T / TEMPERATURE, "block_itc_agg_head_logits")


def test_volume_decoder(model, inputs, same):
    volume = model.branches["volume"].decoder(inputs["dec"])
    assert volume.shape == (1, 1, *recipe.VOLUME_SHAPE)
    same(volume[0, 0, ::8, ::8, ::8], "block_mim_decoder_slice")
    same(volume.double().mean(), "block_mim_decoder_mean")
    same(volume.double().std(correction=0), "block_mim_decoder_std")


def test_word_embeddings(model, same):
    ids = torch.tensor([[recipe.CLS, *recipe.sentence(0), recipe.SEP]])
    same(model.text.embed_words(ids)[0, :, :64], "bert_embeddings_sentence0_first64")


@pytest.mark.parametrize("preset", ["mg3d_released", "mg3d_intended"])
def test_every_tensor_of_a_released_preset_has_a_released_name(preset, dtype):
    """And no two tensors share one."""
    model = build(preset, dtype, nn.Identity())[1]
    names = [to_released(name) for name in model.state_dict()]
    assert len(set(names)) == len(names) > 100
