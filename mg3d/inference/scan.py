"""Read a scan as a model sees it, and map results back to the geometry of its file."""

import gzip
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from mg3d.datasets.schema import differing_steps
from mg3d.datasets.windowing import apply_window, window_bounds
from mg3d.files import write_bytes
from mg3d.preparation import chest, crop, geometry
from mg3d.preparation.hounsfield import CLIP_HU, choose_hu_rescale, fill_nan
from mg3d.preparation.quarantine import REASONS, Refusal
from mg3d.preparation.readers.dicom_series import is_dicom
from mg3d.preparation.readers.registry import READERS, reader_of
from mg3d.preparation.recipe import Recipe
from mg3d.preparation.records import RawVolume, VolumeRecord
from mg3d.preparation.sources.custom import DATASET
from mg3d.preparation.sources.scan_walk import dicom_scans, walk_scans
from mg3d.preparation.voxels import preprocess

_MAX_CHOICES = 20
"""Scans that are listed if a folder has several."""
_FORMATS = ".nii, .nii.gz, .hdr with .img, .mha, .mhd, .nrrd, .nhdr, .npz, .zip, a folder of DICOM slices or one of its slices"


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of a model's training volumes, from its checkpoint."""

    recipe: Recipe
    window_hu: tuple[float, float]
    """HU values mapped to 0 and 1."""
    note: str = field(default="", repr=False)
    """Warning if the checkpoint does not fully describe the preprocessing."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Preprocessing":
        """From the entry `preprocessing` of a config.json; without a usable recipe the default one, with a warning."""
        low, high = config["window_hu"]
        window, default, steps = (float(low), float(high)), Recipe(shape=tuple(config["shape"])), config.get("recipe")
        try:
            if not steps:
                raise ValueError("the checkpoint does not record how its training volumes were prepared")
            recipe = Recipe.from_provenance(steps)
        except ValueError as error:
            fractions = " x ".join(f"{fraction:.0%}" for fraction in default.provenance(DATASET)["crop"]["zyx"])
            return cls(default, window, f"{error}; using the default crop, the central {fractions} of z, y, x")
        steps = differing_steps(steps, recipe.provenance(DATASET))
        note = f"the training volumes were prepared with another version of these steps: {', '.join(steps)}" if steps else ""
        return cls(recipe, window, note)


@dataclass(frozen=True, eq=False)
class Scan:
    """A volume prepared for a model, with its geometry. The repr does not contain the file name."""

    volume: np.ndarray = field(repr=False)
    """float32 [D, H, W] in [0, 1]; +z superior, +y posterior, +x left."""
    source_shape: tuple[int, int, int]
    """Voxels z, y, x of the upright scan."""
    box: crop.Box
    """Half-open voxel ranges of the upright scan that `volume` covers; may extend beyond the scan."""
    affine: np.ndarray = field(repr=False)
    """To RAS mm, from voxels [i, j, k] of the file, or [x, y, z] of the upright scan if it was resampled or has no geometry."""
    spacing_mm: tuple[float, float, float] | None
    """z, y, x of the upright scan; None if unknown, and then `affine` is in voxels."""
    name: str = field(default="", repr=False)
    note: str = ""
    """Remark of the reader."""

    def __str__(self) -> str:
        spacing = " x ".join(f"{mm:.4g}" for mm in self.spacing_mm) + " mm" if self.spacing_mm else "unknown spacing"
        shown = "; ".join(f"{start}:{end}" for start, end in self.box)
        shape, model_shape = ("x".join(map(str, shape)) for shape in (self.source_shape, self.volume.shape))
        note = f"; {self.note}" if self.note else ""
        return f"scan of {shape} voxels (z y x), {spacing}; the model sees [{shown}] as {model_shape}{note}"

    def upright(self, cells: np.ndarray, cell_voxels: Sequence[float] = (1, 1, 1)) -> np.ndarray:
        """Interpolate a map on the model's grid to the upright scan: float32 of `source_shape`, 0 outside `box`.

        cells: values [d, h, w], each covering `cell_voxels` (z, y, x) of `volume`.
        """
        axes = zip(self.source_shape, self.box, self.volume.shape, cells.shape, cell_voxels)
        weights = [_interpolation_weights(*axis) for axis in axes]
        return np.einsum("zd,yh,xw,dhw->zyx", *weights, cells.astype(np.float32), optimize=True)

    def position_mm(self, voxel: Sequence[float]) -> tuple[float, float, float]:
        """Right, anterior and superior in mm of a position z, y, x in voxels of the upright scan."""
        z, y, x = voxel
        right, anterior, superior, _ = geometry.lps_affine(self.affine, self.source_shape) @ (x, y, z, 1.0)
        return float(right), float(anterior), float(superior)

    def in_file(self, upright: np.ndarray) -> nib.Nifti1Image:
        """An array of `source_shape` as NIfTI with the voxel order and affine of the scan's file."""
        return nib.Nifti1Image(np.ascontiguousarray(geometry.from_lps(upright, self.affine)), self.affine)


