"""The whole model from every kind of checkpoint."""

import pytest
import torch
from downstream.folders import load
from finetune.small_rate import SHAPE, SIZES, save_model
from released_files import small_bert, small_key_list, synthetic
from small_arrow import small_tokenizer

from mg3d.checkpoints.pretrained import from_pretrained, text_config
from mg3d.config import resolve
from mg3d.finetune.encoder import load_encoder
from mg3d.finetune.pretrained_model import can_compare, describe, load_pretrained_model, rebuild
from mg3d.finetune.run import run
from mg3d.finetune.settings import FinetuneSettings
from mg3d.models.build import build_untrained
from mg3d.settings.parse import flatten


def start(path, shape=SHAPE, **options):
    settings = FinetuneSettings(pretrained=str(path), accelerator="cpu")
    return load_pretrained_model(settings, shape=shape, **{"text_encoder": "", **options})


def test_an_exported_folder_gives_its_embeddings(tmp_path):
    whole, plain = start(save_model(tmp_path / "model")), from_pretrained(tmp_path / "model").model
    volume = torch.rand(2, 1, *SHAPE)
    with torch.no_grad():
        assert torch.equal(whole.model.embed_volume(volume), plain.embed_volume(volume))
    assert whole.model.objectives == {"cml"}
    assert can_compare(whole)
    model, tokenizer = rebuild(describe(whole))
    model.load_state_dict(whole.model.state_dict())
    assert tokenizer("no lesion of the heart.")["input_ids"] == whole.tokenizer("no lesion of the heart.")["input_ids"]


def write_run(folder, *, tokenizer=True, settings=None):
    """A checkpoint as training writes it, its tokenizer next to it."""
    settings = settings or resolve(["tiny"], SIZES)
    text_tokenizer = small_tokenizer(folder / "tokenizer" if tokenizer else folder.parent / "elsewhere")
    model = build_untrained(settings, len(text_tokenizer))
    (folder / "checkpoints").mkdir(parents=True)
    content = {
        "state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()},
        "mg3d": {"settings": flatten(settings), "text_config": text_config(model)},
        "global_step": 3,
    }
    torch.save(content, folder / "checkpoints" / "last.ckpt")
    return model, folder / "checkpoints" / "last.ckpt"


def test_a_checkpoint_of_a_run_uses_its_tokenizer(tmp_path):
    model, path = write_run(tmp_path / "run")
    whole = start(path)
    assert torch.equal(whole.model.project_image.weight, model.project_image.weight)
    assert can_compare(whole)


def test_a_run_of_a_vision_transformer_gives_the_model_and_the_encoder_alone(tmp_path):
    model, path = write_run(tmp_path / "run", settings=resolve(["tiny", "vit_tiny"], {}))
    volume = torch.rand(1, 1, 64, 48, 64)
    whole = start(path, (64, 48, 64))
    assert can_compare(whole)
    with torch.no_grad():
        torch.testing.assert_close(whole.model.encode_volume(volume), model.encode_volume(volume), rtol=0, atol=0)
        loaded = load_encoder(FinetuneSettings(pretrained=str(path)))
        maps = loaded.encoder(volume)
    assert loaded.coverage == 1.0
    assert [tuple(features.shape[1:]) for features in maps] == [
        (6, 64, 48, 64), (12, 32, 24, 32), (24, 16, 12, 16), (48, 8, 6, 8), (96, 4, 3, 4)
    ]  # fmt: skip


def test_a_pretrained_vision_transformer_is_fine_tuned(tiny_set, tmp_path):
    settings = resolve(["tiny", "vit_tiny"], {"patch_size": [8, 16, 16]})
    model, path = write_run(tmp_path / "run", settings=settings)
    small = ["epochs=1", "batch_size=3", "num_workers=0", "n_bootstrap=20", "accelerator=cpu", "learning_rate=1e-6"]
    command = [f"data_root={tiny_set('stoic2021')}", f"log_dir={tmp_path}", "run_name=r", *small, f"pretrained={path}"]
    assert run(load("stoic2021").TASK, command) == 0
    folder = tmp_path / "stoic2021" / "r" / "fold0"
    tuned = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    (weight,) = (tensor for name, tensor in tuned.items() if name.endswith("encoder.patch_embed.weight"))
    assert weight.shape[2:] == (8, 16, 16)
    torch.testing.assert_close(weight, model.vision.patch_embed.weight, rtol=0, atol=1e-4)
    assert (folder / "scores.json").is_file()


def test_a_checkpoint_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no tokenizer"):
        start(write_run(tmp_path / "run", tokenizer=False)[1])


def test_volumes_of_another_size_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expects volumes of \(32, 24, 32\) voxels"):
        start(save_model(tmp_path / "model"), shape=(64, 48, 64))


def test_a_released_file_needs_a_text_encoder_and_leaves_the_contrast_random(tmp_path):
    torch.save(synthetic(small_key_list()), tmp_path / "MG-3D-Swin-B.ckpt")
    with pytest.raises(ValueError, match=r"text_encoder=\.\.\. sets the folder of that BERT"):
        start(tmp_path / "MG-3D-Swin-B.ckpt", shape=(128, 96, 128))
    small_tokenizer(tmp_path / "bert")
    vocabulary = len(small_tokenizer(tmp_path / "bert"))
    small_bert(words=vocabulary, layers=1, width=16, heads=2, positions=64).bert.save_pretrained(tmp_path / "bert")
    whole = start(tmp_path / "MG-3D-Swin-B.ckpt", shape=(128, 96, 128), text_encoder=str(tmp_path / "bert"))
    assert "branches.contrast" in whole.untrained
    assert "vision" not in whole.untrained
    assert not can_compare(whole)
