"""How fast prepared volumes become batches, beside a bare copy of the same bytes and beside MONAI over the raw files."""

import re
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pyarrow as pa
import torch
from monai import transforms as mt
from monai.data import DataLoader as MonaiLoader
from monai.data import Dataset as MonaiDataset
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from mg3d.benchmarks.timing import Comparison, Options, compare
from mg3d.datamodules.base import MixtureDataset
from mg3d.datamodules.sampler import DrawIndex
from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.collate import Collator
from mg3d.datasets.schema import INDEX_SCHEMA, encode_metadata, index_path, shard_schema, volume_batch
from mg3d.datasets.studies import Studies
from mg3d.datasets.tokenizer import train_wordpiece
from mg3d.datasets.windowing import convert_volumes, stack_volumes
from mg3d.files import replacing
from mg3d.glossary import LABELS
from mg3d.sentence_spans import report_units
from mg3d.settings.schema import CROP, volume_shape
from mg3d.types import Batch, Sample

WINDOW_HU = (-1000.0, 1000.0)
BATCH = 8
EPOCHS = 8
ROWS = (500, 50_188)
"""Volumes of a small set and of CT-RATE."""


class Sizes(NamedTuple):
    """What is measured on."""

    shape: tuple[int, int, int]
    volumes: int
    raw_shape: tuple[int, int, int]
    """x, y, z."""
    raw_volumes: int
    rounds: int
    loader_batches: int
    """Batches after which a loader process is weighed."""
    has_goals: bool
    """Small volumes take longer to find than to copy."""


FULL = Sizes(volume_shape(128), 96, (512, 512, 256), 3, 7, 150, True)
QUICK = Sizes((32, 24, 32), 16, (48, 48, 40), 2, 1, 10, False)


class Voxels(Dataset[Sample]):
    """Volumes without their text."""

    def __init__(self, studies: Studies) -> None:
        self.index = studies.index

    def __getitem__(self, draw: DrawIndex) -> Sample:
        return Sample(self.index.volume(draw.study)[None], WINDOW_HU, "", (), np.empty(0), "", "", draw.seed)


def run(options: Options) -> list[Comparison]:
    """The comparisons; some 300 MB and two minutes without `options.quick`."""
    sizes = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        return [*_beside_a_copy(root, sizes), _beside_monai(root, sizes)]


def _beside_a_copy(root: Path, sizes: Sizes) -> list[Comparison]:
    rng = np.random.default_rng(0)
    studies = prepare(root / "many", [rng.integers(*WINDOW_HU, sizes.shape).astype(np.int16) for _ in range(sizes.volumes)])
    stored = np.lib.format.open_memmap(root / "flat.npy", mode="w+", dtype=np.int16, shape=(sizes.volumes, *sizes.shape))
    for row in range(sizes.volumes):
        stored[row] = studies.index.volume(row)
    stored.flush()
    flat = np.load(root / "flat.npy", mmap_mode="r")
    # Several epochs a pass, for making the loader's iterator takes as long as copying some volumes, and a training makes one.
    order = np.concatenate([rng.permutation(sizes.volumes) for _ in range(EPOCHS)]).reshape(-1, BATCH)
    collator = make_collator(root, studies)

    def copy() -> None:
        for places in order:
            batch = np.empty((BATCH, 1, *sizes.shape), np.int16)
            for place, row in zip(batch, places):
                np.copyto(place[0], flat[row])

    bare = ("np.memmap, one copy of each volume into a new array per batch", copy)
    voxels = ("DataLoader, voxels and windows, 1 process", _passing(Voxels(studies), order, stack_volumes))
    everything = ("DataLoader, whole Batch with text, 1 process", _passing(MixtureDataset([studies]), order, collator))
    tokens = _share_of_tokens(studies, collator)
    return [
        compare(
            "batches of voxels",
            voxels,
            bare,
            rounds=sizes.rounds,
            goal=0.9 if sizes.has_goals else None,
            note=_memory(root, sizes),
        ),
        compare("batches with text", everything, bare, rounds=sizes.rounds, note=f"tokenising {tokens:.2f} ms a report"),
    ]


