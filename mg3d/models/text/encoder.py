"""BERT as report encoder, frozen (eval mode, no gradient) or trained."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, BertConfig, BertModel
from transformers.utils import logging as library_logging

from mg3d.hub import loading_error

# Some models pad their word embeddings to a round number of rows.
_PADDED_ROWS = 128
_EXPECTED_FILES = "config.json and model.safetensors"


class TextEncoder(nn.Module):
    """Features of every token of a report.

    Args:
        bert: the model; its pooler is removed.
        frozen: keep it in eval mode and without gradient, also when the surrounding module is trained.
    """

    def __init__(self, bert: BertModel, *, frozen: bool) -> None:
        super().__init__()
        self.bert = bert
        self.bert.pooler = None
        self.frozen = False
        if frozen:
            self.freeze()

    def freeze(self) -> "TextEncoder":
        """Freezes the weights; returns self."""
        self.frozen = True
        self.bert.requires_grad_(False)
        return self.eval()

    @property
    def width(self) -> int:
        """Width of the token features."""
        return self.bert.config.hidden_size

    @property
    def vocabulary_size(self) -> int:
        """Number of word embeddings."""
        return self.bert.config.vocab_size

    @property
    def max_length(self) -> int:
        """Maximum number of tokens."""
        return self.bert.config.max_position_embeddings

    @property
    def word_vectors(self) -> Tensor:
        """Word embeddings [V, width], without gradient."""
        return self.bert.embeddings.word_embeddings.weight.detach()

    def train(self, mode: bool = True) -> "TextEncoder":
        """Sets the mode; a frozen encoder stays in eval mode."""
        super().train(mode and not self.frozen)
        return self

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Last hidden state [B, T, width]; ids int64 [B, T], attention_mask bool [B, T], True = real token."""
        if ids.shape[1] > self.max_length:
            raise ValueError(
                f"a report of {ids.shape[1]} tokens exceeds the text encoder's maximum of {self.max_length}; lower max_text_len"
            )
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            # A mask per query: transformers reads the values of a mask [B, T], for which the host waits for the GPU.
            mask = attention_mask[:, None, None].expand(-1, 1, ids.shape[1], -1)
            return self.bert(input_ids=ids, attention_mask=mask).last_hidden_state

    @torch.no_grad()
    def embed_words(self, ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """Input embeddings [..., width] of ids [..., T]: word + position + type, normalised, without dropout.

        positions int64, shape of `ids`; default: 0, 1, ... along the last axis.
        """
        if positions is None:
            positions = torch.arange(ids.shape[-1], device=ids.device)
        parts = self.bert.embeddings
        summed = parts.word_embeddings(ids) + parts.position_embeddings(positions) + parts.token_type_embeddings.weight[0]
        return parts.LayerNorm(summed)

    def fingerprint(self) -> str:
        """SHA-256 of all weights."""
        digest = hashlib.sha256()
        for name, weight in sorted(self.bert.state_dict().items()):
            values = weight.detach().cpu().contiguous()
            digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
            digest.update(values.view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def check_vocabulary(self, tokenizer_size: int) -> None:
        """Raises ValueError if the tokenizer has another vocabulary size."""
        if not 0 <= self.vocabulary_size - tokenizer_size < _PADDED_ROWS:
            raise ValueError(
                f"the tokenizer has {tokenizer_size} entries, the text encoder {self.vocabulary_size} word embeddings. "
                "text_encoder mixes files of two models or lacks tokenizer.json; download the complete model again."
            )


@contextmanager
def _silent_library() -> Iterator[None]:
    """Silences progress bar and loading table of transformers, which warns about the unused pooler."""
    before, had_bar = library_logging.get_verbosity(), library_logging.is_progress_bar_enabled()
    library_logging.set_verbosity_error()
    library_logging.disable_progress_bar()
    try:
        yield
    finally:
        library_logging.set_verbosity(before)
        if had_bar:
            library_logging.enable_progress_bar()


def require_text_encoder(name_or_dir: str | Path, max_text_len: int = 0) -> None:
    """Check by config.json alone that a pre-trained text encoder is a BERT that reads `max_text_len` tokens.

    Raises:
        FileNotFoundError: it is neither a local directory nor on the Hugging Face hub.
        ValueError: a damaged file, another architecture, or fewer positions.
    """
    name = str(name_or_dir)
    try:
        config = AutoConfig.from_pretrained(name)
    except Exception as error:  # libraries raise any type for damaged files
        raise loading_error("text encoder", name, error, expected=_EXPECTED_FILES) from error
    if config.model_type != "bert":
        raise ValueError(f"text encoder {name!r} is a {config.model_type!r} model; only 'bert' is supported")
    most = config.max_position_embeddings
    if max_text_len > most:
        raise ValueError(f"text encoder {name!r} reads {most} tokens, max_text_len={max_text_len}; set max_text_len={most}")


def load_text_encoder(name_or_dir: str | Path, *, frozen: bool = True, tokenizer_size: int | None = None) -> TextEncoder:
    """Loads a pre-trained BERT in float32 from a local directory or the Hugging Face hub.

    Raises:
        FileNotFoundError: it is in neither.
        ValueError: as `require_text_encoder`; missing weights, weights that do not match config.json, or another vocabulary size
            than `tokenizer_size`.
    """
    require_text_encoder(name_or_dir)
    name = str(name_or_dir)
    # Mismatched shapes are reported below; the error of transformers names neither key nor shape.
    loading = {"add_pooling_layer": False, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        with _silent_library():
            bert, report = BertModel.from_pretrained(name, dtype=torch.float32, **loading)  # default: the file's precision
    except Exception as error:  # SafetensorError, UnpicklingError, EOFError and others
        raise loading_error("text encoder", name, error, expected=_EXPECTED_FILES) from error
    others = sorted(f"{key} {tuple(there)} instead of {tuple(wanted)}" for key, there, wanted in report["mismatched_keys"])
    if others:
        raise ValueError(
            f"the weights of text encoder {name!r} do not match its config.json, e.g. {others[0]}. "
            "Download the complete model again."
        )
    absent = sorted(report["missing_keys"])
    if absent:
        raise ValueError(f"text encoder {name!r} lacks weights: {absent[:10]}")
    encoder = TextEncoder(bert, frozen=frozen)
    if tokenizer_size is not None:
        encoder.check_vocabulary(tokenizer_size)
    return encoder


def tiny_text_encoder(
    *, vocab_size: int, width: int, layers: int, heads: int, max_positions: int = 512, frozen: bool = False
) -> TextEncoder:
    """A small BERT with random weights from torch's global generator."""
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=max_positions,
    )
    return TextEncoder(BertModel(config, add_pooling_layer=False), frozen=frozen)
