"""Learning the labels directly from the volumes: which findings can be seen at this grid by this encoder at all?

A contrast cannot teach what supervision cannot. So before a small preset is trusted, `python main.py diagnose with tiny` trains
its volume encoder and one linear layer on the labels, and tells the held-out AUROC of each finding.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from mg3d.datamodules.sampler import Stream
from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.schema import index_path
from mg3d.datasets.studies import Studies
from mg3d.files import write_json
from mg3d.glossary import LABELS
from mg3d.metrics.classification import auroc
from mg3d.models.build import build_vision
from mg3d.settings.schema import Settings
from mg3d.training.optim import schedule_factor


class LabelProbe(nn.Module):
    """The mean and the largest of the encoder's last map, and one linear layer to the 18 labels."""

    def __init__(self, vision: nn.Module) -> None:
        super().__init__()
        self.vision = vision
        self.head = nn.Linear(2 * vision.channels, len(LABELS))

    def forward(self, volume: Tensor) -> Tensor:
        """Logits [B, 18] of volumes [B, 1, D, H, W]."""
        features = self.vision.encode(volume).flatten(2)
        return self.head(torch.cat([features.mean(-1), features.amax(-1)], 1))


def diagnose_labels(settings: Settings, run_dir: Path, *, say: Callable[[str], None]) -> dict[str, float]:
    """Trains the probe with the run's schedule and batch size; writes `diagnosis.json` and returns AUROC by finding."""
    torch.manual_seed(settings.run.seed)
    device = torch.device("cuda" if torch.cuda.is_available() and settings.run.accelerator != "cpu" else "cpu")
    probe = LabelProbe(build_vision(settings)).to(device)
    optim = settings.optim
    optimizer = torch.optim.AdamW(probe.parameters(), lr=optim.learning_rate, weight_decay=optim.weight_decay)
    batches = _training_batches(settings)
    for step in track(range(optim.max_steps), description="labels from volumes"):
        factor = schedule_factor(step, warmup_steps=optim.warmup_steps, max_steps=optim.max_steps)
        for group in optimizer.param_groups:
            group["lr"] = factor * optim.learning_rate
        volume, labels = (part.to(device) for part in next(batches))
        logits = probe(volume)
        loss = F.binary_cross_entropy_with_logits(logits, labels.clamp(min=0).float(), weight=(labels >= 0).float())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(probe.parameters(), optim.grad_clip or 1.0)
        optimizer.step()
    result = _held_out(probe.eval(), settings, device)
    write_json(run_dir / "diagnosis.json", result)
    for name, value in sorted(result.items(), key=lambda item: -item[1]):
        say(f"{name:40s} {value:.3f}")
    return result


def _studies(settings: Settings, split: str) -> Studies:
    index = VolumeIndex(index_path(Path(settings.data.data_root), settings.data.datasets[0], split))
    return Studies(index, text_unit=settings.data.text_unit, window_hu=settings.data.window_hu)


def _training_batches(settings: Settings) -> Iterator[tuple[Tensor, Tensor]]:
    studies, size = _studies(settings, "train"), settings.optim.batch_size
    stream, position = Stream([len(studies)], seed=settings.run.seed), 0
    while True:
        draws = [stream[position + place] for place in range(size)]
        samples = [studies.sample(draw.study, draw.words) for draw in draws]
        position += size
        yield _stack(samples)


def _stack(samples: list) -> tuple[Tensor, Tensor]:
    volumes, labels = (np.stack([getattr(sample, name) for sample in samples]) for name in ("volume", "labels"))
    return torch.from_numpy(volumes), torch.from_numpy(labels)


@torch.no_grad()
def _held_out(probe: LabelProbe, settings: Settings, device: torch.device) -> dict[str, float]:
    studies = _studies(settings, "test")
    scores, truth = [], []
    for start in range(0, len(studies), 16):
        volume, labels = _stack([studies.sample(study) for study in range(start, min(start + 16, len(studies)))])
        scores.append(probe(volume.to(device)).cpu().numpy())
        truth.append(labels.numpy())
    scores, truth = np.concatenate(scores), np.concatenate(truth)
    return {name: float(auroc(truth[:, place], scores[:, place])) for place, name in enumerate(LABELS)}
