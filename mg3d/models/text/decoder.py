"""Transformer decoder that generates reports from image tokens."""

import inspect

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertGenerationConfig, BertGenerationDecoder, DynamicCache, EncoderDecoderCache, GenerationConfig

from mg3d.losses.captioning import IGNORE_INDEX
from mg3d.models.token_loss import token_losses

# transformers < 5.24 only knows `past_key_values`; later releases warn about that name.
_CACHE = "cache" if "cache" in inspect.signature(BertGenerationDecoder.forward).parameters else "past_key_values"


class TiedLMHead(nn.Module):
    """LM head tied to the embedding table, so that a checkpoint contains the table once."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(table.num_embeddings))
        self._table = [table]  # in a list, so that its parameter is not registered twice

    def forward(self, vectors: Tensor) -> Tensor:
        """Logits [..., V] of [..., width]."""
        return F.linear(vectors, self._table[0].weight, self.bias)


class ReportDecoder(nn.Module):
    """Causal self-attention over the tokens so far and cross-attention to image tokens; for the ids of any tokenizer.

    Args:
        vocabulary_size: V.
        token_width: C, width of the image tokens.
        width: of the decoder.
        layers, heads: of the decoder; `heads` divides `width`.
        feed_forward: width of the feed-forward layers; default: 4 * width.
        dropout: dropout probability.
        max_length: maximum number of tokens per report, begin and end included.

    Raises:
        ValueError: `heads` does not divide `width`.
    """

    def __init__(
        self,
        *,
        vocabulary_size: int,
        token_width: int,
        width: int = 512,
        layers: int = 3,
        heads: int = 8,
        feed_forward: int | None = None,
        dropout: float = 0.1,
        max_length: int = 512,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads={heads} does not divide width={width}")
        self.max_length = max_length
        self.project = nn.Sequential(nn.Linear(token_width, width), nn.LayerNorm(width))
        config = BertGenerationConfig(
            vocab_size=vocabulary_size,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=feed_forward or 4 * width,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            max_position_embeddings=max_length,
            is_decoder=True,
            add_cross_attention=True,
            tie_word_embeddings=False,
            # transformers does not train the embedding of `pad_token_id`, but begin and end may share that id.
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,
        )
        self.words = BertGenerationDecoder(config)
        self.words.lm_head = TiedLMHead(self.words.bert.embeddings.word_embeddings)

    def forward(self, tokens: Tensor, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Next-token logits [B, T, V] for ids int64 [B, T] and image tokens [B, N, C].

        mask bool [B, T], True = real token; padding is at the end and its logits are undefined.
        """
        return self.words.lm_head(self._hidden(tokens, ids, mask))

    def loss(self, tokens: Tensor, ids: Tensor, mask: Tensor, *, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """Sum of the cross entropies of the tokens after the first of each report [B], and their number int64 [B].

        Arguments as in `forward`; label_smoothing as in `token_losses`, which keeps no logits.
        """
        real = mask[:, 1:]
        hidden, targets = self._hidden(tokens, ids[:, :-1], mask[:, :-1]), ids[:, 1:].masked_fill(~real, IGNORE_INDEX)
        return token_losses(self.words.lm_head, hidden, targets, label_smoothing=label_smoothing).sum(1), real.sum(1)

    def _hidden(self, tokens: Tensor, ids: Tensor, mask: Tensor | None) -> Tensor:
        """[B, T, width]; arguments as in `forward`."""
        length = ids.shape[1]
        self._check_length(length)
        # A mask per query: transformers reads the values of a mask [B, T], for which the host waits for the GPU.
        causal = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril().expand(len(ids), 1, -1, -1)
        visible = causal if mask is None else causal & mask[:, None, None]
        return self.words.bert(
            input_ids=ids, attention_mask=visible, encoder_hidden_states=self.project(tokens), use_cache=False
        ).last_hidden_state

    @torch.no_grad()
    def generate(
        self,
        tokens: Tensor,
        *,
        bos_token_id: int,
        eos_token_id: int,
        pad_token_id: int,
        max_length: int,
        num_beams: int = 1,
        no_repeat_ngram_size: int = 0,
        temperature: float | None = None,
        top_p: float = 1.0,
        length_penalty: float = 1.0,
        use_cache: bool = True,
    ) -> Tensor:
        """Report ids int64 [B, T], T <= max_length, for image tokens [B, N, C]; arguments as in transformers.

        The three ids may be equal. Runs in eval mode. A report without an end token is truncated at `max_length`, which counts
        begin and end.

        Args:
            num_beams: beam search; 1 = greedy. The original: 3.
            no_repeat_ngram_size: no n-gram of this size occurs twice; 0 = off. The original: 3.
            temperature: sample with torch's global generator; None = no sampling.

        Raises:
            ValueError: `max_length` is larger than the decoder's, or smaller than 2.
        """
        self._check_length(max_length)
        if max_length < 2:
            raise ValueError(f"max_length={max_length}: must be at least 2, for the beginning and one token")
        sampling = {} if temperature is None else {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        # With early stopping, transformers returns the first `num_beams` finished hypotheses, although better ones may follow.
        search = {"num_beams": num_beams, "length_penalty": length_penalty, "early_stopping": False} if num_beams > 1 else {}
        config = GenerationConfig(
            max_length=max_length, no_repeat_ngram_size=no_repeat_ngram_size, use_cache=use_cache,
            bos_token_id=bos_token_id, eos_token_id=eos_token_id, pad_token_id=pad_token_id, **search, **sampling,
        )  # fmt: skip
        first = torch.full((len(tokens), 1), bos_token_id, device=tokens.device)
        # The default cache has no cross-attention part and fails.
        cache = {_CACHE: EncoderDecoderCache(DynamicCache(), DynamicCache())} if use_cache else {}
        was_training = self.training
        self.eval()
        try:
            ids = self.words.generate(
                first, generation_config=config, attention_mask=torch.ones_like(first),
                encoder_hidden_states=self.project(tokens), **cache,
            )  # fmt: skip
        finally:
            self.train(was_training)
        # Beam search pads with the end token if `pad_token_id` is 0.
        ended = F.pad((ids[:, 1:-1] == eos_token_id).cumsum(1) > 0, (2, 0))
        return ids.masked_fill(ended, pad_token_id)

    def _check_length(self, length: int) -> None:
        if length > self.max_length:
            raise ValueError(f"a report of {length} tokens exceeds the decoder's max_length={self.max_length}")