def _interpolation_weights(source: int, box: tuple[int, int], grid: int, cells: int, cell: float) -> np.ndarray:
    """Linear weights [source, cells] of one axis; 0 outside the box."""
    start, end = box
    voxel = np.arange(source)
    position = (voxel + 0.5 - start) * grid / (end - start) / cell - 0.5
    distance = np.abs(np.clip(position, 0, cells - 1)[:, None] - np.arange(cells))
    inside = (voxel >= start) & (voxel < end)
    return (np.clip(1 - distance, 0, None) * inside[:, None]).astype(np.float32)


def read_scan(path: str | Path, preprocessing: Preprocessing) -> Scan:
    """Read a scan from a file, or from a folder with one scan: a file or a DICOM series.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the scan cannot be used, with the reason, or the folder has several.
    """
    path = Path(path)
    with _refusals_as_errors(path):
        return _scan(_read_raw(path, preprocessing.recipe.hu), preprocessing, path.name)


def check_scan(path: str | Path) -> None:
    """Check by names and headers that a path is one scan of a known format; errors as `read_scan`."""
    path = Path(path)
    with _refusals_as_errors(path):
        _reader(_only_scan(path) if path.is_dir() else path)


def as_nifti(path: str | Path) -> nib.Nifti1Image:
    """Convert a scan to NIfTI in HU (int16) with the geometry of its file; errors as `read_scan`."""
    with _refusals_as_errors(Path(path)):
        raw = _read_raw(Path(path))
        slope, intercept = raw.scale
        hu = raw.voxels if raw.scale == (1.0, 0.0) else raw.voxels * np.float32(slope) + np.float32(intercept)
        stored = np.rint(hu.clip(np.iinfo(np.int16).min, np.iinfo(np.int16).max)).astype(np.int16)
        affine = _affine(raw)
        return nib.Nifti1Image(np.ascontiguousarray(geometry.from_lps(stored, affine)), affine)


def _affine(raw: RawVolume) -> np.ndarray:
    """Affine of the file, or of the upright volume if the file has none."""
    if raw.affine is not None:
        return raw.affine
    z, y, x = raw.spacing_mm or (1.0, 1.0, 1.0)
    return np.diag([-x, -y, z, 1.0])


def _read_raw(path: Path, hu: str = "infer") -> RawVolume:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist. A scan is {_FORMATS}.")
    path = _only_scan(path) if path.is_dir() else path
    record = replace(file_record(path, _reader(path)), hu=hu)
    return READERS[record.reader](record, path.parent)


