"""Name of a reader, as a volume record has it -> the function."""

from collections.abc import Callable
from pathlib import Path

from mg3d.preparation.readers.nifti import read_ct
from mg3d.preparation.readers.slices import read_slices
from mg3d.preparation.records import RawVolume, VolumeRecord

READERS: dict[str, Callable[[VolumeRecord, Path], RawVolume]] = {"nifti": read_ct, "slices": read_slices}
"""Each takes a record and the data set's root and raises `Refusal` for a volume that cannot be used."""
