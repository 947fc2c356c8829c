"""Text encoder and tokenizer from complete, damaged and missing folders."""

import json
import shutil

import pytest
import torch
from small_arrow import small_tokenizer
from transformers import BertConfig, BertModel

from mg3d.datasets.tokenizer import load_tokenizer
from mg3d.models.text.encoder import load_text_encoder, require_text_encoder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a small BERT and its tokenizer."""
    folder = tmp_path_factory.mktemp("model") / "bert"
    tokenizer = small_tokenizer(folder)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=12, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=20, max_position_embeddings=40)  # fmt: skip
    torch.manual_seed(0)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def load_both(folder):
    tokenizer = load_tokenizer(str(folder))
    return tokenizer, load_text_encoder(folder, tokenizer_size=len(tokenizer))


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


def change(name, **values):
    def edit(folder):
        content = json.loads((folder / name).read_text()) | values
        (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return edit


def pickled(content):
    def edit(folder):
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(content)

    return edit


def without(*words):
    """Takes special tokens out of the tokenizer."""

    def edit(folder):
        content = json.loads((folder / "tokenizer.json").read_text())
        content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in words]
        content["model"]["vocab"] = {word: place for word, place in content["model"]["vocab"].items() if word not in words}
        content["post_processor"] = None
        (folder / "tokenizer.json").write_text(json.dumps(content))
        config = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if v not in words}))

    return edit


def test_a_complete_folder_loads_both(folder):
    tokenizer, encoder = load_both(folder)
    assert encoder.vocabulary_size == len(tokenizer)
    assert encoder.width == 12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_stored_in_any_precision_are_trained_in_float32(folder, dtype):
    stored = BertModel.from_pretrained(folder, add_pooling_layer=False).to(dtype)
    stored.save_pretrained(folder)
    encoder = load_text_encoder(folder)
    assert {weight.dtype for weight in encoder.parameters()} == {torch.float32}
    assert torch.equal(encoder.word_vectors, stored.embeddings.word_embeddings.weight.float())


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut("model.safetensors"), "damaged or missing .SafetensorError"),
        (write("model.safetensors", b""), "damaged or missing .SafetensorError"),
        (pickled(b"x" * 100), "damaged or missing .UnpicklingError"),
        (pickled(b""), "damaged or missing .EOFError: no message"),
        (cut("config.json"), "text encoder .* damaged or missing .OSError.* expected: config.json and model.safetensors"),
        (write("config.json", b"{}"), "text encoder .* damaged or missing .ValueError"),
        (change("config.json", hidden_size="x"), "expected int, got str|damaged or missing"),
        (lambda folder: (folder / "model.safetensors").unlink(), "damaged or missing .OSError"),
        (change("config.json", vocab_size=50), r"word_embeddings.weight \(\d+, 12\) instead of \(50, 12\)"),
        (change("config.json", num_hidden_layers=2), "lacks weights"),
        (change("config.json", model_type="gpt2"), "only 'bert' is supported"),
    ],
)
def test_a_damaged_text_encoder_is_reported(folder, damage, words):
    damage(folder)
    with pytest.raises(ValueError, match=words) as caught:
        load_text_encoder(folder)
    assert str(folder) in str(caught.value)
    assert "hub" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (write("tokenizer.json", b"{}"), "damaged or missing .KeyError"),
        (write("tokenizer.json", b"[]"), "damaged or missing .TypeError"),
        (change("tokenizer.json", model=None), "damaged or missing .Exception: Model missing"),
        (cut("tokenizer.json"), "damaged or missing .JSONDecodeError.* expected: tokenizer.json and tokenizer_config.json"),
        (cut("tokenizer_config.json"), "damaged or missing .JSONDecodeError"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "damaged or missing"),
        (without("[MASK]"), r"lacks \[MASK\]\. Set text_encoder to a BERT"),
        (without("[PAD]", "[CLS]"), r"lacks \[PAD\], \[CLS\]\."),
        (without("[SEP]"), r"lacks \[SEP\]\."),
    ],
)
def test_a_damaged_or_unsuitable_tokenizer_is_reported(folder, damage, words):
    damage(folder)
    with pytest.raises(ValueError, match=words) as caught:
        load_tokenizer(str(folder))
    assert str(folder) in str(caught.value)
    assert "hub" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("load", [load_tokenizer, load_text_encoder])
def test_a_missing_folder_is_not_reported_as_damaged(load, tmp_path):
    for name in ("nobody/has-this-model", str(tmp_path / "none")):
        with pytest.raises(FileNotFoundError, match=r"is not a local folder .* set text_encoder=<local directory>") as caught:
            load(name)
        assert "damaged" not in str(caught.value)


def test_files_of_two_models_in_one_folder_are_reported(folder):
    with pytest.raises(ValueError, match="text_encoder mixes files of two models or lacks tokenizer"):
        load_text_encoder(folder, tokenizer_size=200)


def test_a_text_encoder_with_too_few_positions_is_refused_by_its_configuration_alone(folder):
    (folder / "model.safetensors").unlink()
    require_text_encoder(folder, 40)
    with pytest.raises(ValueError, match="reads 40 tokens, max_text_len=41; set max_text_len=40"):
        require_text_encoder(folder, 41)
