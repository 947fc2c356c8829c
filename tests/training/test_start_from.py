"""Pre-training from weights, and export of a run."""

import runpy
import shutil
from pathlib import Path

import pytest
import torch
from small_arrow import write_split

from mg3d.checkpoints.pretrained import from_pretrained
from mg3d.config import command_line
from mg3d.datasets.tokenizer import load_tokenizer, train_wordpiece

ROOT = Path(__file__).parents[2]
SMALL = [
    "image_size=32", "mim_patch_size=8", "embed_dim=12", "num_heads=[2]", "hidden_size=24", "embedding_size=16",
    "tiny_text_width=16",
    "tiny_text_layers=1", "tiny_text_heads=2", "per_gpu_batchsize=4", "batch_size=4", "warmup_steps=0", "max_steps=1",
    "val_interval=1", "val_batches=1", "log_interval=1", "num_workers=0", "patch_size=4", "depths=[2]", "ground_truth_root=''",
    "evidence=False", "accelerator=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def begin(tmp_path_factory):
    root = tmp_path_factory.mktemp("start")
    for split in ("train", "val"):
        for dataset, unit in (("ct_rate", "hu"), ("ctrg", "uint8_unknown_window")):
            write_split(root / "arrows", dataset, split, patients=8, shape=(32, 24, 32), unit=unit)

    def run(name, *more):
        return command_line(
            ["with", "tiny", *SMALL, f"data_root={root / 'arrows'}", f"log_dir={root}", f"run_name={name}", *more]
        )

    assert run("first", "seed=1") == 0
    return run, root


def last(root, name):
    return torch.load(root / name / "checkpoints" / "last.ckpt", weights_only=True)


def test_a_run_starts_from_the_weights_of_another(begin, capsys):
    run, root = begin
    first = root / "first" / "checkpoints" / "last.ckpt"
    assert run("second", f"load_path={first}", "learning_rate=1e-30", "weight_decay=0.0") == 0
    said = capsys.readouterr().out
    assert "encoder 100.0%, model 100.0% of parameters; patch merging legacy" in said
    assert "1e-5 is usual" not in said
    ours, theirs = last(root, "second")["state_dict"], last(root, "first")["state_dict"]
    trained = [name for name in ours if "sentence_space" not in name and "target_text" not in name]
    assert len(trained) > 50
    for name in trained:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-9, msg=name)


def test_a_text_encoder_with_another_tokenizer_is_skipped(begin, capsys):
    run, root = begin
    first = torch.load(root / "first" / "checkpoints" / "last.ckpt", weights_only=True)
    first["mg3d"]["tokenizer"] |= {"sha256": "of other reports"}
    torch.save(first, root / "other_reports.ckpt")
    assert run("fifth", f"load_path={root / 'other_reports.ckpt'}", "learning_rate=1e-30", "weight_decay=0.0") == 0
    assert "its tokenizer was trained on other reports" in " ".join(capsys.readouterr().out.split())
    ours = last(root, "fifth")["state_dict"]
    words = "model.text.bert.embeddings.word_embeddings.weight"
    assert (ours[words] - first["state_dict"][words]).abs().max() > 1e-3


def test_a_high_learning_rate_is_noted(begin, capsys):
    run, root = begin
    assert run("third", f"load_path={root / 'first' / 'checkpoints' / 'last.ckpt'}") == 0
    assert "is high for pre-trained weights; 1e-5 is usual" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("load_path=nowhere.ckpt",), "there is no file nowhere.ckpt"),
        (("embed_dim=24",), "embed_dim=12"),
        (("patch_merging=monai",), "patch_merging=legacy"),
        (("load_patch_merging=new",), "load_patch_merging='new': must be"),
        (("load_prefix=theirs",), "there is no image encoder with prefix='theirs.'"),
        (("load_entry=teacher",), "has no entry 'teacher'"),
    ],
)
def test_mismatching_weights_are_refused_in_one_sentence(begin, more, sentence, capsys):
    run, root = begin
    assert run("fourth", f"load_path={root / 'first' / 'checkpoints' / 'last.ckpt'}", *more) == 2
    assert sentence in capsys.readouterr().err.strip().splitlines()[-1]


