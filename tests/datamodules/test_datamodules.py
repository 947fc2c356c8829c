import multiprocessing
from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from small_arrow import COLLATOR, SHAPE, small_tokenizer, write_split

from mg3d.datamodules import base
from mg3d.datamodules.base import LoaderOptions, StudyOptions
from mg3d.datamodules.ct_rate import CTRateDataModule
from mg3d.datamodules.ctrg import CTRGDataModule
from mg3d.datamodules.multitask import DATA_MODULES, MultiTaskDataModule
from mg3d.datamodules.sampler import MixtureSequence, TrainBatchSampler, ValBatchSampler
from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.storage import Storage
from mg3d.datasets.studies import Studies
from mg3d.datasets.windowing import convert_volumes
from mg3d.settings.parse import parse
from mg3d.settings.presets import PRESETS
from mg3d.settings.schema import AugmentSettings
from mg3d.training.build import build_data

STUDIES = StudyOptions(shape=SHAPE, window_hu=(-1000.0, 1000.0), text_unit="clause")
LOADER = LoaderOptions(batch_size=4, num_workers=0, seed=0, collator=COLLATOR)
BOTH = (CTRateDataModule, CTRGDataModule)


def mixture(root, tokenizer=None, *, modules=BOTH, weights=(), studies=STUDIES, **changes):
    parts = [module(Storage(root), studies, replace(LOADER, **changes)) for module in modules]
    return MultiTaskDataModule(parts, weights=weights, tokenizer=tokenizer)


def single(root, tokenizer=None, *, needs_reports=True, **changes):
    studies = replace(STUDIES, needs_reports=needs_reports)
    return CTRateDataModule(Storage(root), studies, replace(LOADER, **changes), tokenizer)


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


def test_every_study_occurs_once_per_epoch_in_a_new_order():
    sequence = MixtureSequence([5, 3], seed=1)
    epochs = [[sequence[block * 8 + position] for position in range(8)] for block in range(3)]
    for draws in epochs:
        assert Counter(draw[:2] for draw in draws) == Counter([(0, s) for s in range(5)] + [(1, s) for s in range(3)])
    assert [draw.seed[1] for draw in epochs[2]] == [2] * 8
    assert len({tuple(draw[:2] for draw in draws) for draws in epochs}) == 3


def test_weights_set_the_fraction_of_draws_with_full_epochs_in_each_data_set():
    sequence = MixtureSequence([30, 10], weights=(1, 1), seed=2)
    draws = [sequence[position] for position in range(120)]
    assert Counter(draw.dataset for draw in draws) == {0: 60, 1: 60}
    assert Counter(draw.study for draw in draws if draw.dataset == 1) == dict.fromkeys(range(10), 6)
    assert Counter(draw.study for draw in draws if draw.dataset == 0) == dict.fromkeys(range(30), 2)


def test_the_sequence_is_the_same_for_any_number_of_ranks():
    sequence = MixtureSequence([7, 4], seed=3)
    alone = list(islice(TrainBatchSampler(sequence, batch_size=6, rank=0, world_size=1), 4))
    pair = [list(islice(TrainBatchSampler(sequence, batch_size=3, rank=rank, world_size=2), 4)) for rank in (0, 1)]
    assert alone == [first + second for first, second in zip(*pair, strict=True)]
    assert next(iter(TrainBatchSampler(sequence, batch_size=6, rank=0, world_size=1, start=2))) == alone[2]


def test_ranks_validate_equally_many_batches_without_overlap():
    ranks = [ValBatchSampler([9, 4], batch_size=2, rank=rank, world_size=3, seed=0) for rank in range(3)]
    assert [len(batches) for batches in ranks] == [2, 2, 2]
    seen = [draw[:2] for batches in ranks for batch in batches for draw in batch]
    assert len(set(seen)) == len(seen) == 12
    assert len(list(ValBatchSampler([2], batch_size=4, rank=0, world_size=2, seed=0))) == 1


@pytest.mark.parametrize(("sizes", "weights"), [([0], ()), ([3, 0], (1, 1)), ([3, 2], (0, 0)), ([3, 2], (-1, 2))])
def test_impossible_mixtures_are_refused(sizes, weights):
    with pytest.raises(ValueError, match=r"cannot be mixed|no studies"):
        MixtureSequence(sizes, weights=weights, seed=0)


