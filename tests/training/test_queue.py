"""The memory queue and further reports in whole runs."""

import pytest
import torch
from small_arrow import small_tokenizer
from small_model import build, random_batch
from small_run import assert_same, assert_same_training, checkpoint, words
from small_text_cache import cache_text, save_bert, told

from mg3d.config import command_line, read_words
from mg3d.datasets import negatives
from mg3d.models.contrast import embed_further_reports
from mg3d.models.text.encoder import load_text_encoder
from mg3d.sentence_spans import text_key
from mg3d.settings.parse import parse
from mg3d.training.build import build_data
from mg3d.training.queue import SENTENCES, FeatureQueue


def test_the_oldest_are_overwritten_first_and_nothing_kept_has_a_graph():
    queue, model = FeatureQueue(5, with_cml=True, with_ssm=True), build(objectives=("cml", "ssm"))
    batch = random_batch(8)
    features = [model(type(batch)(*(field[rows] for field in batch))) for rows in (slice(0, 3), slice(3, 6), slice(6, 8))]
    queue.push(queue.take(features[0]))
    assert queue.kept.is_there.tolist() == [True] * 3 + [False] * 2
    assert queue.kept.sentence_mask.shape == (5, SENTENCES)
    assert queue.kept.sentence_mask.sum(1).tolist() == [2, 3, 4, 0, 0]
    queue.push(queue.take(features[1]))
    assert queue.kept.patient_key.tolist() == [5, 1, 2, 3, 4]
    queue.push(queue.take(features[2]))
    assert queue.kept.patient_key.tolist() == [5, 6, 7, 3, 4]
    torch.testing.assert_close(queue.kept.image_embedding[1], features[2].cml_first_embedding[0].detach())
    torch.testing.assert_close(queue.kept.text.norm(dim=-1)[1, 0].item(), 1.0, rtol=1e-6, atol=0)
    assert not any(part.requires_grad for part in queue.kept)
    again = FeatureQueue(5, with_cml=True, with_ssm=True)
    again.restore(queue.state())
    assert again.begin == queue.begin == 3
    assert_same(again.state(), queue.state())
    again.push(again.take(features[0]))
    assert queue.kept.patient_key.tolist() == [5, 6, 7, 3, 4]


def test_what_a_checkpoint_kept_follows_to_the_device_of_the_step():
    queue, again = (FeatureQueue(4, with_cml=True, with_ssm=False) for _ in range(2))
    assert queue.rows(torch.device("meta")) is None
    queue.push(queue.take(build(objectives=("cml",))(random_batch(3))))
    again.restore(queue.state())
    assert {part.device.type for part in again.rows(torch.device("meta"))} == {"meta"}


def test_more_than_it_holds_leaves_the_newest():
    queue, model = FeatureQueue(3, with_cml=True, with_ssm=False), build(objectives=("cml",))
    queue.push(queue.take(model(random_batch(5))))
    assert queue.kept.patient_key.tolist() == [2, 3, 4]
    assert not queue.kept.sentence_mask.any()
    assert queue.kept.visual.shape == (3, SENTENCES, 0)


def test_a_run_with_queue_and_further_reports_goes_on_bit_by_bit(arrows, tmp_path, capsys):
    bert, cache = save_bert(tmp_path / "bert", 0), tmp_path / "cache"
    settings = (f"text_encoder={bert}", f"text_cache={cache}", "text_negatives=3", "contrast_queue=10", "grad_cache_chunk=2")
    whole, cut = (told(arrows, tmp_path / name, *settings, "precision=32-true") for name in ("whole", "cut"))
    assert cache_text.main(whole) == 0
    assert command_line(whole) == 0
    assert command_line([*cut, "max_minutes=1e-9"]) == 0
    assert checkpoint(tmp_path / "cut" / "run")["global_step"] == 1
    assert command_line([*cut, "resume_from=last"]) == 0
    ours, theirs = (checkpoint(tmp_path / name / "run") for name in ("cut", "whole"))
    assert_same_training(ours, theirs)
    assert_same(ours["contrast_queue"], theirs["contrast_queue"])
    assert theirs["contrast_queue"]["begin"] == 2  # three steps of four studies in ten places

    without = told(arrows, tmp_path / "without", f"text_encoder={bert}", f"text_cache={cache}", "precision=32-true")
    assert command_line(without) == 0
    state = checkpoint(tmp_path / "without" / "run")["state_dict"]
    assert any(not torch.equal(state[name], value) for name, value in theirs["state_dict"].items())
    assert command_line([*cut, "resume_from=last", "contrast_queue=12"]) == 2
    assert "contrast_queue" in capsys.readouterr().err


