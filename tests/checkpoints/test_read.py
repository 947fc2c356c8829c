"""Reading weights: tensors are found at any key; other files are refused with what they are; no code runs."""

import argparse
import os
import pickle
import zipfile
from collections import deque
from pathlib import PurePosixPath

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mg3d.checkpoints.read import read_checkpoint
from mg3d.checkpoints.resolve import find_local

WEIGHTS = {"first.weight": torch.arange(6.0).reshape(2, 3), "first.bias": torch.ones(2, dtype=torch.float16)}


class RunsCode:
    def __reduce__(self):
        return os.system, ("echo this must never run",)


def flip(path, position):
    whole = bytearray(path.read_bytes())
    whole[position] ^= 255
    path.write_bytes(whole)


def content(kind, path):
    if kind == "lfs":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    elif kind == "html":
        path.write_text("\n<!DOCTYPE html><html><head><title>Sign in</title></head></html>")
    elif kind == "empty":
        path.touch()
    elif kind == "cut_safetensors":
        save_file(WEIGHTS, path)
        path.write_bytes(path.read_bytes()[:-4])
    elif kind == "script":
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"w": np.zeros(3)}))
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("weights.pt", "x")
    elif kind == "npz":
        with path.open("wb") as stream:
            np.savez(stream, w=np.zeros(3))
    elif kind == "text":
        path.write_text("see the README for the weights\n")
    elif kind == "folder":
        path.mkdir()
        (path / "epoch3.ckpt").touch()
    else:
        torch_content(kind, path)


def torch_content(kind, path):
    if kind == "cut":
        torch.save({"state_dict": {"w": torch.zeros(5000)}}, path)
        path.write_bytes(path.read_bytes()[:-3000])
    elif kind == "cut_old":
        torch.save({"w": torch.zeros(5000)}, path, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes()[:-3000])
    elif kind == "code":
        torch.save({"state_dict": WEIGHTS, "extra": RunsCode()}, path)
    elif kind == "class":
        torch.save({"state_dict": WEIGHTS, "args": argparse.Namespace(width=48)}, path)
    elif kind == "class_old":
        torch.save({"state_dict": WEIGHTS, "args": argparse.Namespace()}, path, _use_new_zipfile_serialization=False)
    elif kind == "classes":
        extra = {"args": argparse.Namespace(), "lines": deque(), "folder": PurePosixPath("a")}
        torch.save({"state_dict": WEIGHTS} | extra, path)
    elif kind == "damaged":
        torch.save({"w": torch.zeros(5000)}, path)
        flip(path, path.stat().st_size // 2)
    elif kind == "damaged_end":
        torch.save(WEIGHTS, path)
        flip(path, path.read_bytes().rindex(b"PK\x01\x02") + 2)
    elif kind == "module":
        torch.save(torch.nn.Linear(2, 3), path)
    elif kind == "list":
        torch.save([torch.ones(2)], path)
    elif kind == "no_tensors":
        torch.save({"epoch": 3, "names": ["a"]}, path)
    elif kind == "numbered":
        torch.save({1: dict(WEIGHTS), (2, 3): 4}, path)
    elif kind == "one_of_many":
        torch.save({"left": dict(WEIGHTS), "right": dict(WEIGHTS)}, path)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("lfs", "is a Git LFS pointer.*git lfs pull"),
        ("html", "is an HTML page .a sign-in"),
        ("empty", "is empty; download or copy it again"),
        ("cut", "is incomplete or damaged after"),
        ("cut_old", "is incomplete, damaged or not written by torch.save"),
        ("cut_safetensors", "is incomplete or damaged"),
        ("code", r"only code can unpickle \((posix|nt).system\), and is not opened"),
        ("class", r"\(argparse.Namespace\).*save the tensors alone .* torch.save\(model.state_dict"),
        ("class_old", "only code can unpickle, and is not opened"),
        ("module", r"\(.*torch.nn.modules.linear.Linear"),
        ("pickle", "is incomplete, damaged or not written by torch.save|only code can unpickle"),
        ("classes", r"\(argparse.Namespace, collections.deque, pathlib\S*PurePosixPath\)"),
        ("damaged", r"is damaged: wrong checksum of \S+data/0"),
        ("damaged_end", "is incomplete or damaged.*download it again"),
        ("script", r"not written by torch.save \(.*TorchScript"),
        ("numbered", r"has no tensors \(\(2, 3\), 1\)"),
        ("zip", r"zip archive without a torch checkpoint \(weights.pt\)"),
        ("npz", r"zip archive without a torch checkpoint \(w.npy\)"),
        ("text", r"is not a torch or safetensors file; it starts with b'see the README"),
        ("folder", r"contains epoch3.ckpt, but neither a saved model .* nor a checkpoint of a run"),
        ("list", "contains a list instead of named tensors"),
        ("no_tensors", r"has no tensors \(epoch, names\)"),
        ("one_of_many", r"several state dicts \(left, right\); pass entry="),
    ],
)
def test_other_files_are_refused_with_what_they_are(kind, sentence, tmp_path, capfd):
    path = tmp_path / "weights.ckpt"
    content(kind, path)
    with pytest.raises(ValueError, match=sentence) as refusal:
        read_checkpoint(path)
    assert "weights.ckpt" in str(refusal.value)
    assert "must never run" not in capfd.readouterr().out


