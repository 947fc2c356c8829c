"""Supervised training of the volume encoder on the labels: which findings can it learn at this resolution at all?

Contrastive training cannot teach what supervision cannot. `python main.py diagnose with tiny` trains the volume encoder, its
pooling and one linear layer on the labels, and reports the AUROC of each finding on the validation split. Not on the test split,
because presets are chosen by it.
"""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from mg3d.datasets.arrow import open_index
from mg3d.datasets.storage import Storage
from mg3d.datasets.studies import Studies
from mg3d.datasets.windowing import move_to_device, stack_volumes, to_intensities
from mg3d.glossary import LABELS
from mg3d.metrics.classification import auroc
from mg3d.models.build import build_untrained
from mg3d.models.mg3d import MG3D
from mg3d.settings.schema import LossSettings, Settings
from mg3d.types import Sample

_MIN_VOCABULARY = 50


class LabelProbe(nn.Module):
    """The path from a volume to the vector that CML contrasts, and one linear layer to the 18 labels."""

    def __init__(self, model: MG3D) -> None:
        super().__init__()
        self.model = model
        self.head = nn.Linear(model.project_image.out_features, len(LABELS))

    def forward(self, volume: Tensor) -> Tensor:
        """Logits [B, 18] of volumes [B, 1, D, H, W] in [0, 1]."""
        return self.head(self.model.contrast.image_pool(self.model.encode_volume(volume)))


def build_probe(settings: Settings) -> LabelProbe:
    """The untrained probe, with the smallest report encoder: it reads no reports."""
    text = dataclasses.replace(settings.text, text_encoder="tiny", freeze_text=False)
    only_cml = LossSettings(weight_mlm=0, weight_sal=0, weight_mim=0, weight_dcl=0, weight_ssm=0)
    model = dataclasses.replace(settings.model, wiring="paper")
    return LabelProbe(build_untrained(dataclasses.replace(settings, text=text, loss=only_cml, model=model), _MIN_VOCABULARY))


def train_probe(
    probe: LabelProbe, settings: Settings, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler
) -> dict[str, float]:
    """Trains the probe on the first data set for `max_steps` steps of `batch_size`; returns finding -> AUROC on the val split."""
    studies, size = _studies(settings, "train"), settings.optim.batch_size
    draws = _draws(studies, settings.run.seed)
    device = probe.head.weight.device
    for _ in track(range(settings.optim.max_steps), description="labels from volumes"):
        volume, labels = _to_device(device, [studies.sample(*draw) for draw in itertools.islice(draws, size)])
        weight = (labels >= 0).float()  # -1 = unknown
        loss = F.binary_cross_entropy_with_logits(probe(volume), labels.clamp(min=0).float(), weight=weight)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(probe.parameters(), settings.optim.grad_clip or 1.0)
        optimizer.step()
        schedule.step()
    return _validate(probe.eval(), _studies(settings, "val"))


def _studies(settings: Settings, split: str) -> Studies:
    index = open_index(Storage(settings.data.data_root, settings.data.cache_dir), settings.data.datasets[0], split)
    return Studies(index, text_unit=settings.data.text_unit, window_hu=settings.data.window_hu)


def _draws(studies: Studies, seed: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Endless: every study once per epoch in a new random order, and the seed words of its draw."""
    for epoch in itertools.count():
        for study in np.random.default_rng((seed, epoch)).permutation(len(studies)).tolist():
            yield study, (seed, epoch, study)


def _to_device(device: torch.device, samples: list[Sample]) -> tuple[Tensor, Tensor]:
    labels = torch.from_numpy(np.stack([sample.labels for sample in samples]))
    return to_intensities(move_to_device(stack_volumes(samples), device)), labels.to(device)


@torch.no_grad()
def _validate(probe: LabelProbe, studies: Studies) -> dict[str, float]:
    scores, labels = [], []
    for start in range(0, len(studies), 16):
        samples = [studies.sample(study) for study in range(start, min(start + 16, len(studies)))]
        volume, expected = _to_device(probe.head.weight.device, samples)
        scores.append(probe(volume).cpu().numpy())
        labels.append(expected.cpu().numpy())
    scores, labels = np.concatenate(scores), np.concatenate(labels)
    return {name: float(auroc(labels[:, index], scores[:, index])) for index, name in enumerate(LABELS)}
