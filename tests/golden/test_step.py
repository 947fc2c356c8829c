"""One step of three patients in both released presets: everything between volume and total, part by part."""

import pytest
import torch
from golden.harness import recorded
from golden.step import Step
from torch.nn import functional as F

from mg3d.losses.released import LOGIT_SCALE

PATIENTS = range(3)
SENTENCES = (3, 2, 4)


@pytest.fixture(scope="module", params=["mg3d_released", "mg3d_intended"])
def step(request, encoded):
    return Step(request.param, encoded)


@pytest.fixture
def same(step, compare):
    """Compares with the recorded array or number; {} in a name is `released` or `intended`."""

    def check(ours, name):
        name = name.format(step.kind)
        arrays, numbers = recorded("pretrain_step.npz"), recorded("pretrain_step.json")
        compare(ours, arrays[name] if name in arrays else numbers[name], step.dtype)

    return check


def test_image_tokens(step, same):
    same(step.image_tokens()[0, :, :64], "full_img_feats_b0_first64")


def test_masked_encoder_tokens(encoded, compare, dtype):
    masked = encoded.maps[3].flatten(1).T
    compare(masked[:, :64], recorded("pretrain_step.npz")["masked_encoder_tokens_b0_first64"], dtype)


def test_masked_report_tokens(step, same):
    (report, *_), _ = step.clean["fusion_report"][0]
    same(report[0, :8, :64], "text_encoder_masked_plus_type_b0_t0to7_first64")


def test_report_fusion_of_report_tokens(step, same):
    same(step.fused_report()[0][0, :8, :64], "mlm_multi_modal_text_feats_b0_t0to7_first64")


def test_report_fusion_of_image_tokens(step, same):
    same(step.fused_report()[1][0, :, :64], "mlm_multi_modal_image_feats_b0_first64")


@torch.no_grad()
def test_mlm_logits(step, same):
    _, transformed = step.clean["branches.report.mlm_head.transform"][0]
    logits = step.model.branches["report"].mlm_head.decode(transformed[0, 1:5])
    same(logits[:, :16], "mlm_logits_b0_t1to4_first16")


def test_mlm_loss(step, same):
    assert step.features["mlm_tokens"].sum() == recorded("pretrain_step.json")["n_masked"]
    same(step.losses["mlm"], "mlm_ce")


@pytest.mark.parametrize("patient", PATIENTS)
def test_sal_prediction(step, same, patient):
    same(step.features["sal_prediction"][patient : patient + 1, : SENTENCES[patient]], f"sal_pred_b{patient}")


@pytest.mark.parametrize("patient", PATIENTS)
def test_sal_target(step, same, patient):
    same(step.features["sal_target"][patient : patient + 1, : SENTENCES[patient]], f"sal_target_b{patient}")


def test_sal_loss(step, same):
    same(step.total_of("sal"), "sal_term_after_0p1")


def test_report_reconstruction_total(step, same):
    same(step.total_of("mlm", "sal"), "sen_mlm_loss_total")


def test_mim_image_tokens_after_fusion(step, same):
    if step.kind == "released":  # recorded for the intended wiring only; test_mim_reconstruction covers this one
        assert len(step.masked["fusion_report"]) == 3
        assert "fusion_volume" not in step.masked
        return
    _, (image, _) = step.masked["fusion_volume"][0]
    same(image[0, :, :64], "mim_intended_image_feats_b0_first64")


def test_mim_reconstruction(step, same):
    same(step.features["mim_prediction"][0, 0, ::16, ::16, ::16], "mim_{}_recon_b0_slice")


def test_mim_loss(step, same):
    same(step.losses["mim"], "mim_loss_{}_branch")


@pytest.mark.parametrize("patient", PATIENTS)
def test_sentence_features(step, same, patient):
    (sentences, *_), _ = step.clean["branches.disentangled.aggregation"][0]
    same(sentences[patient, : SENTENCES[patient], :64], f"itc_{{}}_sentence_feats_b{patient}_first64")


@pytest.mark.parametrize("side", ["multi", "uni"])
def test_cml_report_vector(step, same, side):
    ((vector,), _) = step.clean[f"fused_contrast.{side}modal_head"][0]
    same(vector[:, :64], f"itc_{{}}_{side}_modal_cls_first64")


@pytest.mark.parametrize("side", ["multi", "uni"])
def test_cml_image_vector(step, same, side):
    ((vector,), _) = step.clean[f"fused_contrast.{side}modal_head"][0]
    same(vector[:, 768 : 768 + 64], f"itc_{{}}_{side}_modal_cls_img_first64")


def test_cml_logits(step, same):
    f = step.features
    same(LOGIT_SCALE * f["cml_multimodal_embedding"] @ f["cml_unimodal_embedding"].T, "itc_{}_logits_cross_image")


def test_cml_loss(step, same):
    same(step.losses["cml"], "itc_{}_cml")


@pytest.mark.parametrize("patient", PATIENTS)
def test_visual_side_of_sentences(step, same, patient):
    same(step.features["ssm_visual"][patient, : SENTENCES[patient]], f"itc_{{}}_agg_sentence_feats_b{patient}")


def test_dcl_aggregate_vector(step, same):
    ((vector,), _) = step.clean["branches.disentangled.aggregate_head"][0]
    same(vector[:, :64], "itc_{}_agg_image_cls_first64")


def test_dcl_logits(step, same):
    f = step.features
    same(LOGIT_SCALE * f["dcl_image_embedding"] @ f["dcl_aggregate_embedding"].T, "itc_{}_logits_agg")


def test_dcl_loss(step, same):
    same(step.losses["dcl"], "itc_{}_dcl")


@pytest.mark.parametrize("pair", [(0, 1), (0, 2), (1, 2)], ids=lambda pair: "{}{}".format(*pair))
@pytest.mark.parametrize("side", ["gt", "pred"])
def test_ssm_cosines(step, same, pair, side):
    vectors = step.features["ssm_text"] if side == "gt" else step.features["ssm_visual"]
    first, second = (F.normalize(vectors[patient, : SENTENCES[patient]], dim=-1) for patient in pair)
    same(first @ second.T, "itc_{{}}_ssm_{}_{}{}".format(side, *pair))


def test_ssm_loss(step, same):
    same(step.losses["ssm"], "itc_{}_ssm")


def test_contrast_total(step, same):
    """The record has the sum before its weight of 0.1."""
    assert all(step.weights[name] == 0.1 for name in ("cml", "dcl", "ssm"))
    same(step.losses["cml"] + step.losses["dcl"] + step.losses["ssm"], "itc_{}_total")


def test_total(step, same):
    same(step.total_of("mlm", "sal", "mim", "cml", "dcl", "ssm"), "total_{}")
