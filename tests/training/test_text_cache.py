"""Training with the text encoder's features from a cache."""

import pickle

import numpy as np
import pytest
import torch
from small_arrow import small_tokenizer
from small_run import checkpoint
from small_text_cache import cache_text, run_arguments, save_bert
from transformers import BertConfig, BertModel

from mg3d.config import command_line, read_arguments
from mg3d.datasets.text_cache import TextCache
from mg3d.models.text.encoder import load_text_encoder
from mg3d.training.build import build_data


def test_a_run_with_cached_text_is_the_run_without(arrows, tmp_path, capsys):
    bert, cache = save_bert(tmp_path / "bert", 0), tmp_path / "cache"
    plain = run_arguments(arrows, tmp_path / "plain", f"text_encoder={bert}")
    cached = run_arguments(arrows, tmp_path / "cached", f"text_encoder={bert}", f"text_cache={cache}")
    assert command_line(cached) == 2
    assert "holds no cache" in capsys.readouterr().err
    assert cache_text.main(cached) == 0
    assert command_line(plain) == 0
    assert command_line(cached) == 0
    ours, theirs = (checkpoint(tmp_path / name / "run")["state_dict"] for name in ("cached", "plain"))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=2e-5, msg=name)  # the cache is float32

    other = run_arguments(arrows, tmp_path / "other", f"text_encoder={save_bert(tmp_path / 'another', 1)}", f"text_cache={cache}")
    assert command_line(other) == 2
    assert "was computed with another text encoder" in capsys.readouterr().err
    shorter = run_arguments(arrows, tmp_path / "cut", f"text_encoder={bert}", f"text_cache={cache}", "max_text_len=12")
    assert command_line(shorter) == 2
    assert "max_text_len=250 instead of 12" in capsys.readouterr().err


def test_every_report_has_its_own_features_and_nothing_after_its_end(arrows, tmp_path):
    bert, cache = save_bert(tmp_path / "bert", 0), tmp_path / "cache"
    arguments = run_arguments(arrows, tmp_path, f"text_encoder={bert}", f"text_cache={cache}")
    assert cache_text.main(arguments) == 0
    settings = read_arguments(arguments[1:])
    data = build_data(settings, small_tokenizer(tmp_path / "again"), with_text_cache=True)
    batch = next(iter(data.train_dataloader()))
    text = load_text_encoder(bert)
    for row, features in enumerate(batch.text_features):
        real = batch.attention_mask[row]
        torch.testing.assert_close(features[real], text(batch.report_ids[row : row + 1, real], real[real][None])[0])
        assert not features[~real].any()
    pickled = pickle.dumps(data.options.collator["text_features"])
    assert len(pickled) < 1000
    ids = [row[real].numpy() for row, real in zip(batch.report_ids, batch.attention_mask, strict=True)]
    assert torch.equal(pickle.loads(pickled)(ids), batch.text_features)
    with pytest.raises(ValueError, match="does not contain a report of 3 tokens"):
        TextCache(cache)([np.array([2, 5, 3])])


def test_a_folder_of_other_things_is_not_replaced_by_a_cache(arrows, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    for name in ("mine", "mine/thesis.txt"):
        assert cache_text.main(run_arguments(arrows, tmp_path, "text_encoder=nowhere", f"text_cache={tmp_path / name}")) == 2
        assert f"text_cache={tmp_path / name} contains files other than a cache" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"


def test_runs_and_caches_are_refused_before_anything_loads_if_the_text_encoder_reads_fewer_tokens(arrows, tmp_path, capsys):
    bert, cache = save_bert(tmp_path / "bert", 0), tmp_path / "cache"
    most = BertConfig.from_pretrained(bert).max_position_embeddings
    (bert / "model.safetensors").unlink()
    arguments = run_arguments(arrows, tmp_path, f"text_encoder={bert}", f"max_text_len={most + 1}", f"text_cache={cache}")
    assert cache_text.main(arguments) == 2
    assert command_line([word for word in arguments if "text_cache" not in word]) == 2
    assert capsys.readouterr().err.count(f"set max_text_len={most}\n") == 2


def test_a_missing_with_is_reported(capsys):
    assert cache_text.main(["tiny"]) == 2
    assert "presets and settings follow `with`" in capsys.readouterr().err


def test_an_encoder_with_a_pooler_is_read_without_the_librarys_table(tmp_path, capfd):
    tokenizer = small_tokenizer(tmp_path)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path)
    capfd.readouterr()
    load_text_encoder(tmp_path)
    assert capfd.readouterr() == ("", "")