@pytest.mark.parametrize(("name", "taken"), [("tiny", "last"), ("tiny/last", "last"), ("tiny/best", "best"), ("short", "best")])
def test_the_checkpoint_of_a_run_is_read_and_logged(name, taken, tmp_path, capsys):
    for checkpoint, stored in (("tiny/checkpoints/last", 1.0), ("tiny/checkpoints/best", 2.0), ("short/checkpoints/best", 2.0)):
        (tmp_path / checkpoint).parent.mkdir(parents=True, exist_ok=True)
        torch.save({"state_dict": {"a": torch.tensor([stored])}}, tmp_path / f"{checkpoint}.ckpt")
    for _ in range(2):
        file = read_checkpoint(tmp_path / name)
    assert (file.path.stem, file.tensors["a"].item()) == (taken, {"last": 1.0, "best": 2.0}[taken])
    assert capsys.readouterr().err == f"mg3d: using {file.path} of the run {tmp_path / name}\n"


def test_only_owner_slash_name_can_be_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "result").mkdir()
    assert find_local("owner/name-1.0") is None
    for name in ("result/tniy", "tniy", "./owner/name", "a/b/c", "owner/name.ckpt", "/nowhere", "owner/last"):
        with pytest.raises(FileNotFoundError, match=rf"^{name} does not exist; name a saved folder"):
            find_local(name)
    with pytest.raises(ValueError, match=r"neither a saved model .* nor a checkpoint of a run"):
        find_local("result")


def test_a_missing_file_is_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*nowhere.ckpt"):
        read_checkpoint(tmp_path / "nowhere.ckpt")


@pytest.mark.parametrize(
    ("wrap", "entry"),
    [
        (lambda state: state, ""),
        (lambda state: {"state_dict": state, "epoch": 3}, "state_dict"),
        (lambda state: {"model": state}, "model"),
        (lambda state: {"net": state, "iteration": torch.tensor(4)}, "net"),
        (lambda state: {"student": state, "teacher": {}}, "student"),
        (lambda state: {"model": {"state_dict": state}}, "model.state_dict"),
        (lambda state: {"weights_of_mine": state, "epoch": 3}, "weights_of_mine"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_the_state_dict_is_found_at_any_key(wrap, entry, zipped, tmp_path):
    torch.save(wrap(WEIGHTS), tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    file = read_checkpoint(tmp_path / "w.pt")
    assert file.entry == entry
    assert file.tensors.keys() == WEIGHTS.keys()
    for name, tensor in WEIGHTS.items():
        assert file.tensors[name].dtype == tensor.dtype
        assert torch.equal(file.tensors[name], tensor)


def test_an_entry_can_be_passed_and_an_unknown_one_is_refused(tmp_path):
    torch.save({"student": WEIGHTS, "teacher": {"t": torch.zeros(1)}}, tmp_path / "w.pt")
    assert read_checkpoint(tmp_path / "w.pt", entry="teacher").tensors.keys() == {"t"}
    with pytest.raises(ValueError, match="no entry 'tutor'; its entries are student, teacher"):
        read_checkpoint(tmp_path / "w.pt", entry="tutor")


def test_safetensors_are_read_with_their_metadata(tmp_path):
    save_file(WEIGHTS, tmp_path / "anything", metadata={"format": "pt", "mg3d": '{"patch_merging": "monai"}'})
    file = read_checkpoint(tmp_path / "anything")
    assert torch.equal(file.tensors["first.weight"], WEIGHTS["first.weight"])
    assert file.metadata["mg3d"] == {"patch_merging": "monai"}


def test_numpy_scalars_in_a_checkpoint_are_safe(tmp_path):
    torch.save({"state_dict": WEIGHTS, "best": np.float64(0.5), "step": np.int64(7), "epoch": 3}, tmp_path / "w.pt")
    assert read_checkpoint(tmp_path / "w.pt").metadata["epoch"] == 3


def test_a_file_without_checksums_is_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(WEIGHTS, tmp_path / "w.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_checkpoint(tmp_path / "w.pt").tensors["first.weight"], WEIGHTS["first.weight"])


def test_recursive_or_unnamed_metadata_is_dropped(tmp_path):
    facts = {"epoch": 3}
    facts["again"] = facts
    torch.save({"state_dict": WEIGHTS, "facts": facts, 7: "x", "step": {"of": {1: 2}}, "best": {"loss": 0.5}}, tmp_path / "w.pt")
    assert read_checkpoint(tmp_path / "w.pt").metadata == {"best": {"loss": 0.5}}


def test_metadata_of_another_program_stays_text(tmp_path):
    save_file(WEIGHTS, tmp_path / "w", metadata={"mg3d": "version three"})
    assert read_checkpoint(tmp_path / "w").metadata == {"mg3d": "version three"}


def test_an_entry_of_a_file_without_entries_is_refused(tmp_path):
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(ValueError, match="has its tensors at the top level; remove entry='teacher'"):
            read_checkpoint(path, entry="teacher")


@pytest.mark.parametrize(("text", "sentence"), [("{", "not valid JSON"), ("[1]", "contains a list instead of an object")])
def test_a_folder_with_another_config_is_refused(text, sentence, tmp_path):
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        read_checkpoint(tmp_path)