def test_weights_are_checked_before_data(begin, tmp_path, capsys):
    run, root = begin
    state = last(root, "first")["state_dict"]
    theirs = {name.replace("model.vision.", "theirs.core."): tensor for name, tensor in state.items() if ".vision." in name}
    torch.save({"teacher": theirs}, tmp_path / "w.pt")
    words = [f"load_path={tmp_path / 'w.pt'}", "load_patch_merging=legacy", "load_entry=teacher"]
    assert run("seventh", *words, f"data_root={tmp_path}") == 2
    assert "pass prefix='theirs.core.'" in capsys.readouterr().err
    assert run("seventh", *words, "load_prefix=theirs.core", "data_root=nowhere") == 2
    assert "nowhere" in capsys.readouterr().err
    assert run("seventh", *words, "load_prefix=theirs.core") == 0
    assert "encoder 100.0%" in capsys.readouterr().out


def test_a_lower_minimum_coverage_is_accepted(begin, tmp_path, capsys):
    run, root = begin
    state = {name.removeprefix("model."): tensor for name, tensor in last(root, "first")["state_dict"].items()}
    torch.save({name: tensor for name, tensor in state.items() if not name.startswith("vision.layers1.")}, tmp_path / "w.pt")
    words = [f"load_path={tmp_path / 'w.pt'}", "load_patch_merging=legacy"]
    assert run("sixth", *words) == 2
    assert "at least 90% are required" in capsys.readouterr().err
    assert run("sixth", *words, "load_minimum_coverage=0.0") == 0


def test_a_run_is_exported(begin, capsys):
    _, root = begin
    tool = runpy.run_path(str(ROOT / "tools" / "export_checkpoint.py"))["main"]
    checkpoint = root / "first" / "checkpoints" / "last.ckpt"
    assert tool([str(checkpoint), str(root / "exported"), "--note", "data=sixteen phantoms"]) == 0
    loaded = from_pretrained(root / "exported")
    state = last(root, "first")["state_dict"]
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, state["model." + name]), name
    assert loaded.tokenizer is not None
    assert loaded.settings.run.seed == 1
    assert str(root) not in (root / "exported" / "config.json").read_text()
    provenance = loaded.config["provenance"]
    assert (provenance["global_step"], provenance["encoder"], provenance["data"]) == (1, "swin", "sixteen phantoms")
    assert tool([str(checkpoint), str(root / "again"), "--note", "nothing"]) == 2
    assert tool([str(root / "exported"), str(root / "twice"), "--note", "licence=mine"]) == 0
    twice = from_pretrained(root / "twice")
    assert twice.config["provenance"] == provenance | {"licence": "mine"}
    assert twice.tokenizer.get_vocab() == loaded.tokenizer.get_vocab()
    torch.save({"w": torch.ones(1)}, root / "other.ckpt")
    assert tool([str(root / "other.ckpt"), str(root / "again")]) == 2
    assert "is not a checkpoint of an mg3d pre-training run" in capsys.readouterr().err


def test_a_moved_checkpoint_is_exported_with_a_given_tokenizer(begin, tmp_path, capsys):
    _, root = begin
    tool = runpy.run_path(str(ROOT / "tools" / "export_checkpoint.py"))["main"]
    away = tmp_path / "a" / "b" / "last.ckpt"
    away.parent.mkdir(parents=True)
    shutil.copy(root / "first" / "checkpoints" / "last.ckpt", away)
    assert tool([str(away), str(tmp_path / "without")]) == 0
    assert "no tokenizer was found or stored; --tokenizer FOLDER" in capsys.readouterr().out
    assert "the tokenizer of its training run" in (tmp_path / "without" / "README.md").read_text()
    words = root / "first" / "tokenizer"
    assert tool([str(away), str(tmp_path / "with"), "--tokenizer", str(words)]) == 0
    assert "no tokenizer" not in capsys.readouterr().out
    assert from_pretrained(tmp_path / "with").tokenizer.get_vocab() == load_tokenizer(str(words)).get_vocab()
    assert not any(str(root) in file.read_text() for file in (tmp_path / "with" / "tokenizer").iterdir())
    train_wordpiece([" ".join(map(str, range(100, 900)))], vocab_size=900, out_dir=tmp_path / "other")
    assert tool([str(away), str(tmp_path / "wrong"), "--tokenizer", str(tmp_path / "other")]) == 2
    assert "use the tokenizer that the model was trained with" in capsys.readouterr().err
    assert not (tmp_path / "wrong").exists()