def test_a_mixture_loads_batches_of_both_data_sets(root, tokenizer):
    data = mixture(root, tokenizer, weights=(1, 1))
    names = [name.split("/")[0] for batch in islice(data.train_dataloader(), 6) for name in batch.study_id]
    assert Counter(names) == {"ct_rate": 12, "ctrg": 12}
    assert data.summary() == "ct_rate: 9 training and 5 validation studies, ctrg: 3 training and 2 validation studies"
    assert len(data.training_reports()) == 12
    assert len(data.training_reports(most=2)) == 4
    assert len(list(data.training_volumes(most=4))) == 4


def test_training_mixes_the_data_modules_of_the_setting_datasets(tmp_path):
    for name in DATA_MODULES:
        for split, patients in (("train", 3), ("val", 1)):
            write_split(tmp_path, name, split, patients=patients, shape=(32, 24, 32))
    sizes = {"image_size": 32, "patch_size": 4, "mim_patch_size": 8}
    settings = parse({**PRESETS["tiny"], **sizes, "data_root": str(tmp_path), "datasets": list(DATA_MODULES)})
    data = build_data(settings)
    assert data.names == tuple(DATA_MODULES)
    assert [part.index.path.name for part in data.train_parts] == [
        "clm_ct_rate_train.arrow", "clm_chest_ctrg_train.arrow", "clm_rad_chestct_train.arrow", "clm_custom_train.arrow"
    ]  # fmt: skip


def test_batches_do_not_depend_on_workers_and_a_run_can_be_resumed(root, tokenizer):
    reference = list(islice(mixture(root, tokenizer).train_dataloader(), 5))
    data = mixture(root, tokenizer, num_workers=2)
    data.start_step = 3
    for one, other in zip(reference[3:], islice(data.train_dataloader(), 2), strict=True):
        assert one.study_id == other.study_id
        pairs = zip(convert_volumes(one), convert_volumes(other), strict=True)
        tensors = [(left, right) for left, right in pairs if torch.is_tensor(left)]
        assert len(tensors) > 10
        assert all(torch.equal(left, right) for left, right in tensors)


@pytest.mark.parametrize("module", BOTH)
def test_each_data_set_can_be_used_alone(root, tokenizer, module):
    data = module(Storage(root), STUDIES, LOADER, tokenizer)
    for split, loader in (("train", data.train_dataloader()), ("val", data.val_dataloader())):
        batch = next(iter(loader))
        assert all(name.startswith(f"{module.dataset}/{split}") for name in batch.study_id)
        assert np.isfinite(convert_volumes(batch).volume).all()


def test_one_data_set_may_have_no_validation_studies(tmp_path, tokenizer):
    for dataset, patients in (("ct_rate", 0), ("ctrg", 5)):
        write_split(tmp_path, dataset, "train", patients=4)
        write_split(tmp_path, dataset, "val", patients=patients)
    both = mixture(tmp_path, tokenizer)
    assert both.validates
    assert [name.split("/")[0] for batch in both.val_dataloader() for name in batch.study_id] == ["ctrg"] * 4
    assert not single(tmp_path).validates


def test_missing_files_other_sizes_and_empty_splits_are_refused(root, tmp_path):
    def read(root, shape=SHAPE):
        CTRateDataModule(Storage(root), replace(STUDIES, shape=shape), LOADER)

    with pytest.raises(ValueError, match=r"Set volume_size='\[16,12,8\]'"):
        read(root, shape=(32, 24, 32))
    for split in ("train", "val"):
        write_split(tmp_path / "wide", "ct_rate", split, patients=2, shape=(16, 12, 16))
    with pytest.raises(ValueError, match="Set image_size=16 or"):
        read(tmp_path / "wide")
    write_split(tmp_path, "ct_rate", "train", patients=0)
    write_split(tmp_path, "ct_rate", "val", patients=2)
    with pytest.raises(ValueError, match="has no volumes"):
        read(tmp_path)
    with pytest.raises(FileNotFoundError, match="prepro"):
        read(tmp_path / "nowhere")


@pytest.mark.parametrize(("preset", "pads"), [("mg3d", False), ("mg3d_intended", True), ("mg3d_released", True)])
def test_presets_whose_gates_count_padding_pad_every_report_to_the_same_length(tmp_path, tokenizer, preset, pads):
    for split in ("train", "val"):
        write_split(tmp_path, "ct_rate", split, patients=2, shape=(32, 24, 32))
    values = {
        "data_root": str(tmp_path), "datasets": ["ct_rate"], "image_size": 32, "patch_size": 4, "mim_patch_size": 8,
        "max_text_len": 64, "num_workers": 0,
    }  # fmt: skip
    settings = parse({**PRESETS["tiny"], **PRESETS[preset], **values})
    batch = next(iter(build_data(settings, tokenizer).val_dataloader()))
    longest = int(batch.attention_mask.sum(1).max())
    assert longest < 64
    assert batch.report_ids.shape[1] == (64 if pads else longest)


