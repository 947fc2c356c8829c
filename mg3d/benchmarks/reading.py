"""Batches of prepared volumes, against a plain copy of the same bytes and against MONAI on the raw files."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from monai.data import DataLoader as MonaiLoader
from monai.data import Dataset as MonaiDataset
from torch.utils.data import DataLoader, Dataset

from mg3d.benchmarks.preparation import monai_chain, write_phantom
from mg3d.benchmarks.timing import BenchmarkOptions, BenchmarkRow, compare
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
from mg3d.sentence_spans import build_report
from mg3d.settings.schema import volume_shape
from mg3d.types import Sample

WINDOW_HU = (-1000.0, 1000.0)
BATCH = 8
EPOCHS = 8
"""Passes over the data per measurement; starting a DataLoader takes as long as copying a few volumes."""


class Sizes(NamedTuple):
    """Sizes of the measured data."""

    shape: tuple[int, int, int]
    volumes: int
    raw_shape: tuple[int, int, int]
    """z, y, x."""
    raw_volumes: int
    rounds: int
    has_targets: bool
    """Reading small volumes takes longer than copying them."""


FULL = Sizes(volume_shape(128), 96, (256, 512, 512), 3, 7, True)
QUICK = Sizes((32, 24, 32), 16, (40, 48, 48), 2, 1, False)


class VoxelDataset(Dataset[Sample]):
    """Volumes without text."""

    def __init__(self, studies: Studies) -> None:
        self.index = studies.index

    def __getitem__(self, index: DrawIndex) -> Sample:
        return Sample(self.index.volume(index.study)[None], WINDOW_HU, "", (), np.empty(0), "", "", index.seed)


def run(options: BenchmarkOptions) -> list[BenchmarkRow]:
    """Write 300 MB to a temporary folder; two minutes, without `quick`."""
    sizes = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory() as folder:
        return [*_against_copy(Path(folder), sizes), _against_monai(Path(folder), sizes)]


def _against_copy(root: Path, sizes: Sizes) -> list[BenchmarkRow]:
    rng = np.random.default_rng(0)
    volumes = random_volumes(sizes.shape, sizes.volumes)
    studies = write_studies(root / "arrow", volumes)
    np.save(root / "volumes.npy", np.stack(volumes))
    mapped = np.load(root / "volumes.npy", mmap_mode="r")
    order = np.concatenate([rng.permutation(sizes.volumes) for _ in range(EPOCHS)]).reshape(-1, BATCH)

    def copy() -> None:
        for rows in order:
            np.stack([mapped[row] for row in rows])

    baseline = ("np.memmap, one copy per batch", copy)
    voxels = ("DataLoader, voxels only, in process", _read_all(VoxelDataset(studies), order, stack_volumes))
    whole = ("DataLoader, whole batch, in process", _read_all(MixtureDataset([studies]), order, make_collator(root, studies)))
    target = 0.7 if sizes.has_targets else None
    return [
        compare("batches of voxels", voxels, baseline, rounds=sizes.rounds, target=target),
        compare("batches with text", whole, baseline, rounds=sizes.rounds),
    ]


def _against_monai(root: Path, sizes: Sizes) -> BenchmarkRow:
    paths = [write_phantom(root / f"{number}.nii.gz", sizes.raw_shape, number) for number in range(sizes.raw_volumes)]
    raw = MonaiDataset(paths, monai_chain(sizes.raw_shape, sizes.shape, WINDOW_HU, (0.0, 1.0)))
    low, high = WINDOW_HU
    upright = [np.asarray(volume[0]).transpose(2, 1, 0) * (high - low) + low for volume in raw]
    studies = write_studies(root / "from_raw", [np.round(volume).astype(np.int16) for volume in upright])
    collator, order = make_collator(root, studies), np.arange(len(paths))[None]
    ours = convert_volumes(next(iter(make_loader(MixtureDataset([studies]), order, collator)))).volume.numpy()
    theirs = next(iter(MonaiLoader(raw, batch_size=len(paths)))).numpy().transpose(0, 1, 4, 3, 2)
    megabytes = sum(path.stat().st_size for path in paths) / len(paths) / 1e6
    return compare(
        "batches against raw files",
        ("DataLoader, whole batch as float", _read_all(MixtureDataset([studies]), order, collator, then=convert_volumes)),
        (f"MONAI, .nii.gz of {megabytes:.0f} MB", lambda: list(MonaiLoader(raw, batch_size=len(paths)))),
        rounds=min(sizes.rounds, 2),
        target=20 if sizes.has_targets else None,
        note=f"largest difference {np.abs(ours - theirs).max():.5f} (0.00025 from rounding to HU)",
    )


def _read_all(
    data: Dataset[Sample], order: np.ndarray, collate: Callable[[Any], Any], then: Callable[[Any], Any] = id
) -> Callable[[], None]:
    loader = make_loader(data, order, collate)

    def work() -> None:
        for batch in loader:
            then(batch)

    return work


def make_loader(data: Dataset[Sample], order: np.ndarray, collate: Callable[[Any], Any], workers: int = 0) -> DataLoader[Any]:
    """A loader of the rows int [batches, rows] in this order."""
    batches = [[DrawIndex(0, int(row), (0, 0, int(row))) for row in rows] for rows in order]
    return DataLoader(data, batch_sampler=batches, collate_fn=collate, num_workers=workers)


def random_volumes(shape: Sequence[int], count: int) -> list[np.ndarray]:
    """Noise, int16 HU."""
    rng = np.random.default_rng(2)
    return [rng.integers(-1000, 1000, shape).astype(np.int16) for _ in range(count)]


def write_studies(root: Path, volumes: Sequence[np.ndarray]) -> Studies:
    """Arrow files of these volumes, one study and patient each."""
    shape, shard = volumes[0].shape, "shards/ct_rate/shard-00000.arrow"
    schema = shard_schema(shape, "hu")
    # fsync before mapping: pages still to be written would slow down the reader
    with replacing(root / shard) as stream, pa.ipc.new_file(stream, schema) as writer:
        for row, volume in enumerate(volumes):
            writer.write_batch(volume_batch(f"volume_{row}", volume, schema))
    table = pa.Table.from_pylist([_index_row(row, shard) for row in range(len(volumes))], schema=INDEX_SCHEMA)
    table = table.replace_schema_metadata(encode_metadata({"shape": list(shape)}))
    path = index_path(root, "ct_rate", "train")
    with replacing(path) as stream, pa.ipc.new_file(stream, table.schema) as writer:
        writer.write_table(table)
    return Studies(VolumeIndex(path), text_unit="clause", window_hu=WINDOW_HU)


def _index_row(row: int, shard: str) -> dict[str, Any]:
    nodules = " ".join(f"There is a nodule of {(row + k) % 20 + 3} mm in segment {k}, without calcification." for k in range(12))
    findings = f"The heart and the mediastinal vessels are of normal size. No pleural effusion was seen. {nodules}"
    report, spans = build_report(findings, "Nodules.")
    values = {
        "volume_id": f"volume_{row}", "study_id": f"study_{row}", "patient_id": f"patient_{row}", "report": report,
        "sentence_spans": [span._asdict() for span in spans], "labels": [0] * len(LABELS), "shard": shard, "shard_row": row,
        "intensity_unit": "hu", "source_shape": [1, 1, 1],
    }  # fmt: skip
    empty = {field.name: "" if field.type == pa.string() else 0 for field in INDEX_SCHEMA if not field.nullable}
    return empty | values


def make_collator(root: Path, studies: Studies) -> Collator:
    """The collator of pre-training, with a tokenizer of these reports in `root`."""
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
