"""What a downstream folder declares; everything else is the same for all of them."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from mg3d.finetune.cases import Case
from mg3d.finetune.settings import FinetuneSettings

Triple = tuple[float, float, float]
"""Along z, y, x."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How a scan becomes what the network sees; the same for training and evaluation. Sizes are voxels along z, y, x."""

    channel: int | None = None
    """Which of a file's several channels is used (its fourth axis); None = files hold one."""
    spacing_mm: Triple | None = None
    """Voxels are resampled to this; None = as they are."""
    window: tuple[float, float] | None = None
    """Values that become 0 and 1, clipped; None = mean 0 and deviation 1 over non-zero voxels."""
    foreground: bool = False
    """Crop to voxels above 0 after the window."""
    keep: Triple | None = None
    """Central share of each axis that is kept."""
    extent: tuple[int, int, int] | None = None
    """Crop or pad to this size, around the centre; padding takes the lowest value of the window."""
    extent_top: bool = False
    """`extent` along z from the superior end instead of around the centre."""
    size: tuple[int, int, int] | None = None
    """Resize to this."""
    patch: tuple[int, int, int] | None = None
    """Training patches and sliding windows of a segmentation, cubes around candidates."""
    crops: int = 1
    """Training patches of each case."""
    positive_share: float = 0.5
    """Share of training patches around a foreground voxel."""
    by_structure: bool = False
    """Such a patch chooses a structure first, so that small ones come as often as large ones; else any foreground voxel."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment:
    """Random changes of training volumes. Chances are per volume; along z, y, x where there are three."""

    flip: Triple = (0.0, 0.0, 0.0)
    """Chance of a mirror image along each axis."""
    rot90: float = 0.0
    """Chance of one to three quarter turns in the axial plane."""
    affine: float = 0.0
    """Chance of a rotation of at most `rotate_rad` and a scaling of at most `scale`."""
    rotate_rad: Triple = (0.0, 0.0, 0.0)
    """Largest rotation about the z, y and x axis."""
    scale: Triple = (0.0, 0.0, 0.0)
    """Largest change of size along each axis, as share."""
    zoom: float = 0.0
    """Chance of an enlargement by `zoom_range`."""
    zoom_range: tuple[float, float] = (1.0, 1.0)
    noise: float = 0.0
    """Chance of normal noise of deviation `noise_deviation`."""
    noise_deviation: float = 0.01
    intensity_scale: float = 0.0
    """Chance of intensities times 1 +- `intensity_factor`."""
    intensity_shift: float = 0.0
    """Chance of intensities +- `intensity_factor`."""
    intensity_factor: float = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A data set and what is to be learned from it."""

    folder: str
    """Name below `downstream/`."""
    title: str
    kind: Literal["classification", "segmentation", "candidates", "report", "labels", "probe", "prompts", "retrieval", "labeller"]
    read_cases: Callable[[Path, FinetuneSettings], list[Case]]
    """Cases of a data root as published; raises ValueError or FileNotFoundError with what is wrong."""
    outputs: tuple[str, ...]
    """Classes, labels, or the structures of label values 1, 2, ..."""
    exclusive: bool = False
    """Classification: exactly one of `outputs` is true."""
    among: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Classification: output -> the output among whose positives alone it is scored."""
    metric: str
    """The score that chooses the best epoch; larger is better."""
    preprocess: Preprocess = Preprocess()
    augment: Augment = Augment()
    loss: str = ""
    """Name of one of the kind's losses; empty = its first."""
    folds: int = 5
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of the published protocol."""
    phantom: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Settings and fields of `preprocess` on the synthetic set (`preprocess.size=...`)."""
    synthetic: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Own options of the synthetic set, see the modules of mg3d/phantom/downstream."""
    expected: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Published counts of `train` and `test` cases, `scans` of both, `candidates`; others are only warned of."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Own settings of the folder, name -> default."""
    stored: tuple[str, ...] = ()
    """Those of them that decide which cases are read; a prepared file keeps theirs."""
    variant: str = ""
    """Which of a folder's several data sets this is; results go into a folder of its own."""
    adapt: Callable[["Task", Mapping[str, Any]], "Task"] | None = None
    """The declaration that these options ask for; among them `data_root`, `pretrained` (or the file that `encoder` names) and
    `synthetic`, whether the set is."""
    original_axes: str = "RAS"
    """Order and directions of the array axes in the original's code, for `axes=original`."""
    negatives: float = 1.0
    """Negative candidates that an epoch draws for each positive one."""
    background: bool = True
    """Segmentation: the loss counts what is outside of every structure as one more structure."""
    top_first: bool = False
    """Scans are pictures from the top of the chest down, in the order of the numbers in their names; of reports also such a stack
    in a NIfTI file whose header says nothing of it."""
    tolerance_mm: float = 2.0
    """Surface distance that counts as none."""
    mask_name: Callable[[str], str] = "{}.nii.gz".format
    """Name of a case -> name of its predicted mask's file."""

    @property
    def name(self) -> str:
        """Folder and variant, as a path of results."""
        return f"{self.folder}/{self.variant}" if self.variant else self.folder
