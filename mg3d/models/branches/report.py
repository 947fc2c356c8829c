"""MLM and SAL: masked reports, recovered with the help of the volume."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mg3d.losses.mlm import MLMLoss
from mg3d.losses.sal import SALLoss
from mg3d.models.branches.base import Branch
from mg3d.models.fusion import CrossAttentionFusion
from mg3d.models.mg3d import MG3D
from mg3d.models.text.encoder import TextEncoder
from mg3d.models.token_loss import CHUNK_TOKENS, token_losses
from mg3d.models.tokens import SharedTokens
from mg3d.settings.schema import ModelSettings

EMA_DECAY = 0.99
"""Of the target text encoder, per optimizer step."""


class TokenTransform(nn.Module):
    """Linear layer, GELU, LayerNorm (eps 1e-12), as in BERT's MLM head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., d] -> [..., d]."""
        return self.LayerNorm(F.gelu(self.dense(tokens)))


class MLMHead(nn.Module):
    """`transform` and a linear decoder, not tied to the word embeddings of the text encoder."""

    def __init__(self, width: int, vocabulary_size: int) -> None:
        super().__init__()
        self.transform = TokenTransform(width)
        self.decoder = nn.Linear(width, vocabulary_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))

    def decode(self, transformed: Tensor) -> Tensor:
        """Logits [..., V] of transformed tokens [..., d]."""
        return self.decoder(transformed) + self.bias

    def token_loss(self, transformed: Tensor, labels: Tensor, positions: Tensor, *, chunk: int = CHUNK_TOKENS) -> Tensor:
        """Cross entropy [B, M] of the tokens at `positions` int64 [B, M]; labels int64 [B, T], 0 where they are -100.

        chunk: as in `token_losses`.
        """
        tokens = transformed.gather(1, positions[..., None].expand(-1, -1, transformed.shape[-1]))
        return token_losses(self.decode, tokens, labels.gather(1, positions), chunk=chunk)


class ReportBranch(Branch):
    """Cross-attention from masked report tokens to the image; heads for words (MLM) and sentences (SAL).

    The target of SAL is the text encoder's last layer on the unmasked report, without gradient: of the encoder itself if it is
    frozen, else of an exponential moving average of it.
    """

    name = "report"

    def __init__(self, model: MG3D, settings: ModelSettings, objectives: Iterable[str]) -> None:
        super().__init__(model, settings, objectives)
        width = settings.hidden_size
        self.target_text: TextEncoder | None = None
        self.fusion = CrossAttentionFusion(width, layers=settings.fusion_layers, heads=settings.fusion_heads)
        if "mlm" in self.objectives:
            self.mlm_head = MLMHead(width, model.text.vocabulary_size)
            self.objective_losses["mlm"] = MLMLoss()
        if "sal" in self.objectives:
            self.sal_head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, model.text.width))
            self.objective_losses["sal"] = SALLoss()
            if not model.text.frozen:
                self.target_text = copy.deepcopy(model.text).freeze()

    def features(self, tokens: SharedTokens) -> dict[str, Tensor]:
        """Loss of every masked token, recovered and true sentences."""
        batch, features = tokens.batch, {}
        fused = self.fusion(tokens.masked_report, tokens.image)
        if "mlm" in self.objectives:
            transformed = self.mlm_head.transform(fused)
            features["mlm_token_loss"] = self.mlm_head.token_loss(transformed, batch.mlm_labels, batch.mlm_positions)
            features["mlm_tokens"] = (batch.mlm_labels >= 0).sum(1)
        if "sal" in self.objectives:
            features["sal_prediction"] = self.sal_head(tokens.sentence_means(fused))
            target = tokens.sentence_means(self._target_features(tokens).detach())
            features["sal_target"] = F.layer_norm(target, target.shape[-1:])
        return features

    def _target_features(self, tokens: SharedTokens) -> Tensor:
        if self.target_text is None:
            return tokens.text_features
        return self.target_text(tokens.batch.report_ids, tokens.batch.attention_mask)

    @torch.no_grad()
    def update_ema(self, text: TextEncoder) -> None:
        """Moves the target text encoder towards the trained one."""
        if self.target_text is None:
            return
        torch._foreach_lerp_(list(self.target_text.parameters()), list(text.parameters()), 1 - EMA_DECAY)
