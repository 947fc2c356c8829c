"""Linear probe: features of the frozen encoder, and one logistic regression per output."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from mg3d.evaluation.baselines import fit_best_logistic
from mg3d.files import write_bytes
from mg3d.finetune.cases import ArrowRow, FinetuneCase, Split
from mg3d.finetune.distributed import info
from mg3d.finetune.settings import as_builtins
from mg3d.finetune.tasks.classification import Classification
from mg3d.models.vision.registry import VisionEncoder

INVERSE_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Values of C; the one with the best macro AUROC on the validation cases is used for all outputs."""


class ProbeNetwork(nn.Module):
    """Global average pooling of the encoder's last feature map, standardization and a linear layer."""

    def __init__(self, encoder: VisionEncoder, outputs: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("mean", torch.zeros(encoder.channels))
        self.register_buffer("std", torch.ones(encoder.channels))
        self.head = nn.Linear(encoder.channels, outputs)

    def features(self, volume: Tensor) -> Tensor:
        """[B, channels] of volumes [B, 1, D, H, W]."""
        return self.encoder.encode(volume).mean(dim=(2, 3, 4))

    def forward(self, volume: Tensor) -> Tensor:
        """Logits [B, outputs]."""
        return self.head((self.features(volume) - self.mean) / self.std)


class LinearProbe(Classification):
    """Linear probe on frozen features.

    Features are stored in the run's folder under a hash of encoder, cases and settings, so an interrupted run continues.
    """

    uses_sgd = False

    def network(self, encoder: VisionEncoder | None) -> nn.Module:
        """A `ProbeNetwork`."""
        return ProbeNetwork(encoder, len(self.outputs))

    def fit_closed_form(self, network: ProbeNetwork, split: Split, folder: Path) -> None:
        """Fits the linear layer; an output with one class in training gets a logit of 0."""
        key = _digest(network.encoder)
        train, val = (self.features(network, part, folder / "features" / key) for part in (split.train, split.val))
        targets, val_targets = (np.array([case.target for case in part]) for part in (split.train, split.val))
        mean, std = train.mean(0), train.std(0)
        std[std < 1e-8] = 1.0
        train, val = (train - mean) / std, (val - mean) / std
        best, score, weights, bias = fit_best_logistic((train, targets), (val, val_targets), INVERSE_PENALTIES)
        info(f"linear probe: C={best} of {', '.join(map(str, INVERSE_PENALTIES))}; macro AUROC {score:.3f} on validation")
        with torch.no_grad():
            tensors = (network.mean, network.std, network.head.weight, network.head.bias)
            for tensor, values in zip(tensors, (mean, std, weights, bias), strict=True):
                tensor.copy_(torch.as_tensor(values, dtype=tensor.dtype))

    @torch.no_grad()
    def features(self, network: ProbeNetwork, cases: Sequence[FinetuneCase], prefix: Path) -> np.ndarray:
        """[cases, channels] float64, from the file `<prefix>-<hash>.npy` if it exists."""
        from mg3d.finetune.loop import evaluation_loader

        text = [f"{case.case_id} {case.image}" for case in cases] + [str(as_builtins(self.settings))]
        text += [str(path.stat().st_size) for path in sorted({c.image.file for c in cases if isinstance(c.image, ArrowRow)})]
        path = prefix.with_name(f"{prefix.name}-{hashlib.sha256(chr(10).join(text).encode()).hexdigest()[:16]}.npy")
        if path.is_file():
            return np.load(path, allow_pickle=False)
        device, parts = next(network.parameters()).device, []
        for batch in tqdm(evaluation_loader(self, cases), desc="features", disable=None):
            parts.append(network.features(batch["image"].to(device)).double().cpu().numpy())
        content = io.BytesIO()
        np.save(content, np.concatenate(parts), allow_pickle=False)
        write_bytes(path, content.getvalue())
        return np.concatenate(parts)


def _digest(module: nn.Module) -> str:
    """A hash of the weights."""
    total = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        total.update(name.encode() + tensor.detach().cpu().contiguous().view(-1).numpy().tobytes())
    return total.hexdigest()[:16]
