"""Learning the labels directly from the volumes: which findings can be seen at this grid by this encoder at all?

A contrast cannot teach what supervision cannot. So before a small preset is trusted, `python main.py diagnose with tiny` trains
its volume encoder, pool and one linear layer on the labels, and tells the AUROC of each finding on the validation studies.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from mg3d.datamodules.sampler import Stream
from mg3d.datasets.arrow import open_index
from mg3d.datasets.storage import Storage
from mg3d.datasets.studies import Studies
from mg3d.datasets.windowing import on_device, stack, volumes
from mg3d.files import write_json
from mg3d.glossary import LABELS
from mg3d.metrics.classification import auroc
from mg3d.models.build import build_untrained
from mg3d.models.mg3d import MG3D
from mg3d.settings.schema import LossSettings, Settings
from mg3d.training.build import build_data, fit_voxels
from mg3d.training.optim import schedule_factor
from mg3d.training.trainer import resolve_accelerator
from mg3d.types import Sample

_FEWEST_WORDS = 50


class LabelProbe(nn.Module):
    """The run's way from a volume to the vector that CML contrasts, and one linear layer to the 18 labels."""

    def __init__(self, model: MG3D) -> None:
        super().__init__()
        self.model = model
        self.head = nn.Linear(model.project_image.out_features, len(LABELS))

    def forward(self, volume: Tensor) -> Tensor:
        """Logits [B, 18] of volumes [B, 1, D, H, W] in [0, 1]."""
        return self.head(self.model.contrast.image_pool(self.model.encode_volume(volume)))


def build_probe(settings: Settings) -> LabelProbe:
    """The untrained probe. No report is read, so the smallest report encoder stands in for the run's own."""
    text = dataclasses.replace(settings.text, text_encoder="tiny", freeze_text=False)
    only_cml = LossSettings(weight_mlm=0, weight_sal=0, weight_mim=0, weight_dcl=0, weight_ssm=0)
    model = dataclasses.replace(settings.model, cml_pair="image_report")
    return LabelProbe(build_untrained(dataclasses.replace(settings, text=text, loss=only_cml, model=model), _FEWEST_WORDS))


def diagnose_labels(settings: Settings, run_dir: Path, *, say: Callable[[str], None]) -> dict[str, float]:
    """Trains the probe with the run's schedule and batch size; writes `diagnosis.json` and returns AUROC by finding on val.

    On val, because presets are chosen by it and the test studies must stay unseen until then.
    """
    device = torch.device("cuda" if resolve_accelerator(settings.run) == "gpu" else "cpu")
    probe = build_probe(settings)
    fit_voxels(probe.model, build_data(settings))
    probe = probe.to(device)
    optim = settings.optim
    optimizer = torch.optim.AdamW(probe.parameters(), lr=optim.learning_rate, weight_decay=optim.weight_decay)
    batches = _training_batches(settings)
    for step in track(range(optim.max_steps), description="labels from volumes"):
        factor = schedule_factor(step, warmup_steps=optim.warmup_steps, max_steps=optim.max_steps)
        for group in optimizer.param_groups:
            group["lr"] = factor * optim.learning_rate
        volume, labels = _on(device, next(batches))
        logits = probe(volume)
        loss = F.binary_cross_entropy_with_logits(logits, labels.clamp(min=0).float(), weight=(labels >= 0).float())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(probe.parameters(), optim.grad_clip or 1.0)
        optimizer.step()
    result = _validate(probe.eval(), settings, device)
    write_json(run_dir / "diagnosis.json", result)
    for name, value in sorted(result.items(), key=lambda item: -item[1]):
        say(f"{name:40s} {value:.3f}")
    return result


def _studies(settings: Settings, split: str) -> Studies:
    index = open_index(Storage(settings.data.data_root, settings.data.cache_dir), settings.data.datasets[0], split)
    return Studies(index, text_unit=settings.data.text_unit, window_hu=settings.data.window_hu)


def _training_batches(settings: Settings) -> Iterator[list[Sample]]:
    studies, size = _studies(settings, "train"), settings.optim.batch_size
    stream, position = Stream([len(studies)], seed=settings.run.seed), 0
    while True:
        draws = [stream[position + place] for place in range(size)]
        position += size
        yield [studies.sample(draw.study, draw.seed) for draw in draws]


def _on(device: torch.device, samples: list[Sample]) -> tuple[Tensor, Tensor]:
    labels = torch.from_numpy(np.stack([sample.labels for sample in samples]))
    return volumes(on_device(stack(samples), device)), labels.to(device)


@torch.no_grad()
def _validate(probe: LabelProbe, settings: Settings, device: torch.device) -> dict[str, float]:
    studies = _studies(settings, "val")
    scores, truth = [], []
    for start in range(0, len(studies), 16):
        volume, labels = _on(device, [studies.sample(study) for study in range(start, min(start + 16, len(studies)))])
        scores.append(probe(volume).cpu().numpy())
        truth.append(labels.cpu().numpy())
    scores, truth = np.concatenate(scores), np.concatenate(truth)
    return {name: float(auroc(truth[:, place], scores[:, place])) for place, name in enumerate(LABELS)}
