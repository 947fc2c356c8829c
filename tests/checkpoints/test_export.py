"""Our own format: saved and loaded again gives the same numbers, without the network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from released_files import small_bert
from safetensors.torch import load_file, save_file

import mg3d
from mg3d.checkpoints.export import from_pretrained, save_pretrained
from mg3d.checkpoints.inspect import inspect_checkpoint
from mg3d.checkpoints.load import load_weights
from mg3d.config import resolve
from mg3d.datasets.tokenizer import load_tokenizer, train_wordpiece
from mg3d.models.build import build_model

SIZES = {
    "image_size": 32, "mim_cube": 8, "embed_dim": 12, "patch_size": 4, "window_size": 3, "depths": [2], "num_heads": [2],
    "hidden_size": 24, "embedding_size": 16, "fusion_heads": 3, "pool_queries": 2, "freeze_text": True, "max_text_len": 40,
    "text_encoder": "nobody/no-such-bert", "data_root": "/a/place/of/mine", "log_dir": "/another",
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


def test_outputs_are_equal_bit_by_bit(saved):
    model, _, folder = saved
    loaded = from_pretrained(folder)
    assert not loaded.model.training
    for ours, theirs in zip(outputs(model), outputs(loaded.model), strict=True):
        assert torch.equal(ours, theirs)
    for (name, ours), theirs in zip(model.state_dict().items(), loaded.model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_settings_tokenizer_and_needs_come_along_and_places_do_not(saved):
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
    assert loaded.config["patch_merging"] == "legacy"
    assert loaded.config["provenance"] == {"data": "nineteen phantoms"}
    assert "/a/place/of/mine" not in (folder / "config.json").read_text()


def test_the_folder_is_what_others_expect(saved):
    folder = saved[2]
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors", "tokenizer"]
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: mg3d\n")
    assert "| window_hu | [-1000.0, 1000.0] |" in card
    assert "patch merging is **legacy**" in card
    assert "* data: nineteen phantoms" in card
    assert not list(folder.parent.glob(".model*"))


def test_nothing_is_fetched_and_importing_the_package_stays_cheap(saved):
    code = (
        "import sys, mg3d; assert not {'torch', 'monai', 'transformers'} & set(sys.modules); from transformers import BertModel\n"
        "def refuse(*a, **k): raise AssertionError('weights of the text encoder were asked for')\n"
        "BertModel.from_pretrained = refuse; print(type(mg3d.load(sys.argv[1]).model).__name__)"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, str(saved[2])]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], env=environment, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "MG3D"


def test_a_saved_folder_has_a_passport_and_loads_into_another_model(saved):
    model, _, folder = saved
    told = inspect_checkpoint(folder)
    assert (told.style, told.merging, told.merging_source) == ("mg3d", "legacy", "stored in the file")
    assert told.provenance["provenance"] == {"data": "nineteen phantoms"}
    other, _ = build()
    for tensor in other.state_dict().values():
        if tensor.is_floating_point():
            tensor.zero_()
    report = load_weights(other, folder)
    assert report.coverage == report.encoder_coverage == 1.0
    assert not report.unexpected
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_the_merging_of_a_saved_model_is_held_against_another(tmp_path):
    model, settings = build(patch_merging="monai")
    save_pretrained(model, tmp_path / "monai", settings=settings)
    loaded = from_pretrained(tmp_path / "monai")
    assert torch.equal(outputs(loaded.model)[0], outputs(model)[0])
    assert loaded.tokenizer is None
    with pytest.raises(ValueError, match="trained with patch merging 'monai' and the model computes 'legacy'"):
        load_weights(build()[0], tmp_path / "monai")
    with pytest.raises(ValueError, match="computes patch merging 'monai' and the settings say 'legacy'"):
        save_pretrained(model, tmp_path / "mixed", settings=build()[1])
    assert not (tmp_path / "mixed").exists()


def test_a_models_precision_is_kept(tmp_path):
    model, settings = build()
    save_pretrained(model.double(), tmp_path / "double", settings=settings)
    assert from_pretrained(tmp_path / "double").model.project_image.weight.dtype == torch.float64


def test_a_folder_of_something_else_is_not_replaced(saved, tmp_path):
    model, settings, _ = saved
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="holds no model saved by mg3d"):
        save_pretrained(model, tmp_path, settings=settings)
    assert json.loads((tmp_path / "config.json").read_text()) == {"model_type": "bert"}


def test_a_model_saved_before_is_replaced_whole(saved, tmp_path):
    model, settings, _ = saved
    save_pretrained(model, tmp_path / "m", settings=settings, provenance={"round": 1})
    (tmp_path / "m" / "left_over.txt").touch()
    save_pretrained(model, tmp_path / "m", settings=settings, provenance={"round": 2})
    assert from_pretrained(tmp_path / "m").config["provenance"] == {"round": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert not (tmp_path / "m" / "left_over.txt").exists()


@pytest.mark.parametrize("name", ["nobody/has-this-model", "no folder of mine", "/no/such/folder"])
def test_what_is_neither_folder_nor_on_the_hub_is_told(name):
    with pytest.raises(FileNotFoundError, match=r"could not be fetched from the hub.*pass the local folder"):
        from_pretrained(name)


def copy_of(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    return config, tensors, tmp_path


def write(config, tensors, folder):
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda config, tensors: config.update(model_type="clip"), "is of a 'clip' model, not of mg3d"),
        (lambda config, tensors: config.update(format=2), "has format 2, this package reads 1"),
        (lambda config, tensors: config["settings"].update(colour="red"), "unknown setting 'colour'"),
        (lambda config, tensors: tensors.pop("project_image.bias"), "not those of its settings: .*project_image.bias"),
        (lambda config, tensors: config["settings"].update(embed_dim=24), "not those of its settings: .*size mismatch"),
    ],
)
def test_a_spoiled_folder_is_told(saved, spoil, sentence, tmp_path):
    config, tensors, folder = copy_of(saved[2], tmp_path)
    spoil(config, tensors)
    write(config, tensors, folder)
    with pytest.raises(ValueError, match=sentence):
        from_pretrained(folder)


def test_an_unknown_name_of_the_package_is_refused():
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        mg3d.lode  # noqa: B018
    assert "from_pretrained" in dir(mg3d)
