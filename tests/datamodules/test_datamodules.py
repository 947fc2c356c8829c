import multiprocessing
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from small_arrow import SHAPE, small_tokenizer, write_split

from mg3d.datamodules import multitask
from mg3d.datamodules.ct_rate import CTRateDataModule
from mg3d.datamodules.ctrg import CTRGDataModule
from mg3d.datamodules.multitask import MultiTaskDataModule
from mg3d.datamodules.sampler import Stream, TrainBatchSampler, ValBatchSampler
from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.storage import Storage
from mg3d.datasets.studies import Studies
from mg3d.datasets.windowing import convert_volumes
from mg3d.settings.parse import parse
from mg3d.settings.presets import PRESETS
from mg3d.settings.schema import AugmentSettings
from mg3d.training.build import build_data

OPTIONS = {
    "shape": SHAPE, "window_hu": (-1000.0, 1000.0), "text_unit": "clause", "shuffle_pairs": False, "max_text_len": 64,
    "mim_patch_size": 4,
    "mim_mask_ratio": 0.5, "mlm_probability": 0.3, "sentence_views": 2, "negated_view_fraction": 0.25,
    "per_gpu_batchsize": 4, "num_workers": 0,
    "seed": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("arrows")
    write_split(root, "ct_rate", "train", patients=9, reconstructions=2)
    write_split(root, "ct_rate", "val", patients=5)
    write_split(root, "ctrg", "train", patients=3, unit="uint8_unknown_window")
    write_split(root, "ctrg", "val", patients=2, unit="uint8_unknown_window")
    return root


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer") / "words")


def test_every_study_comes_once_per_epoch_in_a_new_order():
    stream = Stream([5, 3], seed=1)
    epochs = [[stream[block * 8 + place] for place in range(8)] for block in range(3)]
    for draws in epochs:
        assert Counter((draw.dataset, draw.study) for draw in draws) == Counter(
            [(0, s) for s in range(5)] + [(1, s) for s in range(3)]
        )
    assert [draw.seed[1] for draw in epochs[2]] == [2] * 8
    assert len({tuple(draw[:2] for draw in draws) for draws in epochs}) == 3


def test_weights_give_the_share_of_the_draws_and_full_epochs_within_a_set():
    stream = Stream([30, 10], weights=(1, 1), seed=2)
    draws = [stream[position] for position in range(120)]
    assert Counter(draw.dataset for draw in draws) == {0: 60, 1: 60}
    assert Counter(draw.study for draw in draws if draw.dataset == 1) == dict.fromkeys(range(10), 6)
    assert Counter(draw.study for draw in draws if draw.dataset == 0) == dict.fromkeys(range(30), 2)


def test_any_number_of_ranks_sees_the_same_stream():
    stream = Stream([7, 4], seed=3)
    alone = list(islice(TrainBatchSampler(stream, batch_size=6, rank=0, world_size=1), 4))
    pair = [list(islice(TrainBatchSampler(stream, batch_size=3, rank=rank, world_size=2), 4)) for rank in (0, 1)]
    assert alone == [first + second for first, second in zip(*pair, strict=True)]
    later = TrainBatchSampler(stream, batch_size=6, rank=0, world_size=1, start=2)
    assert next(iter(later)) == alone[2]


def test_ranks_validate_equally_many_batches_without_overlap():
    ranks = [ValBatchSampler([9, 4], batch_size=2, rank=rank, world_size=3, seed=0) for rank in range(3)]
    assert [len(batches) for batches in ranks] == [2, 2, 2]
    seen = [draw[:2] for batches in ranks for batch in batches for draw in batch]
    assert len(set(seen)) == len(seen) == 12
    assert len(list(ValBatchSampler([2], batch_size=4, rank=0, world_size=2, seed=0))) == 1


@pytest.mark.parametrize(("sizes", "weights"), [([0], ()), ([3, 0], (1, 1)), ([3, 2], (0, 0)), ([3, 2], (-1, 2))])
def test_mixtures_that_cannot_be_are_refused(sizes, weights):
    with pytest.raises(ValueError, match=r"cannot be mixed|no study"):
        Stream(sizes, weights=weights, seed=0)


def test_a_mixture_gives_batches_of_both_sets(root, tokenizer):
    data = MultiTaskDataModule(
        storage=Storage(root), datasets=("ct_rate", "ctrg"), dataset_weights=(1, 1), tokenizer=tokenizer, **OPTIONS
    )
    names = [name.split("/")[0] for batch in islice(data.train_dataloader(), 6) for name in batch.study_id]
    assert Counter(names) == {"ct_rate": 12, "ctrg": 12}
    assert data.summary() == "ct_rate 9 studies to train and 5 to validate, ctrg 3 studies to train and 2 to validate"
    assert len(data.training_reports()) == 12
    assert len(data.training_reports(most=2)) == 4


def test_workers_change_nothing_and_a_run_can_go_on(root, tokenizer):
    options = {"storage": Storage(root), "datasets": ("ct_rate", "ctrg"), "dataset_weights": (), "tokenizer": tokenizer}
    plain = list(islice(MultiTaskDataModule(**options, **OPTIONS).train_dataloader(), 5))
    data = MultiTaskDataModule(**options, **OPTIONS | {"num_workers": 2})
    data.start_step = 3
    for one, other in zip(plain[3:], islice(data.train_dataloader(), 2), strict=True):
        assert one.study_id == other.study_id
        pairs = zip(convert_volumes(one), convert_volumes(other), strict=True)
        tensors = [(left, right) for left, right in pairs if torch.is_tensor(left)]
        assert len(tensors) > 10
        assert all(torch.equal(left, right) for left, right in tensors)


@pytest.mark.parametrize(("module", "dataset"), [(CTRateDataModule, "ct_rate"), (CTRGDataModule, "ctrg")])
def test_each_set_has_its_own_module(root, tokenizer, module, dataset):
    batch = next(iter(module(storage=Storage(root), tokenizer=tokenizer, **OPTIONS).val_dataloader()))
    assert all(name.startswith(f"{dataset}/val") for name in batch.study_id)
    assert np.isfinite(convert_volumes(batch).volume).all()


def test_one_empty_validation_split_leaves_the_other(tmp_path, tokenizer):
    for dataset, patients in (("ct_rate", 0), ("ctrg", 5)):
        write_split(tmp_path, dataset, "train", patients=4)
        write_split(tmp_path, dataset, "val", patients=patients)
    options = {"storage": Storage(tmp_path), "dataset_weights": (), "tokenizer": tokenizer}
    both = MultiTaskDataModule(datasets=("ct_rate", "ctrg"), **options, **OPTIONS)
    assert both.validates
    assert [name.split("/")[0] for batch in both.val_dataloader() for name in batch.study_id] == ["ctrg"] * 4
    assert not CTRateDataModule(storage=Storage(tmp_path), tokenizer=tokenizer, **OPTIONS).validates


def test_files_of_another_size_and_empty_splits_are_refused(root, tmp_path):
    other = {"datasets": ("ct_rate",), "dataset_weights": (), "tokenizer": None}
    with pytest.raises(ValueError, match=r"set volume_size='\[16,12,8\]'"):
        MultiTaskDataModule(storage=Storage(root), **other, **OPTIONS | {"shape": (32, 24, 32)})
    for split in ("train", "val"):
        write_split(tmp_path / "wide", "ct_rate", split, patients=2, shape=(16, 12, 16))
    with pytest.raises(ValueError, match="set image_size=16 or"):
        MultiTaskDataModule(storage=Storage(tmp_path / "wide"), **other, **OPTIONS)
    write_split(tmp_path, "ct_rate", "train", patients=0)
    write_split(tmp_path, "ct_rate", "val", patients=2)
    with pytest.raises(ValueError, match="has no volume"):
        MultiTaskDataModule(storage=Storage(tmp_path), **other, **OPTIONS)
    with pytest.raises(FileNotFoundError, match="prepro"):
        MultiTaskDataModule(storage=Storage(tmp_path / "nowhere"), **other, **OPTIONS)


@pytest.mark.parametrize(("preset", "pads"), [("mg3d", False), ("mg3d_intended", True), ("mg3d_released", True)])
def test_presets_whose_gates_count_padding_pad_every_report_to_the_same_length(tmp_path, tokenizer, preset, pads):
    for split in ("train", "val"):
        write_split(tmp_path, "ct_rate", split, patients=2, shape=(32, 24, 32))
    words = {
        "data_root": str(tmp_path),
        "datasets": ["ct_rate"],
        "image_size": 32,
        "patch_size": 4,
        "mim_patch_size": 8,
        "max_text_len": 64,
        "num_workers": 0,
    }
    settings = parse({**PRESETS["tiny"], **PRESETS[preset], **words})
    batch = next(iter(build_data(settings, tokenizer).val_dataloader()))
    longest = int(batch.attention_mask.sum(1).max())
    assert longest < 64
    assert batch.report_ids.shape[1] == (64 if pads else longest)


REPORTLESS = {"datasets": ("ct_rate",), "dataset_weights": (), "tokenizer": None}


def test_studies_without_a_report_are_left_out_where_objectives_read_reports(tmp_path):
    write_split(tmp_path, "ct_rate", "train", patients=6, reconstructions=2, reported=lambda number: number % 3 != 1)
    write_split(tmp_path, "ct_rate", "val", patients=2)
    reading = {"storage": Storage(tmp_path), **REPORTLESS, **OPTIONS}
    data = MultiTaskDataModule(**reading)
    (part,) = data.train_parts
    assert [part.sample(study).study_id for study in range(len(part))] == [f"ct_rate/train_{n}_0" for n in (0, 2, 3, 5)]
    assert part.rows(2).tolist() == [6, 7]
    assert "4 studies to train" in data.summary()
    assert "4 training volumes without a report left out" in data.summary()
    everything = MultiTaskDataModule(**reading, needs_reports=False)
    assert len(everything.train_parts[0]) == 6
    assert everything.train_parts[0].report(1) == ("", ())
    assert "left out" not in everything.summary()


def test_a_set_without_any_report_is_refused_unless_volumes_alone_are_learned_from(tmp_path, tokenizer):
    for split in ("train", "val"):
        write_split(tmp_path, "ct_rate", split, patients=4, reported=lambda number: False)
    reading = {"storage": Storage(tmp_path), **REPORTLESS, **OPTIONS}
    with pytest.raises(ValueError, match="has volumes but no report"):
        MultiTaskDataModule(**reading)
    data = MultiTaskDataModule(**reading | {"tokenizer": tokenizer}, needs_reports=False)
    batch = next(iter(data.train_dataloader()))
    assert batch.report_ids.tolist() == [[tokenizer.cls_token_id, tokenizer.sep_token_id]] * 4
    assert not batch.sentence_mask.any()
    assert (batch.mlm_labels == -100).all()


def one_row(part):
    """In a process of its own: sum of a volume, and whether pages of it would have to be copied to be written."""
    volume = part.sample(3).volume
    return int(volume.astype(np.int64).sum()), volume.flags.writeable


@pytest.mark.parametrize("way", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_studies_are_read_in_processes_however_they_are_started(tmp_path, way, compression):
    path = write_split(tmp_path, "ct_rate", "train", patients=5, compression=compression)
    part = Studies(VolumeIndex(path), text_unit="clause", window_hu=(-1000.0, 1000.0))
    expected = int(np.prod(SHAPE)) * -997
    assert one_row(part) == (expected, False)  # opened here before it is handed over
    with multiprocessing.get_context(way).Pool(2) as pool:
        assert pool.map(one_row, [part] * 3) == [(expected, False)] * 3


def test_a_loader_process_gives_its_batch_in_shared_memory(root, tokenizer):
    reading = {"storage": Storage(root), "datasets": ("ct_rate",), "dataset_weights": (), "tokenizer": tokenizer}
    batch = next(iter(MultiTaskDataModule(**reading, **OPTIONS | {"num_workers": 1}).train_dataloader()))
    assert batch.volume.voxels.is_shared()
    assert not next(iter(MultiTaskDataModule(**reading, **OPTIONS).train_dataloader())).volume.voxels.is_shared()


@pytest.mark.parametrize("ranks", [1, 2])
def test_changes_of_volumes_are_those_of_their_position_for_any_ranks_and_workers(root, tokenizer, ranks, monkeypatch):
    changes = AugmentSettings(augment_crop=(0.5, 0.9), augment_rotation_deg=10.0, augment_shift=0.1, augment_noise=0.1)
    reading = {"storage": Storage(root), "datasets": ("ct_rate", "ctrg"), "dataset_weights": (), "tokenizer": tokenizer}
    whole = MultiTaskDataModule(**reading, **OPTIONS, changes=changes)
    steps = [convert_volumes(batch) for batch in islice(whole.train_dataloader(), 3)]
    assert not torch.equal(convert_volumes(next(iter(whole.val_dataloader()))).volume, steps[0].volume)
    parts = []
    for rank in range(ranks):
        monkeypatch.setattr(multitask, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(multitask, "world_size", lambda: ranks)
        sized = OPTIONS | {"per_gpu_batchsize": 4 // ranks, "num_workers": ranks}
        data = MultiTaskDataModule(**reading, **sized, changes=changes)
        data.start_step = 1
        parts.append([convert_volumes(batch).volume for batch in islice(data.train_dataloader(), 2)])
    for step, pieces in zip(steps[1:], zip(*parts, strict=True), strict=True):
        assert torch.equal(torch.cat(pieces), step.volume)


def test_validation_volumes_are_never_changed(root, tokenizer):
    reading = {"storage": Storage(root), "datasets": ("ct_rate",), "dataset_weights": (), "tokenizer": tokenizer}
    data = MultiTaskDataModule(**reading, **OPTIONS, changes=AugmentSettings(augment_noise=0.5))
    assert next(iter(data.val_dataloader())).volume.noise.shape == (4, 0)
    assert next(iter(data.train_dataloader())).volume.noise.shape == (4, 1)