def test_studies_without_a_report_are_excluded_if_objectives_need_reports(tmp_path):
    write_split(tmp_path, "ct_rate", "train", patients=6, reconstructions=2, reported=lambda number: number % 3 != 1)
    write_split(tmp_path, "ct_rate", "val", patients=2)
    data = single(tmp_path)
    (part,) = data.train_parts
    assert [part.sample(study).study_id for study in range(len(part))] == [f"ct_rate/train_{n}_0" for n in (0, 2, 3, 5)]
    assert part.rows(2).tolist() == [6, 7]
    assert "4 training and" in data.summary()
    assert "(4 training volumes without a report excluded)" in data.summary()
    volumes_only = single(tmp_path, needs_reports=False)
    assert len(volumes_only.train_parts[0]) == 6
    assert volumes_only.train_parts[0].report(1) == ("", ())
    assert "excluded" not in volumes_only.summary()


def test_a_data_set_without_reports_is_refused_unless_objectives_need_volumes_only(tmp_path, tokenizer):
    for split in ("train", "val"):
        write_split(tmp_path, "ct_rate", split, patients=4, reported=lambda number: False)
    with pytest.raises(ValueError, match="has volumes but no reports"):
        single(tmp_path)
    batch = next(iter(single(tmp_path, tokenizer, needs_reports=False).train_dataloader()))
    assert batch.report_ids.tolist() == [[tokenizer.cls_token_id, tokenizer.sep_token_id]] * 4
    assert not batch.sentence_mask.any()
    assert (batch.mlm_labels == -100).all()


def test_several_ranks_have_batches_of_one_number_of_sentences(tmp_path, tokenizer, monkeypatch):
    for split in ("train", "val"):
        write_split(tmp_path, "ct_rate", split, patients=9)
    data = single(tmp_path, tokenizer)
    studies = (*data.train_parts, *data.val_parts)
    most = max(len(part.report(study).sentence_spans) for part in studies for study in range(len(part)))
    assert max(part.max_sentences for part in studies) == most
    alone = [batch.sentence_mask.shape[1] for batch in islice(data.train_dataloader(), 6)]
    monkeypatch.setattr(base, "world_size", lambda: 2)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert {batch.sentence_mask.shape[1] for batch in islice(loader, 6)} == {most}
    assert max(alone) <= most


def sum_of_volume(studies):
    """Run in a worker: (sum of a volume, whether it is writable)."""
    volume = studies.sample(3).volume
    return int(volume.astype(np.int64).sum()), volume.flags.writeable


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_studies_can_be_read_in_forked_and_spawned_workers(tmp_path, method, compression):
    path = write_split(tmp_path, "ct_rate", "train", patients=5, compression=compression)
    studies = Studies(VolumeIndex(path), text_unit="clause", window_hu=(-1000.0, 1000.0))
    expected = int(np.prod(SHAPE)) * -997
    assert sum_of_volume(studies) == (expected, False)  # opened here before it is passed on
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(sum_of_volume, [studies] * 3) == [(expected, False)] * 3


@pytest.mark.parametrize("ranks", [1, 2])
def test_augmentations_depend_on_the_position_only(root, tokenizer, ranks, monkeypatch):
    augmentation = AugmentSettings(augment_crop=(0.5, 0.9), augment_rotation_deg=10.0, augment_shift=0.1, augment_noise=0.1)
    whole = mixture(root, tokenizer, augmentation=augmentation)
    steps = [convert_volumes(batch) for batch in islice(whole.train_dataloader(), 3)]
    parts = []
    for rank in range(ranks):
        monkeypatch.setattr(base, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(base, "world_size", lambda: ranks)
        data = mixture(root, tokenizer, augmentation=augmentation, batch_size=4 // ranks, num_workers=ranks)
        data.start_step = 1
        parts.append([convert_volumes(batch).volume for batch in islice(data.train_dataloader(), 2)])
    for step, pieces in zip(steps[1:], zip(*parts, strict=True), strict=True):
        assert torch.equal(torch.cat(pieces), step.volume)


def test_validation_volumes_are_never_augmented(root, tokenizer):
    data = single(root, tokenizer, augmentation=AugmentSettings(augment_noise=0.5))
    assert next(iter(data.val_dataloader())).volume.noise.shape == (4, 0)
    assert next(iter(data.train_dataloader())).volume.noise.shape == (4, 1)