def _beside_monai(root: Path, sizes: Sizes) -> Comparison:
    paths = [_write_raw(root / f"{number}.nii.gz", sizes.raw_shape, number) for number in range(sizes.raw_volumes)]
    depth, height, width = sizes.shape
    steps = [
        mt.LoadImage(image_only=True, ensure_channel_first=True),
        mt.Orientation(axcodes="LPS", labels=None),
        mt.ScaleIntensityRange(*WINDOW_HU, 0.0, 1.0, clip=True),
        mt.CenterSpatialCrop([round(side * share) for side, share in zip(sizes.raw_shape, CROP[::-1])]),
        mt.Resize((width, height, depth)),
    ]
    raw = MonaiDataset(paths, mt.Compose(steps))
    upright = [np.asarray(volume[0]).transpose(2, 1, 0) * 2000 - 1000 for volume in raw]
    studies = prepare(root / "few", [np.round(volume).astype(np.int16) for volume in upright])
    collator, order = make_collator(root, studies), np.arange(len(paths))[None]
    ours = convert_volumes(next(iter(make_loader(MixtureDataset([studies]), order, collator)))).volume.numpy()
    theirs = next(iter(MonaiLoader(raw, batch_size=len(paths)))).numpy().transpose(0, 1, 4, 3, 2)
    size = sum(path.stat().st_size for path in paths) / len(paths) / 1e6
    raw_size = f"{'x'.join(map(str, sizes.raw_shape))} .nii.gz of {size:.0f} MB"
    return compare(
        "batches beside raw files",
        ("DataLoader, whole Batch, float", _passing(MixtureDataset([studies]), order, collator, then=convert_volumes)),
        (f"MONAI, {raw_size}", lambda: list(MonaiLoader(raw, batch_size=len(paths)))),
        rounds=min(sizes.rounds, 2),
        goal=20 if sizes.has_goals else None,
        note=f"largest difference {np.abs(ours - theirs).max():.5f} (stored as whole HU: 0.00025)",
    )


def _passing(
    data: Dataset[Sample], order: np.ndarray, collate: Callable[[Any], Any], then: Callable[[Any], Any] = id
) -> Callable[[], None]:
    loader = make_loader(data, order, collate)

    def work() -> None:
        for batch in loader:
            then(batch)

    return work


def make_loader(data: Dataset[Sample], order: np.ndarray, collate: Callable[[Any], Any], workers: int = 0) -> DataLoader[Any]:
    """A loader of the rows int [batches, rows], in this order."""
    batches = [[DrawIndex(0, int(row), (0, 0, int(row))) for row in rows] for rows in order]
    return DataLoader(data, batch_sampler=batches, collate_fn=collate, num_workers=workers)


def _share_of_tokens(studies: Studies, collator: Collator) -> float:
    """Milliseconds a report."""
    samples = [studies.sample(study) for study in range(len(studies))]
    began = time.perf_counter()
    for sample in samples:
        collator.encode(sample)
    return (time.perf_counter() - began) / len(samples) * 1e3


class Weighing:
    """A collator that also tells what memory its process has to itself."""

    def __init__(self, collator: Collator) -> None:
        self.collator = collator

    def __call__(self, samples: Sequence[Sample]) -> tuple[Batch, int]:
        """(batch, private bytes): pages that no other process has and that are no copy of a file."""
        batch, rollup = self.collator(samples), Path("/proc/self/smaps_rollup").read_text()
        return batch, int(re.search(r"Private_Dirty:\s+(\d+) kB", rollup)[1]) * 1024


