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
from mg3d.finetune.settings import UNCOMPARED, as_builtins
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

    Features are stored in `folder` under a hash of encoder and settings, for all folds of a run.
    """

    uses_sgd = False

    def network(self, encoder: VisionEncoder | None) -> nn.Module:
        """A `ProbeNetwork`."""
        return ProbeNetwork(encoder, len(self.outputs))

    def fit_closed_form(self, network: ProbeNetwork, split: Split, folder: Path) -> None:
        """Fits the linear layer; an output with one class in training gets a logit of 0."""
        settings = sorted((name, value) for name, value in as_builtins(self.settings).items() if name not in UNCOMPARED)
        key = hashlib.sha256(f"{_digest(network.encoder)} {settings}".encode()).hexdigest()[:16]
        train, val = (self.features(network, part, folder / f"features-{key}.npz") for part in (split.train, split.val))
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
    def features(self, network: ProbeNetwork, cases: Sequence[FinetuneCase], file: Path) -> np.ndarray:
        """[cases, channels] float64; `file` (.npz) keeps the features of each case, also for other folds."""
        from mg3d.finetune.loop import evaluation_loader

        keys = {case.case_id: _key(case) for case in cases}
        known = dict(np.load(file, allow_pickle=False)) if file.is_file() else {}
        new = [case for case in cases if keys[case.case_id] not in known]
        device = next(network.parameters()).device
        for batch in tqdm(evaluation_loader(self, new) if new else (), desc="features", disable=None):
            rows = network.features(batch["image"].to(device)).double().cpu().numpy()
            known |= {keys[name]: row for name, row in zip(batch["case_id"], rows, strict=True)}
        if new:
            content = io.BytesIO()
            np.savez(content, **known)
            write_bytes(file, content.getvalue())
        return np.stack([known[keys[case.case_id]] for case in cases])


def _key(case: FinetuneCase) -> str:
    size = case.image.file.stat().st_size if isinstance(case.image, ArrowRow) else ""
    return hashlib.sha256(f"{case.case_id} {case.image} {size}".encode()).hexdigest()[:32]


def _digest(module: nn.Module) -> str:
    """A hash of the weights."""
    total = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        total.update(name.encode() + tensor.detach().cpu().contiguous().view(-1).numpy().tobytes())
    return total.hexdigest()[:16]
