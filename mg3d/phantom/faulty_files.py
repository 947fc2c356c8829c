"""Faults of volume files. Each writes the file anew from its seed, so that planting it once more changes nothing."""

import gzip
from collections.abc import Sequence

import nibabel as nib
import numpy as np

from mg3d.files import write_bytes
from mg3d.phantom import ct_rate
from mg3d.phantom.generate import Study
from mg3d.phantom.site import Site

PROMISED = (20_000, 20_000, 2_000)
"""Voxels along x, y, z of which the header of a zip bomb tells."""
PAYLOAD_BYTES = 64 << 20
"""What it holds, all zeros."""
NONSENSE_MM = 400.0


def missing_file(site: Site, victims: Sequence[Study]) -> list[str]:
    """The patient's folder and all tables know the volume; its file is not there."""
    name, _ = site.first_volume(victims[0])
    site.only_path(name).unlink(missing_ok=True)
    return [name]


def truncated_gzip(site: Site, victims: Sequence[Study]) -> list[str]:
    """The second half of the file is missing."""
    name, volume = site.first_volume(victims[0])
    path = site.only_path(name)
    ct_rate.write_fixed(path, volume, site.voxel_mm(victims[0]))
    content = path.read_bytes()
    write_bytes(path, content[: len(content) // 2])
    return [name]


def not_3d(site: Site, victims: Sequence[Study]) -> list[str]:
    """A single slice."""
    name, volume = site.first_volume(victims[0])
    _write(site, victims[0], name, volume[len(volume) // 2].T)
    return [name]


def four_d(site: Site, victims: Sequence[Study]) -> list[str]:
    """Two volumes in one file."""
    name, volume = site.first_volume(victims[0])
    _write(site, victims[0], name, np.stack([volume.transpose(2, 1, 0)] * 2, axis=-1))
    return [name]


def rgb(site: Site, victims: Sequence[Study]) -> list[str]:
    """Three colours per voxel, as a picture of a scan has."""
    name, volume = site.first_volume(victims[0])
    grey = (np.clip((volume.transpose(2, 1, 0).astype(np.float32) + 1000) / 2000, 0, 1) * 255).astype(np.uint8)
    colours = np.zeros(grey.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    for colour in "RGB":
        colours[colour] = grey
    _write(site, victims[0], name, colours)
    return [name]


def lying_header(site: Site, victims: Sequence[Study]) -> list[str]:
    """The header tells of slices 400 mm apart."""
    name, volume = site.first_volume(victims[0])
    spacing = site.voxel_mm(victims[0])
    image = nib.Nifti1Image(np.ascontiguousarray(volume.transpose(2, 1, 0)), np.diag([-spacing, -spacing, NONSENSE_MM, 1.0]))
    ct_rate.write_whole(site.only_path(name), image)
    return [name]


def zip_bomb(site: Site, victims: Sequence[Study]) -> list[str]:
    """A file of some ten thousand bytes whose header promises 1.6 TB, and that unpacks to 64 MB of zeros."""
    name, _ = site.first_volume(victims[0])
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(PROMISED)
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    zeros = gzip.compress(bytes(PAYLOAD_BYTES // 16), mtime=0)
    write_bytes(site.only_path(name), gzip.compress(header.binaryblock + bytes(4), mtime=0) + zeros * 16)
    return [name]


def unreadable(site: Site, victims: Sequence[Study]) -> list[str]:
    """Nobody may read the file (who may do everything still can)."""
    name, volume = site.first_volume(victims[0])
    path = site.only_path(name)
    ct_rate.write_fixed(path, volume, site.voxel_mm(victims[0]))
    path.chmod(0)
    return [name]


def padding_8192(site: Site, victims: Sequence[Study]) -> list[str]:
    """In the first release's tree: blank header, raw values, and padding of -8192 HU outside the round field of view."""
    name, volume = site.first_volume(victims[0])
    ct_rate.write_raw(site.only_path(name, fixed=False), volume, -8192)
    site.set_cells("metadata", {name: {"RescaleIntercept": -8192}})
    return [name]


def fixed_in_raw_tree(site: Site, victims: Sequence[Study]) -> list[str]:
    """A volume in HU with a true header lies in the first release's tree, where the intercept would be applied once more."""
    name, volume = site.first_volume(victims[0])
    ct_rate.write_fixed(site.only_path(name, fixed=False), volume, site.voxel_mm(victims[0]))
    return [name]


def head_scan(site: Site, victims: Sequence[Study]) -> list[str]:
    """A head in the place of a chest, not on the list of volumes without a chest."""
    return [write_head(site, victims[0])]


def no_chest_listed(site: Site, victims: Sequence[Study]) -> list[str]:
    """Heads that are on that list, as whole paths of somebody else's disk."""
    heads = [write_head(site, victim) for victim in victims]
    paths = [ct_rate.volume_path(site.dataset, name, fixed=False).relative_to(site.dataset) for name in heads]
    lines = "".join(f"/data/ct_rate/dataset/{path.as_posix()}\n" for path in paths)
    write_bytes(site.dataset / "metadata" / "no_chest_train.txt", lines.encode())
    return heads


def write_head(site: Site, study: Study) -> str:
    """Writes a head in the place of a study's first volume, whose name it returns."""
    name, volume = site.first_volume(study)
    spacing = site.voxel_mm(study)
    ct_rate.write_fixed(site.only_path(name), head_hu(volume.shape, spacing, np.random.default_rng([*study.words, 96])), spacing)
    return name


def head_hu(shape: tuple[int, int, int], voxel_mm: float, generator: np.random.Generator) -> np.ndarray:
    """int16 HU [z, y, x] of a head: an ellipsoid shell of skin, one of bone, and brain inside; air around."""
    z, y, x = np.meshgrid(*((np.arange(side) - (side - 1) / 2) * voxel_mm for side in shape), indexing="ij")
    volume = generator.normal(0, 10, shape) - 1000
    for hu, radii in ((40, (110, 98, 80)), (1000, (104, 92, 74)), (35, (92, 80, 62))):
        inside = (z / radii[0]) ** 2 + (y / radii[1]) ** 2 + (x / radii[2]) ** 2 < 1
        volume[inside] = hu + generator.normal(0, 10, int(inside.sum()))
    return np.rint(volume).astype(np.int16)


def _write(site: Site, study: Study, name: str, stored: np.ndarray) -> None:
    spacing = site.voxel_mm(study)
    image = nib.Nifti1Image(np.ascontiguousarray(stored), np.diag([-spacing, -spacing, spacing, 1.0]))
    ct_rate.write_whole(site.only_path(name), image)
