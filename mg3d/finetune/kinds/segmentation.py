"""A scan -> structures, voxel by voxel; scored and written on the grid of the scan's own file."""

import copy
import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from monai import transforms as mt
from monai.data import MetaTensor, decollate_batch
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss, DiceLoss
from torch import Tensor, nn
from torch.utils.data import Dataset

from mg3d.finetune.cases import Case
from mg3d.finetune.images import read_image, write_mask
from mg3d.finetune.kinds.base import Kind, Row
from mg3d.finetune.masks import refuse_bad_masks, refuse_empty_masks
from mg3d.finetune.pipeline import OURS, ReadCase, Sample, fixed_steps, reordered
from mg3d.finetune.settings import FinetuneSettings
from mg3d.finetune.task import Task
from mg3d.finetune.usable import survey
from mg3d.metrics.segmentation import case_scores
from mg3d.models.segmentation import PyramidSegmenter
from mg3d.models.vision.registry import VisionEncoder
from mg3d.visualize.planes import case_figure

_SOFTMAX = {"to_onehot_y": True, "softmax": True}
LOSSES: dict[str, Callable[..., nn.Module]] = {
    "dice": lambda **named: DiceLoss(**_SOFTMAX, **named),
    "dice_ce": lambda **named: DiceCELoss(**_SOFTMAX, **named),
    "dice_ce_squared": lambda **named: DiceCELoss(**_SOFTMAX, squared_pred=True, smooth_nr=0.0, smooth_dr=1e-6, **named),
}
"""Dice over softmax probabilities; `_ce` adds cross entropy; `_squared` has squares in the denominator, hardly any smoothing."""
MEASURES = ("dice", "nsd", "hd95")
_LARGEST_ON_DEVICE = 2**28
"""Class scores of a volume that may lie on the GPU as one piece (1 GB); larger ones are put together in main memory."""
warnings.filterwarnings("ignore", ".*(Num foregrounds|no available indices|always_return_as_numpy|non-tuple sequence).*")


class KeepTruth(mt.Transform):
    """Puts the mask aside as `truth`, uint8 [1, i, j, k] in the order of its file, before any step touches it."""

    def __call__(self, sample: Sample) -> Sample:
        """`mask` -> `truth`, where there is one."""
        sample = dict(sample)
        if "mask" in sample:
            sample["truth"] = sample.pop("mask").as_tensor().to(torch.uint8)
        return sample