def _memory(root: Path, sizes: Sizes) -> str:
    """Private memory of a loader process over a few and over many rows, whose voxels are a few volumes again and again."""
    told = []
    for rows in ROWS:
        studies = prepare(root / f"rows{rows}", noise(sizes.shape, 12), rows=rows)
        order = np.random.default_rng(1).integers(0, rows, (sizes.loader_batches, BATCH))
        weighing = Weighing(make_collator(root, studies))
        weighed = [size for _, size in make_loader(MixtureDataset([studies]), order, weighing, workers=1)]
        told.append(f"{weighed[-1] / 1e6:.0f} MB over {rows:,} rows")
    return f"private memory of a loader process {' and '.join(told)}"


def noise(shape: Sequence[int], count: int) -> list[np.ndarray]:
    """`count` volumes, int16 HU."""
    rng = np.random.default_rng(2)
    return [rng.integers(-1000, 1000, shape).astype(np.int16) for _ in range(count)]


def _write_raw(path: Path, shape: tuple[int, int, int], seed: int) -> Path:
    """A smooth body with the noise of a scan, int16 HU."""
    coarse = torch.rand(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(seed)) * 1400 - 1100
    smooth = F.interpolate(coarse, size=shape, mode="trilinear")[0, 0].numpy()
    smooth += np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) * 15
    nib.save(nib.Nifti1Image(smooth.astype(np.int16), np.diag([-0.7, -0.7, 1.2, 1.0])), path)
    return path


def _report(number: int) -> tuple[str, str]:
    found = " ".join(f"There is a nodule of {(number + k) % 20 + 3} mm in segment {k}, without calcification." for k in range(12))
    return f"The heart and the mediastinal vessels are of normal size. No pleural effusion was seen. {found}", "Nodules."


def prepare(root: Path, volumes: Sequence[np.ndarray], *, rows: int | None = None) -> Studies:
    """A set of these volumes, each with a study and patient of its own; with `rows`, of so many, the volumes again and again."""
    shape, shard = volumes[0].shape, "shards/ct_rate/shard-00000.arrow"
    schema = shard_schema(shape, "hu")
    with replacing(root / shard) as stream, pa.ipc.new_file(stream, schema) as writer:
        for number, volume in enumerate(volumes):
            writer.write_batch(volume_batch(f"volume_{number}", volume, schema))
    table = pa.Table.from_pylist([_row(number, shard) for number in range(len(volumes))], schema=INDEX_SCHEMA)
    table = table.take(np.arange(rows or len(volumes)) % len(volumes))
    for name in ("study_id", "patient_id"):
        place = table.schema.get_field_index(name)
        table = table.set_column(place, INDEX_SCHEMA.field(name), pa.array([f"{name}_{row}" for row in range(len(table))]))
    table = table.replace_schema_metadata(encode_metadata({"shape": list(shape)}))
    path = index_path(root, "ct_rate", "train")
    # On disk before it is mapped: pages still to be written would count as the reader's own.
    with replacing(path) as stream, pa.ipc.new_file(stream, table.schema) as writer:
        writer.write_table(table)
    return Studies(VolumeIndex(path), text_unit="clause", window_hu=WINDOW_HU)


def _row(number: int, shard: str) -> dict[str, Any]:
    findings, impression = _report(number)
    report, units = report_units(findings, impression)
    known = {"volume_id": f"volume_{number}", "report": report, "sentence_spans": [unit._asdict() for unit in units]}
    known |= {"labels": [0] * len(LABELS), "shard": shard, "shard_row": number, "intensity_unit": "hu", "source_shape": [1, 1, 1]}
    nothing = {field.name: "" if field.type == pa.string() else 0 for field in INDEX_SCHEMA if not field.nullable}
    return nothing | known


def make_collator(root: Path, studies: Studies) -> Collator:
    """The collator of pre-training, with a tokenizer of these reports kept below `root`."""
    texts = (studies.report(study).report for study in range(min(len(studies), 100)))
    return Collator(
        train_wordpiece(texts, vocab_size=1500, out_dir=root / "tokenizer"),
        max_text_len=250,
        mim_patch_size=8,
        mim_mask_ratio=0.5,
        mlm_probability=0.15,
        sentence_views=2,
        negated_view_fraction=0.25,
    )
