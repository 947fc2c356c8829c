"""Pre-training with the objective that writes reports."""

import csv

import pytest
import torch
from small_model import OBJECTIVES, build, random_batch
from small_run import assert_same_training, checkpoint, words
from torch.nn.functional import cross_entropy

from mg3d.checkpoints.pretrained import export_run, from_pretrained, save_pretrained
from mg3d.config import command_line, resolve
from mg3d.losses.captioning import CaptionLoss
from mg3d.models.build import build_untrained
from mg3d.settings.parse import flatten, parse

CAPTIONING = ("captioning", "max_steps=4")


def test_every_next_word_of_a_report_is_asked_for_and_padding_is_not():
    batch, model = random_batch(), build(objectives=("captioning",)).eval()
    features = model(batch)
    asked = features.captioning_targets != -100
    assert asked.sum(1).tolist() == (batch.attention_mask.sum(1) - 1).tolist()
    assert features.captioning_targets[1][asked[1]].tolist() == batch.report_ids[1][batch.attention_mask[1]][1:].tolist()
    loss = CaptionLoss()(features.captioning_logits, features.captioning_targets)
    torch.testing.assert_close(loss, cross_entropy(features.captioning_logits[asked], features.captioning_targets[asked]))
    loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if name.startswith(("vision", "caption")))


def test_the_clean_pass_of_the_encoder_is_shared_and_other_features_stay_as_they_are():
    batch, passes = random_batch(), []
    model, alone = build(objectives=(*OBJECTIVES, "captioning")).eval(), build().eval()
    encode = model.vision.encode
    model.vision.encode = lambda *arguments: passes.append(arguments[1] is None) or encode(*arguments)
    ours, theirs = model(batch), alone(batch)
    assert sorted(passes) == [False, True]
    assert theirs.captioning_logits is None
    for name, value in theirs._asdict().items():
        if value is not None:
            assert torch.equal(getattr(ours, name), value), name


def test_a_model_without_the_objective_writes_no_report():
    with pytest.raises(ValueError, match="no report decoder"):
        build().write_reports(random_batch().volume, begin=2, end=3, padding=0, most_tokens=9)


def test_settings_of_before_the_objective_mean_that_it_is_off():
    before = {name: value for name, value in flatten(resolve(["tiny"], {})).items() if "caption" not in name}
    assert parse(before) == resolve(["tiny"], {})
    assert build_untrained(parse(before), 60).caption is None


@pytest.fixture(scope="module")
def trained(arrows, tmp_path_factory):
    log_dir = tmp_path_factory.mktemp("captioning")
    assert command_line(words(arrows, log_dir, *CAPTIONING)) == 0
    return log_dir / "run"


def test_a_run_logs_the_objective_and_goes_on_bit_by_bit(trained, arrows, tmp_path):
    with (trained / "csv" / "part-000" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(float(row[name]) > 0 for row in rows for name in ("train/captioning", "val/captioning") if row[name])
    assert any(row["val/captioning"] for row in rows)
    assert command_line(words(arrows, tmp_path, *CAPTIONING, "max_minutes=1e-9")) == 0
    assert checkpoint(tmp_path / "run")["global_step"] == 1
    assert command_line(words(arrows, tmp_path, *CAPTIONING, "resume_from=last")) == 0
    assert_same_training(checkpoint(tmp_path / "run"), checkpoint(trained))


def test_a_saved_model_writes_the_reports_it_wrote_before(trained, tmp_path):
    first = from_pretrained(export_run(trained / "checkpoints" / "last.ckpt", tmp_path / "first"))
    again = from_pretrained(save_pretrained(first.model, tmp_path / "again", settings=first.settings, tokenizer=first.tokenizer))
    ids = {"begin": first.tokenizer.cls_token_id, "end": first.tokenizer.sep_token_id, "padding": first.tokenizer.pad_token_id}
    volume = torch.rand(2, 1, 32, 24, 32, generator=torch.Generator().manual_seed(0))
    ours, theirs = (one.model.write_reports(volume, **ids, most_tokens=12, beams=2) for one in (first, again))
    assert torch.equal(ours, theirs)
    assert ours.shape == (2, 12) or (ours == ids["end"]).any()
    assert torch.equal(ours[:, 0], torch.full((2,), ids["begin"]))
