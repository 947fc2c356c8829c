"""A scan as a model sees it, and the way back from its grid to the file that it came from."""

import gzip
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from mg3d.datasets.schema import differing_steps
from mg3d.datasets.windowing import apply_window, window_bounds
from mg3d.files import write_bytes
from mg3d.preparation import geometry
from mg3d.preparation.hounsfield import choose_hu_rescale
from mg3d.preparation.quarantine import REASONS, Refusal
from mg3d.preparation.readers.dicom_series import is_dicom
from mg3d.preparation.readers.registry import READER_OF_SUFFIX, READERS, reader_of
from mg3d.preparation.recipe import Recipe
from mg3d.preparation.records import RawVolume, VolumeRecord
from mg3d.preparation.sources.custom import DATASET
from mg3d.preparation.voxels import preprocess

T = TypeVar("T")
_NPZ = {"ct": "rad_chestct", "arr_0": "ct_clip"}
_KINDS = ".nii, .nii.gz, .mha, .mhd, .npz, a folder of DICOM slices or one slice of a series"


@dataclass(frozen=True)
class Preprocessing:
    """What a checkpoint asks of volumes."""

    recipe: Recipe
    window_hu: tuple[float, float]
    """HU that become 0 and 1."""
    note: str = field(default="", repr=False)
    """What is not known of the volumes that the model was trained on, in a sentence."""

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "Preprocessing":
        """From the entry `preprocessing` of a config.json; the default of the preparation where it tells no recipe."""
        low, high = told["window_hu"]
        window, usual, steps = (float(low), float(high)), Recipe(shape=tuple(told["shape"])), told.get("recipe")
        if not steps:
            return cls(usual, window, f"the model does not tell how its training volumes were prepared; {_usual(usual)}")
        try:
            recipe = Recipe.from_provenance(steps)
        except ValueError as error:
            return cls(usual, window, f"{error}, as the model's training volumes were prepared; {_usual(usual)}")
        other = differing_steps(steps, recipe.provenance(DATASET))
        note = f"the model's training volumes were prepared by another version of the step(s) {', '.join(other)}" if other else ""
        return cls(recipe, window, note)


def _usual(recipe: Recipe) -> str:
    steps = recipe.provenance(DATASET)
    share = " x ".join(f"{part:.0%}" for part in steps["crop"]["zyx"])
    return f"scans are read by the default, the central {share} of z, y, x"


@dataclass(frozen=True, eq=False)
class Scan:
    """One volume, ready for the model, with all that leads back to its file. The repr holds no name."""

    volume: np.ndarray = field(repr=False)
    """float32 [D, H, W] in [0, 1]; +z superior, +y posterior, +x left."""
    source_shape: tuple[int, int, int]
    """Voxels z, y, x of the upright scan."""
    box: geometry.Box
    """First and last + 1 voxel of the upright scan that `volume` shows; it may reach beyond."""
    affine: np.ndarray = field(repr=False)
    """From voxels [i, j, k] of the file, or of the upright scan [x, y, z] where the file has no geometry, to RAS mm."""
    spacing_mm: tuple[float, float, float] | None
    """z y x of the upright scan; None = not known, and then `affine` counts voxels."""
    name: str = field(default="", repr=False)
    note: str = ""
    """What a person should know of the reading."""

    def __str__(self) -> str:
        spacing = " x ".join(f"{mm:.4g}" for mm in self.spacing_mm) + " mm" if self.spacing_mm else "no known spacing"
        shown = "; ".join(f"{start}:{end}" for start, end in self.box)
        told = f"scan of {'x'.join(map(str, self.source_shape))} voxels (z y x), {spacing}; the model sees [{shown}] of it"
        return f"{told} as {'x'.join(map(str, self.volume.shape))}{'; ' + self.note if self.note else ''}"

    def upright(self, cells: np.ndarray, cell_voxels: Sequence[float] = (1, 1, 1)) -> np.ndarray:
        """A map over the model's grid brought to the upright scan: float32 of `source_shape`, 0 outside `box`.

        cells: numbers [d, h, w], of which each covers `cell_voxels` (z, y, x) of `volume`; linear in between.
        """
        sides = zip(self.source_shape, self.box, self.volume.shape, cells.shape, cell_voxels)
        along = [_back_weights(*side) for side in sides]
        return np.einsum("zd,yh,xw,dhw->zyx", *along, cells.astype(np.float32), optimize=True)

    def place_mm(self, voxel: Sequence[float]) -> tuple[float, float, float]:
        """Right, anterior and superior in mm of a place z, y, x in voxels of the upright scan."""
        z, y, x = voxel
        right, anterior, superior, _ = geometry.lps_affine(self.affine, self.source_shape) @ (x, y, z, 1.0)
        return float(right), float(anterior), float(superior)

    def in_file(self, upright: np.ndarray) -> nib.Nifti1Image:
        """An array of `source_shape` as NIfTI, voxel by voxel and mm by mm where those of the scan's own file lie."""
        return nib.Nifti1Image(np.ascontiguousarray(geometry.from_lps(upright, self.affine)), self.affine)


