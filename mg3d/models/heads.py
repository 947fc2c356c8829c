"""What stands between features and losses: word decoder, sentence predictors, volume decoders, projections, temperature."""

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

WORDS_AT_ONCE = 1024
"""Asked words whose scores over the vocabulary are held at a time: 119 MB in float32 with RadBERT's 28,996 words."""


class WordTransform(nn.Module):
    """Linear, GELU, LayerNorm (eps 1e-12), as BERT's own head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., d] -> [..., d]."""
        return self.LayerNorm(F.gelu(self.dense(tokens)))


class MLMHead(nn.Module):
    """Word scores; `transform` first, then `decode` where a word is asked for. Not tied to the text encoder's word vectors."""

    def __init__(self, width: int, vocabulary_size: int) -> None:
        super().__init__()
        self.transform = WordTransform(width)
        self.decoder = nn.Linear(width, vocabulary_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))

    def decode(self, transformed: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(logits [M, V], targets int64 [M]) at the M tokens of `labels` int64 [B, T] that are not -100."""
        asked = labels != -100
        return self.decoder(transformed[asked]) + self.bias, labels[asked]

    def token_loss(self, transformed: Tensor, labels: Tensor, *, at_once: int = WORDS_AT_ONCE) -> Tensor:
        """Cross entropy [M] of the M asked words of `labels` int64 [B, T], by `at_once` words: no [M, V] is ever held.

        Where there are more, the scores of each part are computed again in the backward pass.
        """
        asked = labels != -100
        words, targets = transformed[asked], labels[asked]
        if len(words) <= at_once:
            return self._token_loss(words, targets)
        parts = zip(words.split(at_once), targets.split(at_once), strict=True)
        return torch.cat([checkpoint(self._token_loss, *part, use_reentrant=False) for part in parts])

    def _token_loss(self, words: Tensor, targets: Tensor) -> Tensor:
        logits, targets = self.decode(words, targets)
        return F.cross_entropy(logits, targets, reduction="none")


class ContextualSalHead(nn.Module):
    """Sentence features recovered from the masked report, and what they should be: the text encoder's, unmasked, constant."""

    reads_transformed_tokens = False

    def __init__(self, width: int, text_width: int) -> None:
        super().__init__()
        self.prediction = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, text_width))

    def forward(self, recovered: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
        """(prediction, target) [B, S, text_width] from sentence means [B, S, d] and [B, S, text_width]."""
        return self.prediction(recovered), F.layer_norm(true.detach(), true.shape[-1:])


class WordEmbeddingSalHead(nn.Module):
    """The released pair: both sides are projected to 8 numbers by learned layers, with gradient into both."""

    reads_transformed_tokens = True

    def __init__(self, width: int, text_width: int) -> None:
        super().__init__()
        norm = nn.LayerNorm(128, elementwise_affine=False)
        self.prediction = nn.Sequential(nn.Linear(width, 128), norm, nn.GELU(), nn.Linear(128, 8))
        self.target = nn.Sequential(nn.Linear(text_width, text_width // 2), nn.ReLU(), nn.Linear(text_width // 2, 8))

    def forward(self, recovered: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
        """(prediction, target) [B, S, 8] from sentence means [B, S, d] and of the text encoder's input [B, S, text_width]."""
        return self.prediction(recovered), self.target(true)


class ConvVolumeDecoder(nn.Module):
    """Voxels from the last map by convolutions and doublings, as many as the encoder's stride needs; as the released decoder.

    Each step: convolution, instance norm without parameters, LeakyReLU(0.01), trilinear up-sampling. Channels halve at every
    step but the last; a side of the stride that is no power of two is made up in the last step.
    """

    def __init__(self, width: int, stride: Sequence[int]) -> None:
        super().__init__()
        steps = max(1, math.ceil(math.log2(max(stride))))
        reached, layers = [1] * len(stride), []
        channels = width
        for step in range(1, steps + 1):
            out_channels = width // 2 ** min(step, steps - 1)
            wanted = [min(2**step, side) for side in stride]
            factors = tuple(new / old for new, old in zip(wanted, reached))
            layers += [
                nn.Conv3d(channels, out_channels, 3, padding=1),
                nn.InstanceNorm3d(out_channels),
                nn.LeakyReLU(0.01),
                nn.Upsample(scale_factor=factors, mode="trilinear", align_corners=False),
            ]
            reached, channels = wanted, out_channels
        self.conv = nn.Sequential(*layers, nn.Conv3d(channels, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        """[B, 1, d * stride, ...] for a map [B, width, d, h, w]; not bounded."""
        return self.conv(features)


class LinearVolumeDecoder(nn.Module):
    """All voxels of a cell of the last map by one linear layer; for small models."""

    def __init__(self, width: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = tuple(stride)
        self.linear = nn.Linear(width, math.prod(stride))

    def forward(self, features: Tensor) -> Tensor:
        """[B, 1, d * stride, ...] for a map [B, width, d, h, w]; not bounded."""
        depth, height, width = self.stride
        voxels = self.linear(rearrange(features, "b c z y x -> b z y x c"))
        return rearrange(voxels, "b z y x (d h w) -> b 1 (z d) (y h) (x w)", d=depth, h=height, w=width)


class ProjectionHead(nn.Module):
    """LayerNorm, linear without bias, L2-normalised: what is contrasted."""

    def __init__(self, width: int, embedding_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, embedding_width, bias=False)

    def forward(self, vectors: Tensor) -> Tensor:
        """[B, width] -> [B, embedding_width] of length 1."""
        return F.normalize(self.projection(self.norm(vectors)), dim=-1)


SIGMOID_SCALE, SIGMOID_BIAS = 10.0, -10.0
"""Where scale and bias of the sigmoid contrast begin (SigLIP): nearly every pair is a wrong one, and begins as such."""


class LogitScale(nn.Module):
    """1 / temperature: learned, from `start` and at most 100, or the constant 10 of the released code."""

    LARGEST = 100.0

    def __init__(self, *, learned: bool, start: float = 1 / 0.07) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(start))) if learned else None

    def forward(self, like: Tensor) -> Tensor:
        """Scalar, of the type and on the device of `like`."""
        if self.log_scale is None:
            return like.new_tensor(10.0)
        with torch.no_grad():
            # The value itself is cut: a clamp in the graph would stop its gradient for good once it is beyond the limit.
            self.log_scale.clamp_(max=math.log(self.LARGEST))
        return self.log_scale.exp()