def test_a_report_is_tokenised_when_it_is_first_drawn_alone(arrows, tmp_path, monkeypatch):
    bert, cache = save_bert(tmp_path / "bert", 0), tmp_path / "cache"
    arguments = told(arrows, tmp_path, f"text_encoder={bert}", f"text_cache={cache}", "text_negatives=5")
    assert cache_text.main(arguments) == 0
    data, asked = build_data(read_words(arguments[1:]), small_tokenizer(tmp_path / "again"), with_text_cache=True), []
    encode = negatives.encode_report
    monkeypatch.setattr(negatives, "encode_report", lambda *of: asked.append(of[1]) or encode(*of))
    draw = data._negatives()
    samples = [data.train_parts[0].sample(study, (0, 0, study)) for study in range(8)]
    first, studies = draw(samples), len(draw.known)
    again = draw(samples)
    assert len(asked) == studies <= sum(len(part) for part in data.train_parts)
    assert all(torch.equal(again[name], value) for name, value in first.items())


def test_further_reports_embed_as_reports_do_and_depend_on_their_study_alone(arrows, tmp_path):
    bert, cache = save_bert(tmp_path / "bert", 0), tmp_path / "cache"
    arguments = told(arrows, tmp_path, f"text_encoder={bert}", f"text_cache={cache}", "text_negatives=5")
    assert cache_text.main(arguments) == 0
    tokenizer = small_tokenizer(tmp_path / "again")

    def first_batch(*more):
        data = build_data(read_words([*arguments[1:], *more]), tokenizer, with_text_cache=True)
        return data, next(iter(data.train_dataloader()))

    data, batch = first_batch()
    assert batch.negative_sentences.shape[:2] == (4, 5)
    assert len(set(batch.negative_report_key[0].tolist())) > 1
    _, of_two = first_batch("per_gpu_batchsize=2")
    torch.testing.assert_close(of_two.negative_report_key, batch.negative_report_key[:2])
    assert len(next(iter(data.val_dataloader())).negative_sentences) == 0

    known = {text_key(part.patient(study)) for part in data.train_parts for study in range(len(part))}
    assert set(batch.negative_patient_key.flatten().tolist()) <= known
    model = build(objectives=("cml",)).float()
    model.text = load_text_encoder(bert)
    embedded = embed_further_reports(batch, model._project_report, model.eval().contrast)["negative_embedding"]
    mine = list(zip(batch.patient_key.tolist(), batch.report_key.tolist(), strict=True))
    theirs = list(zip(batch.negative_patient_key[0].tolist(), batch.negative_report_key[0].tolist(), strict=True))
    assert set(mine) & set(theirs)
    for place, study in enumerate(theirs):
        if study in mine:
            row = mine.index(study)
            one = [part[row : row + 1] for part in (batch.report_ids, batch.attention_mask, batch.sentence_index)]
            torch.testing.assert_close(embedded[0, place], model.embed_report(*one)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text_negatives": 4}, "text_cache"),
        ({"contrast_queue": 4, "exclude_duplicates": False}, "own report"),
        ({"contrast_queue": 4, "weight_cml": 0.0, "weight_ssm": 0.0}, "weights weight_cml and weight_ssm are 0"),
        ({"contrast_queue": 4, "ssm_form": "pair_mean"}, "one rank only"),
        ({"contrast_queue": -1}, "0 or more studies"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        parse(changes)


def test_a_queue_wants_steps_of_one_pass(arrows, tmp_path, capsys):
    assert command_line(words(arrows, tmp_path, "contrast_queue=8", "per_gpu_batchsize=2")) == 2
    assert "per_gpu_batchsize=4 grad_cache_chunk=2" in capsys.readouterr().err
