"""The transformer that writes a report from image tokens, one word after the other."""

import inspect

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertGenerationConfig, BertGenerationDecoder, DynamicCache, EncoderDecoderCache, GenerationConfig

# Releases of transformers before 5.24 know the cache by its old name alone, later ones warn of that name.
_CACHE = "cache" if "cache" in inspect.signature(BertGenerationDecoder.forward).parameters else "past_key_values"


class TiedWordScores(nn.Module):
    """Scores of all words by the table of word vectors itself, so that a checkpoint holds the table once."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(table.num_embeddings))
        self._table = [table]  # in a list, it is no second name of its parameters

    def forward(self, vectors: Tensor) -> Tensor:
        """[..., V] of [..., width]."""
        return F.linear(vectors, self._table[0].weight, self.bias)


class ReportDecoder(nn.Module):
    """Layers of causal self-attention over the words so far and cross-attention to image tokens.

    Its ids are those of any tokenizer: begin, end and padding are named where they are needed.

    Args:
        vocabulary_size: V.
        token_width: C, of the image tokens.
        width: of the words' vectors.
        layers, heads: of the transformer; `heads` divides `width`.
        feed_forward: width between the two linear layers of a block; four times `width` when left out.
        dropout: share dropped in training.
        max_length: most tokens of a report, begin and end included.

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
            raise ValueError(f"heads={heads} does not divide width={width}; choose a number that does")
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
            # The library gives the vector of a padding word no gradient, but begin and end may share its id.
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,
        )
        self.words = BertGenerationDecoder(config)
        self.words.lm_head = TiedWordScores(self.words.bert.embeddings.word_embeddings)

    def forward(self, tokens: Tensor, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Scores [B, T, V] of the word that follows each of ids int64 [B, T], given those up to it and tokens [B, N, C].

        mask bool [B, T], True = real word; padding comes last and its scores mean nothing.
        """
        self._refuse_longer(ids.shape[1])
        mask = torch.ones_like(ids) if mask is None else mask.long()
        return self.words(input_ids=ids, attention_mask=mask, encoder_hidden_states=self.project(tokens), use_cache=False).logits

    @torch.no_grad()
    def generate(
        self,
        tokens: Tensor,
        *,
        begin: int,
        end: int,
        padding: int,
        most_tokens: int,
        beams: int = 1,
        no_repeat: int = 0,
        temperature: float | None = None,
        top_p: float = 1.0,
        length_penalty: float = 1.0,
        cached: bool = True,
    ) -> Tensor:
        """Ids int64 [B, T], T <= most_tokens, of a report for each row of tokens [B, N, C]: begin, words, end, padding.

        A report that did not come to its end is cut. Without dropout, whatever mode the module is in.

        Args:
            begin, end, padding: ids; they may be one and the same.
            most_tokens: begin and end included.
            beams: hypotheses kept in search; 1 = the best next word each time. The original: 3.
            no_repeat: no run of so many words comes twice; 0 = it may. The original: 3.
            temperature: draw each word, from torch's global generator; None = take the best.
            top_p: draw from the likeliest words of together this probability.
            length_penalty: power of the length by which the score of a hypothesis is divided.
            cached: keep keys and values of earlier words; without, all are computed again at every word, with equal results.

        Raises:
            ValueError: most_tokens is larger than `longest`, or smaller than 2.
        """
        self._refuse_longer(most_tokens)
        if most_tokens < 2:
            raise ValueError(f"most_tokens={most_tokens}: at least 2 are needed, the beginning and one word")
        drawn = {} if temperature is None else {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        # Stopped early, the library takes the first `beams` ends there are, though an unlikely one may come before the best.
        searched = {"num_beams": beams, "length_penalty": length_penalty, "early_stopping": False} if beams > 1 else {}
        asked = GenerationConfig(
            max_length=most_tokens, no_repeat_ngram_size=no_repeat, use_cache=cached,
            bos_token_id=begin, eos_token_id=end, pad_token_id=padding, **searched, **drawn,
        )  # fmt: skip
        first = torch.full((len(tokens), 1), begin, device=tokens.device)
        # Left to itself, the library makes a cache without room for cross-attention and fails.
        memory = {_CACHE: EncoderDecoderCache(DynamicCache(), DynamicCache())} if cached else {}
        was_training = self.training
        self.eval()
        try:
            ids = self.words.generate(
                first, generation_config=asked, attention_mask=torch.ones_like(first),
                encoder_hidden_states=self.project(tokens), **memory,
            )  # fmt: skip
        finally:
            self.train(was_training)
        # The library's search pads with `end` where `padding` is 0.
        ended = F.pad((ids[:, 1:-1] == end).cumsum(1) > 0, (2, 0))
        return ids.masked_fill(ended, padding)

    def _refuse_longer(self, length: int) -> None:
        if length > self.max_length:
            raise ValueError(f"a report of {length} tokens is longer than the {self.max_length} this decoder writes; cut it")
