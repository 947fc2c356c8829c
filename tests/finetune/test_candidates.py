import dataclasses
import json
import pickle
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from downstream.folders import load
from monai.data import MetaTensor
from monai.transforms import Compose

from mg3d.finetune import dataset, loop
from mg3d.finetune.cases import Candidate, FinetuneCase, Split
from mg3d.finetune.dataset import EpochSampler
from mg3d.finetune.run import run
from mg3d.finetune.tasks.candidates import cut_cube, drawn_by_scan

MODULE = load("Luna16")
SMALL = ["run_name=r", "epochs=1", "accelerator=cpu", "n_bootstrap=5"]


@pytest.fixture(scope="module")
def luna(tiny_set):
    return tiny_set("Luna16")


def read(root, **overrides):
    return MODULE.read_cases(root, MODULE.TASK.settings(**overrides))


def task_type(**overrides):
    return MODULE.build(MODULE.TASK.settings(**{"cube_size": (8, 8, 8), **overrides}))


def test_cubes_of_positive_candidates_are_centred_on_the_nodule_for_both_orientations(luna):
    """The synthetic scans number 2 and 6 are written with x and y running to the right and the front."""
    cases = read(luna)
    flipped = [case for case in cases if "-1 0 0 0 -1 0" in case.image.read_text()]
    assert 0 < len(flipped) < len(cases)
    data = task_type(cube_size=(3, 3, 3)).evaluation_data(cases)
    for number in range(len(data)):
        sample = data[number]
        if sample["target"] == 1:
            assert sample["image"].max() > 0.45, sample["case_id"]  # -280 HU of -1000 to 600; lung is about 0.1


def test_a_cube_is_cut_around_its_voxel_and_shifted_inwards_at_borders():
    voxels = torch.arange(5 * 6 * 7.0).reshape(1, 5, 6, 7)
    scan = MetaTensor(voxels, affine=torch.diag(torch.tensor([-1.0, -2.0, 1.0, 1.0])))
    middle = cut_cube(scan, (2.1, 5.9, 4.2), (2, 2, 3))  # LPS, spacing 1, 2, 1: the voxel (2, 3, 4)
    assert torch.equal(middle, voxels[:, 1:3, 2:4, 3:6])
    assert torch.equal(cut_cube(scan, (0, 0, 0), (2, 2, 3)), voxels[:, :2, :2, :3])
    assert torch.equal(cut_cube(scan, (4, 10, 6), (2, 2, 3)), voxels[:, 3:, 4:, 4:])
    with pytest.raises(ValueError, match=r"at \(-200.0, 0.0, 0.0\) mm is outside its scan of \[5, 6, 7\]"):
        cut_cube(scan, (-200, 0, 0), (2, 2, 3))


def test_scans_smaller_than_a_cube_are_padded_with_their_minimum(luna):
    sample = task_type(cube_size=(3, 90, 5)).evaluation_data(read(luna))[0]
    assert tuple(sample["image"].shape) == (1, 3, 90, 5)
    assert sample["image"].min() == 0


def test_the_data_set_can_be_pickled_into_workers(luna):
    data = task_type().evaluation_data(read(luna))
    assert torch.equal(pickle.loads(pickle.dumps(data))[3]["image"], data[3]["image"])


def test_an_epoch_draws_all_positives_with_negatives_and_visits_each_scan_once():
    scan_of = np.repeat(np.arange(6), 10)
    targets = np.tile([1, 0, 0, 0, 0, 0, 0, 0, 0, 1], 6)
    draw = drawn_by_scan(targets, scan_of, negatives=2)
    rows = draw(torch.Generator().manual_seed(0)).numpy()
    assert sorted(rows[targets[rows] == 1]) == np.flatnonzero(targets).tolist()
    assert (targets[rows] == 0).sum() == 24
    assert len(set(rows)) == 36
    assert (np.diff(scan_of[rows]) != 0).sum() == 5
    assert set(rows) != set(draw(torch.Generator().manual_seed(1)).tolist())
    assert len(drawn_by_scan(np.array([1, 1, 0]), np.zeros(3, int), negatives=5)(torch.Generator())) == 3  # all there are


def test_training_reads_each_scan_once_an_epoch(luna, monkeypatch):
    data, draw = task_type().training_data(read(luna))
    read_scans, read_scan = [], data._read
    monkeypatch.setattr(data, "_read", lambda index: read_scans.append(index) or read_scan(index))
    for draw_index in EpochSampler(draw, count=len(data)):
        data[draw_index]
    assert len(read_scans) == len(set(read_scans)) > 5


