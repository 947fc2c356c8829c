"""Pre-training with captioning."""

import csv

import pytest
import torch
from small_model import OBJECTIVES, build, random_batch
from small_run import assert_same_training, checkpoint, words
from torch.nn.functional import cross_entropy

from mg3d.checkpoints.pretrained import export_run, from_pretrained, save_pretrained
from mg3d.config import command_line

CAPTIONING = ("captioning", "max_steps=4")


def test_every_next_token_of_a_report_is_predicted_and_padding_is_ignored():
    batch, model = random_batch(), build(objectives=("captioning",)).eval()
    decoder, image = model.branches["captioning"].decoder, model.encode_volume(batch.volume)
    expected = []
    for tokens, ids, mask in zip(image, batch.report_ids, batch.attention_mask, strict=True):
        words = ids[mask]
        expected.append(cross_entropy(decoder(tokens[None], words[None, :-1])[0], words[1:], reduction="sum"))
    features = model(batch)
    assert features["captioning_tokens"].tolist() == (batch.attention_mask.sum(1) - 1).tolist()
    torch.testing.assert_close(features["captioning_loss"], torch.stack(expected))
    loss = model.losses(features)["captioning"]
    torch.testing.assert_close(loss, sum(expected) / (batch.attention_mask.sum() - len(image)))
    loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if name.startswith(("vision", "branches")))


def test_captioning_leaves_the_features_of_other_branches_unchanged():
    batch = random_batch()
    ours, theirs = (build(objectives=names).eval()(batch) for names in ((*OBJECTIVES, "captioning"), OBJECTIVES))
    assert ours.keys() - theirs.keys() == {"captioning_loss", "captioning_tokens"}
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


def test_a_model_without_the_objective_generates_no_report():
    with pytest.raises(ValueError, match="no report decoder; train with the preset captioning"):
        build().generate_reports(random_batch().volume, bos_token_id=2, eos_token_id=3, pad_token_id=0, max_length=9)


@pytest.fixture(scope="module")
def trained(arrows, tmp_path_factory):
    log_dir = tmp_path_factory.mktemp("captioning")
    assert command_line(words(arrows, log_dir, *CAPTIONING)) == 0
    return log_dir / "run"


def test_a_run_logs_the_objective_and_resumes_bit_exactly(trained, arrows, tmp_path):
    with (trained / "csv" / "part-000" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(float(row[name]) > 0 for row in rows for name in ("train/captioning", "val/captioning") if row[name])
    assert any(row["val/captioning"] for row in rows)
    assert command_line(words(arrows, tmp_path, *CAPTIONING, "max_minutes=1e-9")) == 0
    assert checkpoint(tmp_path / "run")["global_step"] == 1
    assert command_line(words(arrows, tmp_path, *CAPTIONING, "resume_from=last")) == 0
    assert_same_training(checkpoint(tmp_path / "run"), checkpoint(trained))


def test_a_saved_model_generates_the_same_reports(trained, tmp_path):
    first = from_pretrained(export_run(trained / "checkpoints" / "last.ckpt", tmp_path / "first"))
    again = from_pretrained(save_pretrained(first.model, tmp_path / "again", settings=first.settings, tokenizer=first.tokenizer))
    tokenizer = first.tokenizer
    ids = {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    ids["pad_token_id"] = tokenizer.pad_token_id
    volume = torch.rand(2, 1, 32, 24, 32, generator=torch.Generator().manual_seed(0))
    ours, theirs = (one.model.generate_reports(volume, **ids, max_length=12, num_beams=2) for one in (first, again))
    assert torch.equal(ours, theirs)
    assert ours.shape == (2, 12) or (ours == ids["eos_token_id"]).any()
    assert torch.equal(ours[:, 0], torch.full((2,), ids["bos_token_id"]))