def _back_weights(source: int, box: tuple[int, int], grid: int, cells: int, cell: float) -> np.ndarray:
    """Weights [source, cells] that read a map of `cells` at every voxel of one axis; all 0 outside the box."""
    start, end = box
    voxel = np.arange(source)
    place = (voxel + 0.5 - start) * grid / (end - start) / cell - 0.5
    apart = np.abs(np.clip(place, 0, cells - 1)[:, None] - np.arange(cells))
    inside = (voxel >= start) & (voxel < end)
    return (np.clip(1 - apart, 0, None) * inside[:, None]).astype(np.float32)


def read_scan(path: str | Path, preprocessing: Preprocessing) -> Scan:
    """One scan of a file or of a folder of DICOM slices.

    Raises:
        FileNotFoundError: there is nothing of that name.
        ValueError: it cannot be used; says why.
    """
    return _with_raw(path, lambda raw: _scan(raw, preprocessing, Path(path).name))


def as_nifti(path: str | Path) -> nib.Nifti1Image:
    """Any scan that can be read as NIfTI in HU, int16, in its file's own geometry; errors as `read_scan`."""
    return _with_raw(path, _in_hu)


def _in_hu(raw: RawVolume) -> nib.Nifti1Image:
    slope, intercept = raw.scale
    hu = raw.voxels if raw.scale == (1.0, 0.0) else raw.voxels * np.float32(slope) + np.float32(intercept)
    stored = np.rint(hu.clip(np.iinfo(np.int16).min, np.iinfo(np.int16).max)).astype(np.int16)
    affine = _affine(raw)
    return nib.Nifti1Image(np.ascontiguousarray(geometry.from_lps(stored, affine)), affine)


def _affine(raw: RawVolume) -> np.ndarray:
    """The file's, or that of the upright volume where the file has none."""
    if raw.affine is not None:
        return raw.affine
    z, y, x = raw.spacing_mm or (1.0, 1.0, 1.0)
    return np.diag([-x, -y, z, 1.0])


def _with_raw(path: str | Path, use: Callable[[RawVolume], T]) -> T:
    """What `use` makes of the voxels at `path`."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}; a scan is {_KINDS}")
    try:
        record = file_record(path, _reader(path))
        return use(READERS[record.reader](record, path.parent))
    except Refusal as refusal:
        raise ValueError(f"{path} cannot be used: {told(refusal)}{_hint(path)}") from None
    except MemoryError:
        raise ValueError(f"{path} cannot be used: {REASONS['oom']}") from None


def _hint(path: Path) -> str:
    """For a folder of files that are scans themselves."""
    holds = path.is_dir() and any(file.name.lower().endswith((*READER_OF_SUFFIX, ".npz")) for file in path.rglob("*"))
    return "; it holds scans of other kinds: name one of these files, or give a tool the folder with --out" if holds else ""


def scan_of_array(
    voxels_hu: np.ndarray, preprocessing: Preprocessing, *, spacing_mm: tuple[float, float, float] | None = None
) -> Scan:
    """One scan of HU [z, y, x], +z superior, +y posterior, +x left; spacing_mm z, y, x.

    Raises:
        ValueError: it has not three axes, holds one number only or numbers that are not finite, or its air is not at -1000.
    """
    if voxels_hu.ndim != 3:
        raise ValueError(f"expected HU [z, y, x], found an array of shape {list(voxels_hu.shape)}")
    try:
        choose_hu_rescale(voxels_hu, None)
        return _scan(RawVolume(voxels_hu, spacing_mm, "already_hu"), preprocessing, "")
    except Refusal as refusal:
        raise ValueError(f"the array cannot be used: {told(refusal)}") from None


def told(refusal: Refusal) -> str:
    """Why a scan cannot be used, in words."""
    return REASONS[refusal.code] + (f" ({refusal.detail})" if refusal.detail else "")


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
        note=raw.note,
    )


def _reader(path: Path) -> str:
    if path.is_dir():
        return "dicom"
    found = reader_of(path)
    if found is None and path.name.lower().endswith(".npz"):
        found = _reader_of_arrays(path)
    if found is None and is_dicom(path):
        found = "dicom"
    if found is None:
        raise ValueError(f"{path} is not a format that is read here; expected {_KINDS}")
    return found


def _reader_of_arrays(path: Path) -> str:
    try:
        with np.load(path, allow_pickle=False) as held:
            names = list(held.files)
    except Exception:  # NumPy raises whatever a damaged archive leads to
        raise Refusal("array_damaged") from None
    found = next((reader for key, reader in _NPZ.items() if key in names), None)
    if found is None:
        raise Refusal("array_damaged", "expected an array `ct` (Rad-ChestCT) or `arr_0` (CT-CLIP)")
    return found


def file_record(path: Path, reader: str) -> VolumeRecord:
    """The record that a reader asks for, of one scan of which only its file is known."""
    return VolumeRecord(
        volume_id="scan", study_id="scan", patient_id="scan", dataset=DATASET, official_split="none", split="test",
        reconstruction=1, findings=None, impression=None, files=(path.name,), source="scan", reader=reader,
    )  # fmt: skip


def write_nifti(path: Path, image: nib.Nifti1Image) -> None:
    """Writes `.nii` or `.nii.gz`, whole or not at all.

    Raises:
        ValueError: another ending.
    """
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"{path}: expected a name that ends in .nii or .nii.gz")
    content = image.to_bytes()
    if path.name.endswith(".gz"):
        content = gzip.compress(content, compresslevel=3, mtime=0)
    write_bytes(path, content)