@pytest.mark.parametrize(("workers", "ranks"), [(0, 1), (2, 1), (3, 1), (1, 2), (2, 2)])
def test_evaluation_reads_nearly_every_scan_in_one_process_only(luna, monkeypatch, workers, ranks):
    """Batches were dealt out round-robin, so every worker read nearly every scan."""
    kind, cases = task_type(batch_size=4, num_workers=workers), read(luna)
    sampler = loop.evaluation_loader(kind, cases).sampler
    monkeypatch.setattr(dataset, "world_size", lambda: ranks)
    readers, seen = {}, []
    for rank in range(ranks):
        monkeypatch.setattr(dataset, "rank", lambda rank=rank: rank)
        rows = list(sampler)
        seen += rows
        for index, row in enumerate(rows):
            scan = kind.evaluation_data(cases).scan_of[row]
            readers.setdefault(scan, set()).add((rank, index // 4 % max(workers, 1)))
    assert set(seen) == set(range(sampler.count))
    processes = max(workers, 1) * ranks
    assert sum(map(len, readers.values())) <= len(readers) + 2 * (processes - 1)  # at most the scans at a border are read twice


def table(rows, nodules):
    """rows: (scan, candidate, x, score, target)."""
    made = pd.DataFrame(rows, columns=["case_id", "candidate", "x_mm", "score/nodule", "target/nodule"])
    made["patient_id"], made["y_mm"], made["z_mm"] = made["case_id"], 0.0, 0.0
    made["nodules"] = [json.dumps(nodules[row[0]]) if row[1] <= 0 else "" for row in rows]
    return made


NODULES = {"a": [[[0, 0, 0], 10, False], [[50, 0, 0], 4, True]], "b": [[[0, 0, 0], 10, False]]}
ROWS = [("a", 0, 1.0, 0.9, 1), ("a", 1, 51.0, 0.8, 0), ("a", 2, 90.0, 0.7, 0), ("b", 0, 99.0, 0.6, 0), ("b", 1, 4.0, 0.5, 1)]


def test_cpm_by_hand():
    """One false positive a scan before the second nodule is found; half are found without any; the excluded one counts nothing.

    Points (false positives per scan, sensitivity): (0, 1/2), (1/2, 1/2), (1, 1).
    """
    result = task_type().statistics(table(ROWS, NODULES))
    assert [result[f"sensitivity@{rate}"] for rate in ("0.125", "0.25", "0.5", "1", "8")] == [0.5, 0.5, 0.5, 1, 1]
    assert result["cpm"] == pytest.approx((3 * 0.5 + 4) / 7)
    assert result["auroc"] == pytest.approx(3 / 6)
    counts = [int(task_type().support_mask(table(ROWS, NODULES), name).sum()) for name in ("auroc", "cpm", "sensitivity@1")]
    assert counts == [5, 2, 2]  # candidates; scans


def test_a_scan_resampled_twice_counts_twice():
    once = table(ROWS, NODULES)
    assert task_type().statistics(once.iloc[[0, 1, 2, 0, 1, 2, 3, 4, 3, 4]]) == pytest.approx(task_type().statistics(once))
    assert task_type().statistics(once.iloc[[0, 1, 2, 0, 1, 2]])["cpm"] == 1


def test_nodules_of_a_scan_without_a_candidate_are_missed(luna):
    result = task_type().statistics(table([*ROWS[:3], ("b", -1, np.nan, np.nan, -1)], NODULES))
    assert result["sensitivity@8"] == 0.5
    assert result["auroc"] == 1
    bare = [dataclasses.replace(case, candidates=()) for case in read(luna)[:2]]
    data = task_type().evaluation_data(bare)
    assert [(data[n]["candidate"], data[n]["target"].tolist()) for n in range(len(data))] == [(-1, [-1]), (-1, [-1])]


def test_without_nodules_there_is_no_cpm():
    result = task_type().statistics(table(ROWS, {"a": [], "b": []}))
    assert np.isnan(result["cpm"])
    assert result["auroc"] == pytest.approx(3 / 6)


def test_settings_select_the_list_of_candidates_and_the_folds(luna):
    counts = [sum(len(case.candidates) for case in read(luna, candidates=version)) for version in ("V1", "V2")]
    assert 0 < counts[0] < counts[1]
    assert all(f"subset{case.fold}" == case.image.parent.name for case in read(luna))
    published = {case.image.parent.name[-1]: (case.split, case.fold) for case in read(luna, division="published")}
    assert published["4"] == ("train", 1)
    assert published["6"] == ("train", 0)
    assert published["7"][0] == "test"
    with pytest.raises(ValueError, match="one division"):
        read(luna, division="published", fold=2)


@pytest.fixture(scope="module")
def trained(luna, tmp_path_factory):
    """A run of one fold."""
    results = tmp_path_factory.mktemp("results")
    assert run(MODULE.TASK, [f"data_root={luna}", f"log_dir={results}", *SMALL]) == 0
    return results / "Luna16" / "r" / "fold0"


def test_a_run_leaves_candidates_and_nodules_in_its_table(luna, trained):
    folder, arguments = trained, [f"data_root={luna}", f"log_dir={trained.parents[2]}", *SMALL]
    result = pd.read_csv(folder / "predictions_val.csv")
    cases = [case for case in read(luna) if case.fold == 0]
    assert len(result) == sum(len(case.candidates) for case in cases)
    names = {score["name"] for score in json.loads((folder / "scores.json").read_text())["scores"]["val"]}
    assert names >= {"auroc", "cpm", "sensitivity@8"}
    before = (folder / "predictions_val.csv").read_text()
    assert run(MODULE.TASK, [*arguments, "mode=evaluate"]) == 0
    assert (folder / "predictions_val.csv").read_text() == before


def test_new_scans_are_predicted_at_listed_candidates(luna, trained, tmp_path):
    case = next(case for case in read(luna) if case.fold == 0)
    scans = tmp_path / "in"
    scans.mkdir()
    for file in (case.image, case.image.with_suffix(".raw")):
        (scans / file.name).symlink_to(file)
    arguments = [f"data_root={luna}", "mode=predict", f"input={scans}", f"output={tmp_path / 'out'}", "accelerator=cpu"]
    arguments.append(f"checkpoint={trained / 'checkpoints' / 'best.ckpt'}")
    assert run(MODULE.TASK, arguments) == 2
    pd.read_csv(luna / "candidates_V2.csv").query("seriesuid == @case.case_id").to_csv(scans / "candidates.csv", index=False)
    assert run(MODULE.TASK, arguments) == 0
    predicted = pd.read_csv(tmp_path / "out" / "predictions.csv", dtype={"case_id": str})
    evaluated = pd.read_csv(trained / "predictions_val.csv", dtype={"case_id": str}).query("case_id == @case.case_id")
    assert len(predicted) == len(case.candidates)
    assert np.allclose(predicted["score/nodule"], evaluated["score/nodule"], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("annotations.csv", lambda path: path.unlink(), "there is no .*annotations.csv"),
        ("candidates_V2.csv", lambda path: path.write_text("a,b\n1,2\n"), "lacks the columns .*seriesuid"),
        (
            "candidates_V2.csv",
            lambda path: path.write_text(path.read_text() + "2.25.1,x,0,0,1\n"),
            "1 rows have a value that is not a number",
        ),
        ("candidates_V2.csv", lambda path: path.write_text(path.read_text() + "2.25.1,0,0,0,7\n"), "has the classes"),
        (".", lambda path: [folder.rename(folder.with_name("x" + folder.name)) for folder in path.glob("subset*")], "no subset0"),
    ],
)
def test_bad_tables_are_refused(luna, tmp_path, name, change, message):
    copy = shutil.copytree(luna, tmp_path / "copy")
    change(copy / name)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read(copy)


def test_candidates_of_one_class_are_refused():
    case = FinetuneCase(case_id="a", patient_id="a", image="x", candidates=(Candidate((0, 0, 0), 0),))
    with pytest.raises(ValueError, match=r"classes \[0\]; both 0 and 1 are needed"):
        task_type().setup(Split([case], [], []), {})


def test_augmentation_stays_in_the_axial_plane():
    compose, along_z = Compose(task_type().augment), torch.arange(5.0)[None, :, None, None]
    varied = torch.rand([1, 5, 12, 12], generator=torch.Generator().manual_seed(0))
    for seed in range(8):
        compose.set_random_state(seed=seed)
        augmented = compose({"image": along_z.expand(1, 5, 12, 12).clone()})["image"]
        torch.testing.assert_close(torch.as_tensor(augmented), along_z.expand(1, 5, 12, 12), atol=1e-4, rtol=0)
    compose.set_random_state(seed=1)
    assert not torch.equal(compose({"image": varied.clone()})["image"], varied)
