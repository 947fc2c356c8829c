"""Training on volumes that have no report."""

import json

import pytest
import torch
from small_arrow import write_split
from small_model import WIRINGS, build, random_batch
from small_run import SMALL, checkpoint

from mg3d.config import command_line

ONLY_MIM = ["weight_mlm=0", "weight_sal=0", "weight_cml=0", "weight_dcl=0", "weight_ssm=0"]


@pytest.fixture
def volumes_alone(tmp_path):
    for split, patients in (("train", 10), ("val", 8), ("test", 6)):
        write_split(tmp_path, "ct_rate", split, patients=patients, shape=(32, 64, 96), reported=lambda number: False)
    return tmp_path


def words(root, *more):
    places = [f"data_root={root}", f"log_dir={root}"]
    return ["with", "tiny", *SMALL, "volume_size=[32,64,96]", "datasets=['ct_rate']", *places, *more]


def test_volumes_alone_are_learned_from_judged_and_gone_on_with(volumes_alone, capsys):
    more = (*ONLY_MIM, "augment_crop=[0.7,0.9]", "augment_noise=0.02", "evidence=True")
    assert command_line(words(volumes_alone, *more)) == 0, capsys.readouterr().err
    state = checkpoint(volumes_alone)
    assert state["global_step"] == 6
    assert all(torch.isfinite(value).all() for value in state["state_dict"].values())
    evidence = json.loads((volumes_alone / "evidence.json").read_text())
    assert evidence["trained"]["reconstruction"]["masked"] > 0


def test_objectives_that_read_reports_refuse_volumes_alone(volumes_alone, capsys):
    assert command_line(words(volumes_alone)) == 2
    assert "has volumes but no report" in capsys.readouterr().err


@pytest.mark.parametrize("wiring", WIRINGS)
def test_guidance_by_a_report_without_a_sentence_is_finite(wiring):
    batch = random_batch()
    empty = batch._replace(
        report_ids=batch.report_ids[:, :2], attention_mask=torch.ones(3, 2, dtype=torch.bool),
        sentence_index=torch.full((3, 2), -1), sentence_mask=torch.zeros(3, 1, dtype=torch.bool),
    )  # fmt: skip
    model = build(wiring, objectives=("mim",))
    features = model(empty)
    model.losses(features)["mim"].backward()
    assert torch.isfinite(features["mim_prediction"]).all()
    gradients = {name: part.grad for name, part in model.named_parameters() if part.grad is not None}
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    assert any(name.startswith("vision") and gradient.abs().max() > 0 for name, gradient in gradients.items())
