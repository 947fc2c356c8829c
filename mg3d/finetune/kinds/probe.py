"""Frozen features -> findings: what an encoder holds that a plane can tell apart."""

import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from tqdm import tqdm

from mg3d.files import write_bytes
from mg3d.finetune.cases import Case, Parts, PreparedRow
from mg3d.finetune.fit import evaluation_loader
from mg3d.finetune.kinds.labels import Labels
from mg3d.metrics.classification import auroc, mean_of_defined, per_label
from mg3d.models.vision.registry import VisionEncoder

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Inverse penalties of the logistic regressions that are tried; the best on the validation cases is taken for all findings."""
_MOST_STEPS = 1_000


class FrozenProbe(nn.Module):
    """Mean of the last map, standardised by the training cases, and one plane per output."""

    def __init__(self, encoder: VisionEncoder, outputs: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("mean", torch.zeros(encoder.channels))
        self.register_buffer("deviation", torch.ones(encoder.channels))
        self.head = nn.Linear(encoder.channels, outputs)

    def features(self, volume: Tensor) -> Tensor:
        """[B, channels] of volumes [B, 1, D, H, W]."""
        return self.encoder.encode(volume).mean(dim=(2, 3, 4))

    def forward(self, volume: Tensor) -> Tensor:
        """[B, outputs] logits."""
        return self.head((self.features(volume) - self.mean) / self.deviation)


class Probe(Labels):
    """Linear probe: features of every training and validation case once, then one logistic regression per finding.

    Features are kept in the run's folder under a name that depends on the encoder's weights, the cases and their preparation, so
    that a run which is cut off computes none twice.
    """

    by_steps = False

    def network(self, encoder: VisionEncoder) -> nn.Module:
        """A `FrozenProbe`."""
        return FrozenProbe(encoder, len(self.task.outputs))

    def settle(self, network: FrozenProbe, parts: Parts, *, folder: Path, say: Callable[[str], None]) -> None:
        """Fits the planes; a finding with one class among the training cases gets a score of 0 everywhere (0.5 after sigmoid)."""
        keep = folder / "features" / digest(network.encoder)
        train, val = (self.features(network, part, keep=keep) for part in (parts.train, parts.val))
        targets, wanted = (np.array([case.target for case in part]) for part in (parts.train, parts.val))
        mean, deviation = train.mean(0), train.std(0)
        deviation[deviation < 1e-8] = 1.0
        train, val = (train - mean) / deviation, (val - mean) / deviation
        best, chosen = -1.0, None
        for strength in STRENGTHS:
            planes = fit_planes(train, targets, strength)
            score = np.nan_to_num(mean_of_defined(per_label(auroc, wanted, val @ planes[0].T + planes[1])), nan=0.0)
            if score > best:
                best, chosen = score, (strength, planes)
        say(f"linear probe: C={chosen[0]} of {', '.join(map(str, STRENGTHS))} has the best macro AUROC in val, {best:.3f}")
        places = (network.mean, network.deviation, network.head.weight, network.head.bias)
        for place, values in zip(places, (mean, deviation, *chosen[1]), strict=True):
            set_values(place, values)

    @torch.no_grad()
    def features(self, network: FrozenProbe, cases: Sequence[Case], *, keep: Path) -> np.ndarray:
        """[cases, channels] float64, from the file below `keep` where it is there."""
        told = [f"{case.case_id} {case.image}" for case in cases] + [f"{self.task.preprocess} {self.axes}"]
        indexes = sorted({case.image.index for case in cases if isinstance(case.image, PreparedRow)})
        told += [str(index.stat().st_size) for index in indexes]
        path = keep.with_name(f"{keep.name}-{hashlib.sha256(chr(10).join(told).encode()).hexdigest()[:16]}.npy")
        if path.is_file():
            return np.load(path, allow_pickle=False)
        device, found = next(network.parameters()).device, []
        loader = evaluation_loader(self.evaluation_data(cases), self)
        for batch in tqdm(loader, desc="features", disable=None):
            found.append(network.features(batch["image"].to(device)).double().cpu().numpy())
        content = io.BytesIO()
        np.save(content, np.concatenate(found), allow_pickle=False)
        write_bytes(path, content.getvalue())
        return np.concatenate(found)


def set_values(place: Tensor, values: np.ndarray) -> None:
    """Copies numbers into a tensor."""
    with torch.no_grad():
        place.copy_(torch.as_tensor(values, dtype=place.dtype))


def digest(module: nn.Module) -> str:
    """A word that is equal for equal weights."""
    total = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        total.update(name.encode() + tensor.detach().cpu().contiguous().view(-1).numpy().tobytes())
    return total.hexdigest()[:16]


def fit_planes(
    features: np.ndarray | csr_matrix, targets: np.ndarray, strength: float, *, solver: str = "lbfgs"
) -> tuple[np.ndarray, np.ndarray]:
    """Weights [L, F] and offsets [L] of one logistic regression per column of targets [n, L]; unknown places are left out."""
    weights, offsets = np.zeros((targets.shape[1], features.shape[1])), np.zeros(targets.shape[1])
    for place in range(targets.shape[1]):
        known = np.flatnonzero(targets[:, place] >= 0)
        if len(np.unique(targets[known, place])) == 2:
            model = LogisticRegression(C=strength, max_iter=_MOST_STEPS, solver=solver)
            model.fit(features[known], targets[known, place])
            weights[place], offsets[place] = model.coef_[0], model.intercept_[0]
    return weights, offsets