class Segmentation(Kind):
    """Structures of label values 1, 2, ... in the order of `outputs`; 0 is the background.

    Learned from patches, evaluated by windows over the whole scan. Class probabilities go back to the file's own grid, and the
    largest decides there. Columns: `dice/<structure>`, `nsd/<structure>`, `hd95/<structure>` (mm) where the truth is known,
    `volume_ml/<structure>`, `reference_ml/<structure>`.

    Raises:
        ValueError: a task without `patch`, with an unknown loss, or with steps that do not lead back to the file's grid.
    """

    reads_masks = True

    def __init__(self, task: Task, settings: FinetuneSettings) -> None:
        super().__init__(task, settings)
        steps, name = task.preprocess, task.loss or next(iter(LOSSES))
        if steps.patch is None or steps.keep or steps.extent_top:
            raise ValueError(f"{task.folder}: a segmentation needs preprocess.patch, and cannot undo keep and extent_top")
        if name not in LOSSES:
            raise ValueError(f"{task.folder}: loss {name!r} is not known; choose one of {', '.join(LOSSES)}")
        self.criterion = LOSSES[name](include_background=task.background)
        self.patch = reordered(steps.patch, self.axes)
        self.steps = mt.Compose(fixed_steps(steps, keys=["image"], axes=self.axes))
        self.images: dict[str, Case] = {}
        self.written: dict[str, Path] = {}

    def check(self, cases: Sequence[Case]) -> None:
        """By their grids and values."""
        refuse_bad_masks(cases, self._survey(cases), structures=len(self.task.outputs))

    def fit(self, cases: Sequence[Case]) -> None:
        """Every structure must be in some training case."""
        refuse_empty_masks(self._survey(cases), self.task.outputs)

    def _survey(self, cases: Sequence[Case]) -> dict[str, dict[str, Any]]:
        return survey(cases, self.memory, channel=self.task.preprocess.channel)

    def network(self, encoder: VisionEncoder) -> nn.Module:
        """A `PyramidSegmenter` with one map per structure and one for the background."""
        return PyramidSegmenter(encoder, 1 + len(self.task.outputs))

    def loss(self, network: nn.Module, batch: Sample) -> Tensor:
        """Of patches; in 32 bits also where the network runs in 16."""
        return self.criterion(network(batch["image"]).float(), batch["mask"].float())

    def fixed(self, *, masks: bool) -> Callable[[Case], Sample]:
        """Training samples have their mask on the network's grid; evaluation samples keep the truth and the way back."""
        if masks:
            return super().fixed(masks=True)
        return mt.Compose([ReadCase(masks=True, channel=self.task.preprocess.channel), KeepTruth(), self.steps])

    def patches(self) -> list[mt.Transform]:
        """`crops` patches, a share of `positive_share` of them around foreground."""
        steps = self.task.preprocess
        named: dict[str, Any] = {"keys": self.keys(), "label_key": "mask", "spatial_size": self.patch, "num_samples": steps.crops}
        positive, negative = steps.positive_share, 1 - steps.positive_share
        if not steps.by_structure:
            return [mt.RandCropByPosNegLabeld(**named, pos=positive, neg=negative)]
        count = len(self.task.outputs)
        return [mt.RandCropByLabelClassesd(**named, ratios=[negative, *[positive / count] * count], num_classes=count + 1)]

    def evaluation_data(self, cases: Sequence[Case]) -> Dataset:
        """Evaluation samples; the cases are remembered for the figures."""
        self.images |= {case.case_id: case for case in cases}
        return super().evaluation_data(cases)

    def rows(self, network: nn.Module, batch: Sample, *, masks: Path | None = None) -> list[Row]:
        """The one case of an evaluation batch."""
        return [self._row(network, batch, masks=masks, surfaces=True)]

    def validation_rows(self, network: nn.Module, batch: Sample) -> list[Row]:
        """Dice and volumes; distances of surfaces take much longer."""
        return [self._row(network, batch, masks=None, surfaces=False)]

    @torch.no_grad()
    def _row(self, network: nn.Module, batch: Sample, *, masks: Path | None, surfaces: bool) -> Row:
        (image,) = decollate_batch(batch["image"])
        scores = self.mirrored(lambda volume: self._windows(network, volume), image.as_tensor()[None], back=True)[0]
        found, affine = self.on_file(scores, image)
        row: Row = {"case_id": batch["case_id"][0], "patient_id": batch["patient_id"][0]}
        if masks is not None:
            self.written[row["case_id"]] = masks / self.task.mask_name(row["case_id"])
            write_mask(self.written[row["case_id"]], found, affine)
        truth = batch["truth"][0, 0].cpu().numpy() if "truth" in batch else None
        return row | self._measured(found, truth, affine, surfaces=surfaces)

    def _windows(self, network: nn.Module, volume: Tensor) -> Tensor:
        values = volume.numel() * (1 + len(self.task.outputs))
        logits = sliding_window_inference(
            volume,
            roi_size=self.patch,
            sw_batch_size=self.settings.batch_size * self.task.preprocess.crops,
            predictor=network,
            overlap=self.settings.overlap,
            device=volume.device if values <= _LARGEST_ON_DEVICE else torch.device("cpu"),
        )
        return logits.float().softmax(1)

    def on_file(self, scores: Tensor, image: MetaTensor) -> tuple[np.ndarray, np.ndarray]:
        """Class scores [C, ...] on the grid of `image` -> label values uint8 [i, j, k] in the order of its file, and its affine.

        Where the steps cut voxels of the file away, it is background.
        """
        best = labels = affine = None
        for value, channel in enumerate(scores):
            history = copy.deepcopy(image.applied_operations)
            given = MetaTensor(channel[None], meta=copy.deepcopy(image.meta), applied_operations=history)
            there = self.steps.inverse({"image": given})["image"]
            back = there.as_tensor()[0]
            if best is None:
                best, labels, affine = back, torch.zeros_like(back, dtype=torch.uint8), np.asarray(there.affine)
                continue
            larger = back > best
            labels[larger] = value
            best = torch.where(larger, back, best)
        return labels.cpu().numpy(), affine

    def _measured(self, found: np.ndarray, truth: np.ndarray | None, affine: np.ndarray, *, surfaces: bool) -> Row:
        outputs = self.task.outputs
        named = {"classes": range(1, 1 + len(outputs)), "spacing_mm": np.linalg.norm(affine[:3, :3], axis=0).tolist()}
        tolerances = [self.task.tolerance_mm] * len(outputs)
        surfaces = surfaces and truth is not None
        reference = found if truth is None else truth
        measured = case_scores(found, reference, tolerance_mm=tolerances, surfaces=surfaces, **named)
        columns = {"volume_ml": "volume_ml"}
        if truth is not None:
            columns |= {"reference_ml": "reference_ml", "dice": "dice"} | ({"nsd": "nsd", "hd95_mm": "hd95"} if surfaces else {})
        return {
            f"{column}/{name}": float(measured[measure][place])
            for measure, column in columns.items()
            for place, name in enumerate(outputs)
        }

    def statistics(self, table: pd.DataFrame, dev: pd.DataFrame | None = None) -> dict[str, float]:
        """`<measure>/<structure>`: means over the cases that have it (or in which it was invented); `<measure>`: their mean."""
        found: dict[str, float] = {}
        for measure in MEASURES:
            each = {name: table[name].mean() for output in self.task.outputs if (name := f"{measure}/{output}") in table}
            if each:
                found |= {measure: float(pd.Series(each).mean())} | {name: float(value) for name, value in each.items()}
        return found

    def rests_on(self, table: pd.DataFrame, score: str) -> np.ndarray:
        """Cases that have the structure, or any."""
        columns = [score] if "/" in score else [f"{score}/{name}" for name in self.task.outputs if f"{score}/{name}" in table]
        return table[columns].notna().any(axis=1).to_numpy()

    def state(self) -> dict[str, Any]:
        """Names of the structures."""
        return {"outputs": list(self.task.outputs)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes the names of the structures from a checkpoint."""
        self.task = dataclasses.replace(self.task, outputs=tuple(state["outputs"]))

    def figures(self, table: pd.DataFrame) -> list[tuple[str, Figure]]:
        """Dice of every case, and the scans with the best and the worst beside their predicted and true masks."""
        means = table[[f"dice/{name}" for name in self.task.outputs]].mean(axis=1)
        return [("Dice of each case", self._dice_figure(table)), *self._extremes(table["case_id"], means)]

    def _dice_figure(self, table: pd.DataFrame) -> Figure:
        figure = Figure(figsize=(1.5 + 1.2 * len(self.task.outputs), 4), layout="constrained")
        axes = figure.add_subplot()
        values = [table[f"dice/{name}"].dropna().to_numpy() for name in self.task.outputs]
        axes.boxplot(values, tick_labels=self.task.outputs, showfliers=False)
        for place, dice in enumerate(values, start=1):
            axes.plot(place + np.linspace(-0.15, 0.15, len(dice)), dice, "o", markersize=3, alpha=0.6)
        axes.set_ylim(0, 1)
        axes.set_ylabel("Dice of a case")
        return figure

    def _extremes(self, names: pd.Series, dice: pd.Series) -> list[tuple[str, Figure]]:
        shown = [name in self.written and name in self.images for name in names]
        dice = dice[shown].dropna()
        if dice.empty:
            return []
        pieces = []
        for word, place in (("Best", dice.idxmax()), ("Worst", dice.idxmin())):
            title = f"{word}: {names[place]}, Dice {dice[place]:.3f}"
            pieces += [(f"{title}, {whose}", figure) for whose, figure in self._planes(names[place]).items()]
        return pieces

    def _planes(self, name: str) -> dict[str, Figure]:
        """The scan with the predicted mask, and with the true one, in the planes through the middle of the truth."""
        case, turn = self.images[name], mt.Orientation(OURS, labels=None)
        image = turn(read_image(case.image, channel=self.task.preprocess.channel))
        masks = {whose: turn(read_image(path))[0].numpy() > 0 for whose, path in
                 (("predicted", self.written[name]), ("true", case.mask)) if path is not None}  # fmt: skip
        held = np.argwhere(masks["true"] if masks["true"].any() else masks["predicted"])
        centre = np.median(held, axis=0).astype(int).tolist() if len(held) else None
        spacing = np.linalg.norm(np.asarray(image.affine)[:3, :3], axis=0).tolist()
        named = {"spacing_mm": spacing, "window": self.task.preprocess.window, "centre": centre}
        return {whose: case_figure(image[0].numpy(), overlay=mask, **named) for whose, mask in masks.items()}
