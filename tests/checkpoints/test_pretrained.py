"""save_pretrained and from_pretrained: identical outputs, no network, damaged folders are refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from released_files import small_bert
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import BertModel

import mg3d
from mg3d.checkpoints.info import inspect_checkpoint
from mg3d.checkpoints.load import load_weights
from mg3d.checkpoints.pretrained import from_pretrained, outline, save_pretrained
from mg3d.config import resolve
from mg3d.datasets.tokenizer import load_tokenizer, train_wordpiece
from mg3d.models.build import build_model
from mg3d.models.mg3d import MG3D
from mg3d.models.text.encoder import load_text_encoder

SIZES = {
    "image_size": 32, "mim_patch_size": 8, "embed_dim": 12, "patch_size": 4, "window_size": 3, "depths": [2], "num_heads": [2],
    "hidden_size": 24, "embedding_size": 16, "fusion_heads": 3, "pool_queries": 2, "freeze_text": True, "max_text_len": 40,
    "text_encoder": "nobody/no-such-bert", "data_root": "/mnt/scans/of/mine", "log_dir": "/another",
}  # fmt: skip


def build(**changes):
    torch.manual_seed(3)
    settings = resolve(["tiny"], SIZES | changes)
    model = build_model(settings, small_bert(words=60, layers=1, width=16, heads=2, positions=48))
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.01 * torch.randn_like(tensor))
    return model.eval(), settings


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model, settings = build()
    folder = tmp_path_factory.mktemp("saved") / "model"
    tokenizer = train_wordpiece(["no effusion.", "small nodule."], vocab_size=60, out_dir=folder.parent / "words")
    save_pretrained(model, folder, settings=settings, tokenizer=tokenizer, provenance={"data": "nineteen phantoms"})
    return model, settings, folder


def outputs(model):
    generator = torch.Generator().manual_seed(1)
    volume = torch.rand(2, 1, 32, 24, 32, generator=generator)
    ids = torch.randint(5, 50, (2, 9), generator=generator)
    index = torch.arange(9).expand(2, 9) // 3
    with torch.no_grad():
        return model.embed_volume(volume), model.embed_report(ids, torch.ones(2, 9, dtype=torch.bool), index)


def test_outputs_are_bit_exact(saved):
    model, _, folder = saved
    loaded = from_pretrained(folder)
    assert not loaded.model.training
    for ours, theirs in zip(outputs(model), outputs(loaded.model), strict=True):
        assert torch.equal(ours, theirs)
    for (name, ours), theirs in zip(model.state_dict().items(), loaded.model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_settings_and_tokenizer_are_saved_and_paths_are_not(saved):
    _, settings, folder = saved
    loaded = mg3d.from_pretrained(str(folder))
    assert loaded.settings.vision == settings.vision
    assert loaded.settings.model == settings.model
    assert loaded.settings.data.data_root == "data/pretrain_arrows"
    words = load_tokenizer(str(folder.parent / "words"))
    assert loaded.tokenizer("no effusion.")["input_ids"] == words("no effusion.")["input_ids"]
    assert loaded.tokenizer.convert_ids_to_tokens(loaded.tokenizer("small nodule")["input_ids"])[1] == "small"
    assert loaded.config["preprocessing"]["shape"] == [32, 24, 32]
    assert loaded.config["preprocessing"]["window_hu"] == [-1000.0, 1000.0]
    assert loaded.config["settings"]["patch_merging"] == "legacy"
    assert loaded.config["provenance"] == {"data": "nineteen phantoms"}
    assert "/mnt/scans/of/mine" not in (folder / "config.json").read_text()


def test_files_and_model_card(saved):
    folder = saved[2]
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors", "tokenizer"]
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: mg3d\n")
    assert "| window_hu | [-1000.0, 1000.0] |" in card
    assert "patch merging is **legacy**" in card
    assert "* data: nineteen phantoms" in card
    assert "Lower case, at most 40 tokens. Its tokenizer, of 33 entries, is in the folder `tokenizer`." in card
    assert not list(folder.parent.glob(".model*"))


def test_importing_the_package_imports_no_large_library():
    code = "import sys, mg3d; print({'torch', 'monai', 'transformers'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True)
    assert ran.stdout.strip() == "set()"


def test_loading_downloads_no_weights_of_the_text_encoder(saved, monkeypatch):
    def refuse(*arguments, **named):
        raise AssertionError("from_pretrained was called")

    monkeypatch.setattr(BertModel, "from_pretrained", refuse)
    monkeypatch.setattr("mg3d.checkpoints.pretrained.snapshot_download", refuse)
    assert isinstance(mg3d.load(saved[2]).model, MG3D)


def test_a_saved_folder_is_described_and_loads_into_another_model(saved):
    model, _, folder = saved
    info = inspect_checkpoint(folder)
    assert (info.style, info.merging, info.merging_source) == ("mg3d", "legacy", "stored in the file")
    assert info.provenance["provenance"] == {"data": "nineteen phantoms"}
    assert "data nineteen phantoms" in str(info)
    other, _ = build()
    for tensor in other.state_dict().values():
        if tensor.is_floating_point():
            tensor.zero_()
    report = load_weights(other, folder)
    assert report.coverage == report.encoder_coverage == 1.0
    assert not report.unexpected
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_the_merging_of_a_saved_model_must_match(tmp_path):
    model, settings = build(patch_merging="monai")
    save_pretrained(model, tmp_path / "monai", settings=settings)
    loaded = from_pretrained(tmp_path / "monai")
    assert torch.equal(outputs(loaded.model)[0], outputs(model)[0])
    assert loaded.tokenizer is None
    card = (tmp_path / "monai" / "README.md").read_text()
    assert "use the tokenizer of nobody/no-such-bert (60 entries)." in card
    with pytest.raises(ValueError, match="trained with patch merging 'monai', but the model computes 'legacy'"):
        load_weights(build()[0], tmp_path / "monai")
    with pytest.raises(ValueError, match="computes patch merging 'monai', but the settings have patch_merging=legacy"):
        save_pretrained(model, tmp_path / "mixed", settings=build()[1])
    assert not (tmp_path / "mixed").exists()


def test_the_precision_is_saved(tmp_path):
    model, settings = build()
    save_pretrained(model.double(), tmp_path / "double", settings=settings)
    assert from_pretrained(tmp_path / "double").model.project_image.weight.dtype == torch.float64


def test_another_folder_is_not_replaced(saved, tmp_path):
    model, settings, _ = saved
    for other in ("[1]", '{"model_type": "bert"}'):
        (tmp_path / "config.json").write_text(other)
        with pytest.raises(ValueError, match="is not a model saved by mg3d"):
            save_pretrained(model, tmp_path, settings=settings)
    assert json.loads((tmp_path / "config.json").read_text()) == {"model_type": "bert"}


def test_a_saved_model_is_replaced(saved, tmp_path):
    model, settings, _ = saved
    save_pretrained(model, tmp_path / "m", settings=settings, provenance={"round": 1})
    (tmp_path / "m" / "left_over.txt").touch()
    save_pretrained(model, tmp_path / "m", settings=settings, provenance={"round": 2})
    assert from_pretrained(tmp_path / "m").config["provenance"] == {"round": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert not (tmp_path / "m" / "left_over.txt").exists()


def test_a_failed_replacement_keeps_the_saved_model(saved, tmp_path, monkeypatch):
    model, settings, _ = saved
    save_pretrained(model, tmp_path / "m", settings=settings, provenance={"round": 1})
    rename = Path.replace

    def fails(source, target):
        if ".tmp-" in source.name and target == tmp_path / "m":
            raise PermissionError(13, "Permission denied", str(target))
        return rename(source, target)

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(PermissionError):
        save_pretrained(model, tmp_path / "m", settings=settings, provenance={"round": 2})
    assert from_pretrained(tmp_path / "m").config["provenance"] == {"round": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_symlink_stays_a_symlink(saved, tmp_path):
    model, settings, _ = saved
    (tmp_path / "disk").mkdir()
    (tmp_path / "m").symlink_to(tmp_path / "disk", target_is_directory=True)
    for count in (1, 2):
        save_pretrained(model, tmp_path / "m", settings=settings, provenance={"round": count})
    assert from_pretrained(tmp_path / "disk").config["provenance"] == {"round": 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "m"]


@pytest.mark.parametrize("name", ["nobody/has-this-model", "no folder of mine", "/no/such/folder"])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(FileNotFoundError, match=r"^there is no |does not exist"):
        from_pretrained(name)


def damaged(folder, into, change):
    """A copy of a saved folder, changed by `change(config, tensors, metadata)`."""
    config = json.loads((folder / "config.json").read_text())
    with safe_open(folder / "model.safetensors", framework="pt") as stream:
        metadata = stream.metadata()
    identity, tensors = json.loads(metadata["mg3d"]), load_file(folder / "model.safetensors")
    change(config, tensors, identity)
    (into / "config.json").write_text(json.dumps(config))
    save_file(tensors, into / "model.safetensors", metadata={"mg3d": json.dumps(identity)})
    return into


def of_config(**changes):
    return lambda config, tensors, identity: config.update(changes)


def of_settings(**changes):
    return lambda config, tensors, identity: config["settings"].update(changes)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (of_config(model_type="clip"), "config.json: model_type is 'clip' instead of 'mg3d'"),
        (of_config(format=1), "config.json: format is 1, this version of mg3d reads 3; export the model again"),
        (of_config(settings=["swin"]), "config.json: entry 'settings' is missing or not a dict"),
        (lambda config, *_: config.pop("text_config"), "config.json: entry 'text_config' is missing or not a dict"),
        (of_config(text_config={"hidden_act": "none of these"}), "text_config is not a valid BERT configuration"),
        (of_config(text_config={"hidden_size": "wide"}), "text_config is not a valid BERT configuration"),
        (of_config(precision="int8"), "config.json: precision is 'int8', must be one of float16"),
        (of_settings(colour="red"), "config.json: unknown setting 'colour'"),
        (of_settings(depths=2), "config.json: depths=2: must be a list"),
        (lambda config, *_: config["settings"].pop("fusion_heads"), "config.json: settings fusion_heads are missing"),
        (lambda config, tensors, identity: identity["settings"].update(patch_merging="monai"),
         "patch_merging is 'legacy' here and 'monai' in model.safetensors: the two files belong to different models"),
        (of_settings(patch_merging="monai"), "patch_merging is 'monai' here and 'legacy' in model.safetensors"),
        (lambda config, *_: config["preprocessing"].update(window_hu=[-1350, 150]), r"window_hu': \[-1350, 150\].* here and"),
        (lambda config, tensors, identity: tensors.pop("project_image.bias"),
         r"do not match the settings: 1 missing \(project_image.bias\)"),
        (lambda config, tensors, identity: tensors.update(more=torch.ones(2)), r"1 unexpected \(more\)"),
        (lambda config, tensors, identity: tensors.update({"vision.patch_embed.proj.weight": torch.ones(24, 1, 4, 4, 4)}),
         r"of another shape \(.* \[24, 1, 4, 4, 4\] instead of \[12, 1, 4, 4, 4\]"),
        (of_settings(embed_dim=24), "embed_dim is 24 here and 12 in model.safetensors"),
        (of_config(precision="float16"), "of another precision .*torch.float32 instead of torch.float16"),
        (lambda config, tensors, identity: tensors["project_image.bias"].fill_(float("inf")),
         "NaN or Inf in project_image.bias"),
    ],
)  # fmt: skip
def test_a_damaged_folder_is_refused(saved, change, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence) as caught:
        from_pretrained(damaged(saved[2], tmp_path, change))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_of_another_model_is_refused(saved, tmp_path):
    shutil.copytree(saved[2], tmp_path / "m")
    train_wordpiece([" ".join(map(str, range(100, 300)))], vocab_size=200, out_dir=tmp_path / "m" / "tokenizer")
    with pytest.raises(ValueError, match="has 200 entries and the model 60; use the tokenizer"):
        from_pretrained(tmp_path / "m")


def test_weights_without_metadata_are_read(saved, tmp_path):
    folder = damaged(saved[2], tmp_path, lambda config, tensors, identity: identity.clear())
    assert torch.equal(outputs(from_pretrained(folder).model)[0], outputs(saved[0])[0])


def test_the_weights_file_stores_merging_and_preprocessing(saved):
    info = inspect_checkpoint(saved[2] / "model.safetensors")
    assert (info.merging, info.merging_source) == ("legacy", "stored in the file")
    assert info.preprocessing == inspect_checkpoint(saved[2]).preprocessing
    assert info.preprocessing["shape"] == [32, 24, 32]


def test_a_model_that_differs_from_its_settings_is_not_saved(saved, tmp_path):
    model, settings, _ = saved
    others = {"pool_queries": r"of another shape \(.*queries", "weight_mim": r"21 unexpected \(vision.mask_token"}
    for name, sentence in others.items():
        other = resolve(["tiny"], SIZES | {name: 3 if name == "pool_queries" else 0.0})
        with pytest.raises(ValueError, match=sentence):
            save_pretrained(model, tmp_path / "m", settings=other)
    broken, _ = build()
    broken.project_report.bias.data[2] = float("nan")
    with pytest.raises(ValueError, match=r"NaN or Inf in project_report.bias"):
        save_pretrained(broken, tmp_path / "m", settings=settings)
    mixed, _ = build()
    mixed.project_report.double()
    with pytest.raises(ValueError, match=r"2 of another precision .*project_report.weight torch.float64"):
        save_pretrained(mixed, tmp_path / "m", settings=settings)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [float("nan"), Path("a"), torch.ones(1)])
def test_provenance_must_be_valid_json(saved, value, tmp_path):
    with pytest.raises(ValueError, match="must be valid JSON"):
        save_pretrained(saved[0], tmp_path / "m", settings=saved[1], provenance={"loss": value})
    assert not list(tmp_path.iterdir())


def test_the_outline_needs_no_memory():
    """A BERT with a million words and 768 channels would take 3 GB."""
    settings = resolve([], {"text_encoder": "nobody/large"})
    model = outline(settings, {"vocab_size": 1_000_000}, torch.float32)
    assert model.state_dict()["text.bert.embeddings.word_embeddings.weight"].shape == (1_000_000, 768)
    assert {tensor.device.type for tensor in [*model.state_dict().values(), *model.buffers()]} == {"meta"}


def test_the_path_of_the_text_encoder_is_not_saved(tmp_path):
    _, settings = build()
    small_bert(words=60, layers=1, width=16, heads=2, positions=48).bert.save_pretrained(tmp_path / "bert")
    text = load_text_encoder(tmp_path / "bert")
    save_pretrained(build_model(settings, text), tmp_path / "m", settings=settings)
    assert text.bert.config.name_or_path == str(tmp_path / "bert")
    assert str(tmp_path) not in (tmp_path / "m" / "config.json").read_text()


def test_an_unknown_name_of_the_package_is_refused():
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        mg3d.lode  # noqa: B018
    assert "from_pretrained" in dir(mg3d)