def _only_scan(folder: Path) -> Path:
    """The scan of a folder; the folder itself if it has none, so that its reader gives the reason.

    Raises:
        ValueError: several scans; the message lists them.
    """
    choices: dict[Path, str] = {}
    for scan in (folder / name for name in walk_scans(folder).scans):
        series = {} if scan.is_file() else dicom_scans(scan)
        choices |= {scan: ""} if scan.is_file() else {path: f" ({count} slices)" for path, count in series.items()}
    if len(choices) < 2:
        return next(iter(choices), folder)
    shown = [f"{path.relative_to(folder)}{text}" for path, text in choices.items()][:_MAX_CHOICES]
    more = ", ..." if len(choices) > len(shown) else ""
    raise ValueError(
        f"{folder} has {len(choices)} scans; name one of them, or process all with --out: {', '.join(shown)}{more}"
    )


@contextmanager
def _refusals_as_errors(subject: Path | str) -> Iterator[None]:
    """Raise ValueError with the reason where the preparation refuses a volume."""
    try:
        yield
    except Refusal as refusal:
        raise ValueError(f"{subject} cannot be used: {refusal.reason}") from None
    except MemoryError:
        raise ValueError(f"{subject} cannot be used: {REASONS['oom']}") from None


def scan_of_array(
    voxels_hu: np.ndarray, preprocessing: Preprocessing, *, spacing_mm: tuple[float, float, float] | None = None
) -> Scan:
    """Scan of an array in HU [z, y, x] (+z superior, +y posterior, +x left) and its spacing z, y, x in mm.

    Raises:
        ValueError: the array does not have three axes, is constant or not finite, or its air is not near -1000 HU.
    """
    if voxels_hu.ndim != 3:
        raise ValueError(f"expected HU [z, y, x], found an array of shape {list(voxels_hu.shape)}")
    with _refusals_as_errors("the array"):
        choose_hu_rescale(voxels_hu, None)
        voxels_hu, _ = fill_nan(voxels_hu, CLIP_HU[0])
        return _scan(RawVolume(voxels_hu, spacing_mm, "already_hu"), preprocessing, "")


def _scan(raw: RawVolume, preprocessing: Preprocessing, name: str) -> Scan:
    recipe = preprocessing.recipe
    stored, box = preprocess(raw, recipe, DATASET)
    window = torch.tensor([window_bounds(recipe.unit(DATASET), preprocessing.window_hu, recipe.uint8_window)])
    volume: Tensor = apply_window(torch.from_numpy(stored)[None, None], window)[0, 0]
    return Scan(
        volume=volume.numpy(),
        source_shape=raw.voxels.shape,
        box=box,
        affine=_affine(raw),
        spacing_mm=raw.spacing_mm,
        name=name,
        note="; ".join([*map(str, raw.changes), *_chest_notes(raw)]),
    )


def _chest_notes(raw: RawVolume) -> list[str]:
    """A note for a scan in HU that seems not to show a chest."""
    if raw.hu_source == "uint8_unknown_window":
        return []
    air = chest.air_inside(chest.coarse(raw.voxels).astype(np.float32) * raw.scale[0] + raw.scale[1])
    return [f"seems not to show a chest ({air:.0%} of the body is air)"] if air < chest.MIN_CHEST_AIR else []


def _reader(path: Path) -> str:
    if path.is_dir():
        return "dicom"
    reader = reader_of(path) or ("dicom" if is_dicom(path) else None)
    if reader is None:
        raise ValueError(f"{path} is not in a supported format; expected {_FORMATS}")
    return reader


def file_record(path: Path, reader: str) -> VolumeRecord:
    """Record for a reader when only the file of a scan is known."""
    return VolumeRecord(
        volume_id="scan", study_id="scan", patient_id="scan", dataset=DATASET, official_split="none", split="test",
        reconstruction=1, findings=None, impression=None, files=(path.name,), source="scan", reader=reader,
    )  # fmt: skip


def write_nifti(path: Path, image: nib.Nifti1Image) -> None:
    """Write `.nii` or `.nii.gz` atomically; ValueError for another suffix."""
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"{path}: expected the suffix .nii or .nii.gz")
    content = image.to_bytes()
    if path.name.endswith(".gz"):
        content = gzip.compress(content, compresslevel=3, mtime=0)
    write_bytes(path, content)
