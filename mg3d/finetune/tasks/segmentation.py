"""Voxel-wise segmentation, scored and written on the grid of the scan's own file."""

import copy
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
from scipy import ndimage
from torch import Tensor, nn
from torch.utils.data import Dataset

from mg3d.finetune.cases import FinetuneCase, Split
from mg3d.finetune.data_check import InspectedFiles, check_structures, mask_error
from mg3d.finetune.images import read_image, write_mask
from mg3d.finetune.settings import FinetuneSettings, Size
from mg3d.finetune.tasks.base import Row, TaskType
from mg3d.finetune.transforms import AXES, ReadCase, Sample, orientation
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
"""Soft Dice; `_ce` adds cross entropy; `_squared` has squared terms in the denominator and almost no smoothing."""
MEASURES = ("dice", "nsd", "hd95")
_MAX_SCORES_ON_GPU = 2**28
"""Class scores of a volume that are stitched on the GPU (1 GB); larger volumes are stitched in main memory."""
warnings.filterwarnings("ignore", ".*(Num foregrounds|no available indices|always_return_as_numpy|non-tuple sequence).*")


class KeepReference(mt.Transform):
    """Moves `mask` to `reference`, uint8 [1, i, j, k] on the file's grid, before any transform changes it."""

    def __call__(self, sample: Sample) -> Sample:
        """Changes samples that have a mask."""
        sample = dict(sample)
        if "mask" in sample:
            sample["reference"] = sample.pop("mask").as_tensor().to(torch.uint8)
        return sample


def keep_largest_components(labels: np.ndarray) -> np.ndarray:
    """A label map [i, j, k] with the largest face-connected component of each value above 0; the rest becomes 0."""
    kept = np.zeros_like(labels)
    for value in np.unique(labels[labels > 0]):
        components, _ = ndimage.label(labels == value)
        kept[components == 1 + np.bincount(components.ravel())[1:].argmax()] = value
    return kept


