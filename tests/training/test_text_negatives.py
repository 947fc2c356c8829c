"""Extra report negatives in training runs."""

import pytest
import torch
from small_arrow import small_tokenizer
from small_model import build
from small_run import assert_same_training, checkpoint
from small_text_cache import cache_text, run_arguments, save_bert

from mg3d.config import command_line, read_arguments
from mg3d.datasets import negatives
from mg3d.models.text.encoder import load_text_encoder
from mg3d.sentence_spans import text_key
from mg3d.settings.parse import parse
from mg3d.training.build import build_data


def test_a_run_with_extra_negatives_resumes_bit_exactly(arrows, tmp_path):
    bert, cache = save_bert(tmp_path / "bert", 0), tmp_path / "cache"
    settings = (f"text_encoder={bert}", f"text_cache={cache}", "text_negatives=3", "grad_cache_chunk=2")
    whole, cut = (run_arguments(arrows, tmp_path / name, *settings, "precision=32-true") for name in ("whole", "cut"))
    assert cache_text.main(whole) == 0
    assert command_line(whole) == 0
    assert command_line([*cut, "max_minutes=1e-9"]) == 0
    assert checkpoint(tmp_path / "cut" / "run")["global_step"] == 1
    assert command_line([*cut, "resume_from=last"]) == 0
    ours, theirs = (checkpoint(tmp_path / name / "run") for name in ("cut", "whole"))
    assert_same_training(ours, theirs)

    without = run_arguments(arrows, tmp_path / "without", f"text_encoder={bert}", f"text_cache={cache}", "precision=32-true")
    assert command_line(without) == 0
    state = checkpoint(tmp_path / "without" / "run")["state_dict"]
    assert any(not torch.equal(state[name], value) for name, value in theirs["state_dict"].items())


def test_a_report_is_tokenised_when_it_is_first_drawn_alone(arrows, tmp_path, monkeypatch):
    bert, cache = save_bert(tmp_path / "bert", 0), tmp_path / "cache"
    arguments = run_arguments(arrows, tmp_path, f"text_encoder={bert}", f"text_cache={cache}", "text_negatives=5")
    assert cache_text.main(arguments) == 0
    data, encoded = build_data(read_arguments(arguments[1:]), small_tokenizer(tmp_path / "again"), with_text_cache=True), []
    encode = negatives.encode_report
    monkeypatch.setattr(negatives, "encode_report", lambda *of: encoded.append(of[1]) or encode(*of))
    draw = data._negatives()
    samples = [data.train_parts[0].sample(study, (0, 0, study)) for study in range(8)]
    first, studies = draw(samples), len(draw.tokenized)
    again = draw(samples)
    assert len(encoded) == studies <= sum(len(part) for part in data.train_parts)
    assert all(torch.equal(again[name], value) for name, value in first.items())


def test_further_reports_embed_as_reports_do_and_depend_on_their_study_alone(arrows, tmp_path):
    bert, cache = save_bert(tmp_path / "bert", 0), tmp_path / "cache"
    arguments = run_arguments(arrows, tmp_path, f"text_encoder={bert}", f"text_cache={cache}", "text_negatives=5")
    assert cache_text.main(arguments) == 0
    tokenizer = small_tokenizer(tmp_path / "again")

    def first_batch(*more):
        data = build_data(read_arguments([*arguments[1:], *more]), tokenizer, with_text_cache=True)
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
    embedded = model.eval().branches["contrast"]._embed_negatives(model.tokens(batch))["negative_embedding"]
    mine = list(zip(batch.patient_key.tolist(), batch.report_key.tolist(), strict=True))
    theirs = list(zip(batch.negative_patient_key[0].tolist(), batch.negative_report_key[0].tolist(), strict=True))
    assert set(mine) & set(theirs)
    for index, study in enumerate(theirs):
        if study in mine:
            row = mine.index(study)
            one = [part[row : row + 1] for part in (batch.report_ids, batch.attention_mask, batch.sentence_index)]
            torch.testing.assert_close(embedded[0, index], model.embed_report(*one)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_negatives": 4}, "text_cache"),
        ({"text_negatives": 4, "text_cache": "there", "weight_cml": 0.0}, "but weight_cml is 0"),
        ({"text_negatives": -1}, "must be greater than or equal to 0"),
    ],
)
def test_contradicting_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        parse(changes)