class Segmentation(TaskType):
    """Structures with label values 1, 2, ... in the order of `outputs`; 0 is background.

    Trained on patches, evaluated with sliding windows over the whole scan. Class probabilities are resampled to the grid of the
    file, where the largest wins. Columns: `dice/`, `nsd/`, `hd95/<structure>` (mm), `volume_ml/`, `reference_ml/<structure>`.

    Args:
        patch_size: voxels of training patches and sliding windows.
        loss: one of `LOSSES`.
        include_background: count the background as a structure in the loss.
        windows_per_batch: sliding windows per forward pass.
        tolerance_mm: NSD tolerance in mm.
        mask_name: case name -> file name of its predicted mask.
    """

    reads_masks = True
    reads_pyramid = True

    def __init__(
        self,
        settings: FinetuneSettings,
        *,
        patch_size: Size,
        loss: str = "dice",
        include_background: bool = True,
        windows_per_batch: int = 4,
        tolerance_mm: float = 2.0,
        mask_name: Callable[[str], str] = "{}.nii.gz".format,
        **shared: Any,
    ) -> None:
        super().__init__(settings, metric="dice", **shared)
        self.criterion = LOSSES[loss](include_background=include_background)
        self.patch_size, self.windows_per_batch = patch_size, windows_per_batch
        self.tolerance_mm, self.mask_name = tolerance_mm, mask_name
        self.invertible = mt.Compose([orientation(), *self.preprocess])
        self.cases: dict[str, FinetuneCase] = {}
        self.written: dict[str, Path] = {}

    def file_error(self, file: Mapping[str, Any]) -> str:
        """Masks must be on the grid of their scan, with declared values."""
        return mask_error(file, structures=len(self.outputs))

    def setup(self, split: Split, files: InspectedFiles) -> None:
        """Every structure must occur in training, and some in validation."""
        check_structures(split.train, files, self.outputs)
        if not any(max(files[case.case_id]["values"]) > 0 for case in split.val):
            raise ValueError(f"none of the {len(split.val)} validation masks has a structure; use another fold or seed")

    def network(self, encoder: VisionEncoder | None) -> nn.Module:
        """A `PyramidSegmenter` with one map per structure and one for the background."""
        return PyramidSegmenter(encoder, 1 + len(self.outputs))

    def loss(self, network: nn.Module, batch: Sample) -> Tensor:
        """Loss of patches, in float32."""
        return self.criterion(network(batch["image"]).float(), batch["mask"].float())

    def read(self, *, with_masks: bool) -> Callable[[FinetuneCase], Sample]:
        """Training samples have the mask on the network's grid; evaluation samples keep the reference and can be inverted."""
        if with_masks:
            return super().read(with_masks=True)
        return mt.Compose([ReadCase(masks=True, channel=self.channel, orient=False), KeepReference(), self.invertible])

    def evaluation_data(self, cases: Sequence[FinetuneCase], *, collect_errors: bool = False) -> Dataset:
        """Evaluation samples; the cases are remembered for the figures."""
        self.cases |= {case.case_id: case for case in cases}
        return super().evaluation_data(cases, collect_errors=collect_errors)

    def rows(self, network: nn.Module, batch: Sample, *, mask_folder: Path | None = None) -> list[Row]:
        """The row of the one case of an evaluation batch."""
        return [self._row(network, batch, mask_folder=mask_folder, surfaces=True)]

    def validation_rows(self, network: nn.Module, batch: Sample) -> list[Row]:
        """Dice and volumes only; surface distances take much longer."""
        return [self._row(network, batch, mask_folder=None, surfaces=False)]

    @torch.no_grad()
    def _row(self, network: nn.Module, batch: Sample, *, mask_folder: Path | None, surfaces: bool) -> Row:
        (image,) = decollate_batch(batch["image"])
        volume = image.as_tensor()[None]
        scores = self.averaged(lambda part: self._sliding_windows(network, part), volume, flip_back=True)[0]
        labels, affine = self.to_file_grid(scores, image)
        if self.settings.largest_component:
            labels = keep_largest_components(labels)
        row: Row = {"case_id": batch["case_id"][0], "patient_id": batch["patient_id"][0]}
        if mask_folder is not None:
            self.written[row["case_id"]] = mask_folder / self.mask_name(row["case_id"])
            write_mask(self.written[row["case_id"]], labels, affine)
        reference = batch["reference"][0, 0].cpu().numpy() if "reference" in batch else None
        return row | self._measure(labels, reference, affine, surfaces=surfaces)

    def _sliding_windows(self, network: nn.Module, volume: Tensor) -> Tensor:
        count = volume.numel() * (1 + len(self.outputs))
        logits = sliding_window_inference(
            volume,
            roi_size=self.patch_size,
            sw_batch_size=self.windows_per_batch,
            predictor=network,
            overlap=self.settings.overlap,
            mode=self.settings.window_weighting,
            device=volume.device if count <= _MAX_SCORES_ON_GPU else torch.device("cpu"),
        )
        return logits.float().softmax(1)

    def to_file_grid(self, scores: Tensor, image: MetaTensor) -> tuple[np.ndarray, np.ndarray]:
        """Class scores [C, ...] on the grid of `image` -> label map uint8 [i, j, k] on the file's grid, and its affine.

        Voxels that preprocessing cropped are background. One class at a time, to save memory.
        """
        best = labels = affine = None
        for value, channel in enumerate(scores):
            history = copy.deepcopy(image.applied_operations)
            resampled = MetaTensor(channel[None], meta=copy.deepcopy(image.meta), applied_operations=history)
            inverse = self.invertible.inverse({"image": resampled})["image"]
            score = inverse.as_tensor()[0]
            if best is None:
                best, labels, affine = score, torch.zeros_like(score, dtype=torch.uint8), np.asarray(inverse.affine)
                continue
            larger = score > best
            labels[larger] = value
            best = torch.where(larger, score, best)
        return labels.cpu().numpy(), affine

    def _measure(self, labels: np.ndarray, reference: np.ndarray | None, affine: np.ndarray, *, surfaces: bool) -> Row:
        known = reference is not None
        measured = case_scores(
            labels,
            reference if known else labels,
            classes=range(1, 1 + len(self.outputs)),
            spacing_mm=np.linalg.norm(affine[:3, :3], axis=0).tolist(),
            tolerance_mm=[self.tolerance_mm] * len(self.outputs),
            surfaces=surfaces and known,
        )
        columns = {"volume_ml": "volume_ml"} | ({"reference_ml": "reference_ml", "dice": "dice"} if known else {})
        columns |= {"nsd": "nsd", "hd95_mm": "hd95"} if surfaces and known else {}
        return {
            f"{column}/{name}": float(measured[measure][index])
            for measure, column in columns.items()
            for index, name in enumerate(self.outputs)
        }

    def statistics(self, table: pd.DataFrame, dev: pd.DataFrame | None = None) -> dict[str, float]:
        """`<measure>/<structure>`: mean over cases where the structure is present or predicted; `<measure>`: their mean."""
        statistics: dict[str, float] = {}
        for measure in MEASURES:
            each = {name: table[name].mean() for output in self.outputs if (name := f"{measure}/{output}") in table}
            if each:
                statistics |= {measure: float(pd.Series(each).mean())} | {name: float(value) for name, value in each.items()}
        return statistics

    def support_mask(self, table: pd.DataFrame, score: str) -> np.ndarray:
        """Cases with the structure, or with any."""
        columns = [score] if "/" in score else [f"{score}/{name}" for name in self.outputs if f"{score}/{name}" in table]
        return table[columns].notna().any(axis=1).to_numpy()

    def figures(self, table: pd.DataFrame) -> list[tuple[str, Figure]]:
        """Dice of every case, and the best and the worst case with predicted and reference masks."""
        figure = Figure(figsize=(1.5 + 1.2 * len(self.outputs), 4), layout="constrained")
        axes = figure.add_subplot()
        axes.boxplot([table[f"dice/{name}"].dropna() for name in self.outputs], tick_labels=self.outputs)
        axes.set_ylim(0, 1)
        axes.set_ylabel("Dice per case")
        return [("Dice of each case", figure), *self._extremes(table)]

    def _extremes(self, table: pd.DataFrame) -> list[tuple[str, Figure]]:
        shown = table[table["case_id"].isin(self.written) & table["case_id"].isin(self.cases)]
        dice = shown.set_index("case_id")[[f"dice/{name}" for name in self.outputs]].mean(axis=1).dropna()
        if dice.empty:
            return []
        extremes = {"Best": dice.idxmax(), "Worst": dice.idxmin()}
        return [
            (f"{word}: {name}, Dice {dice[name]:.3f}, {which}", figure)
            for word, name in extremes.items()
            for which, figure in self._planes(name).items()
        ]

    def _planes(self, name: str) -> dict[str, Figure]:
        """Orthogonal planes of a scan through the reference, with the predicted and with the reference mask."""
        case, turn = self.cases[name], mt.Orientation(AXES, labels=None)
        image = turn(read_image(case.image, channel=self.channel))
        sources = {"predicted": self.written[name], "reference": case.mask}
        masks = {which: turn(read_image(source))[0].numpy() > 0 for which, source in sources.items() if source is not None}
        voxels = np.argwhere(masks["reference"] if masks["reference"].any() else masks["predicted"])
        centre = np.median(voxels, axis=0).astype(int).tolist() if len(voxels) else None
        spacing_mm = np.linalg.norm(np.asarray(image.affine)[:3, :3], axis=0).tolist()
        window = next(((step.scaler.a_min, step.scaler.a_max) for step in self.preprocess
                       if isinstance(step, mt.ScaleIntensityRanged)), None)  # fmt: skip
        return {
            which: case_figure(image[0].numpy(), overlay=mask, spacing_mm=spacing_mm, window=window, centre=centre)
            for which, mask in masks.items()
        }
