import json

import numpy as np
import pandas as pd
import pytest
import torch
from downstream.folders import load
from monai.transforms import Compose

from mg3d.finetune.cases import Candidate, Case, Finding
from mg3d.finetune.kinds.candidates import Candidates, Cubes, RecentScans, Scan, cut_cube, drawn_by_scan
from mg3d.finetune.pipeline import TicketSampler, random_steps
from mg3d.finetune.run import run
from mg3d.finetune.settings import FinetuneSettings

SMALL = ["run_name=r", "epochs=1", "accelerator=cpu", "n_bootstrap=5"]


@pytest.fixture(scope="module")
def luna(tiny_set):
    return tiny_set("Luna16")


def read(root, **given):
    return load("Luna16").read_cases(root, FinetuneSettings(**given))


def kind(*, patch=(8, 8, 8), **given):
    import dataclasses

    task = load("Luna16").TASK
    return Candidates(
        dataclasses.replace(task, preprocess=dataclasses.replace(task.preprocess, patch=patch)), FinetuneSettings(**given)
    )


def test_a_candidate_on_a_nodule_is_dense_at_the_middle_of_its_cube_in_scans_of_either_direction(luna):
    """The synthetic scans number 2 and 6 are written with x and y running to the right and the front."""
    cases = read(luna)
    flipped = [case for case in cases if "-1 0 0 0 -1 0" in case.image.read_text()]
    assert 0 < len(flipped) < len(cases)
    data = kind(patch=(3, 3, 3)).evaluation_data(cases)
    for number in range(len(data)):
        sample = data[number]
        if sample["target"] == 1:
            assert sample["image"].max() > 0.45, sample["case_id"]  # -280 HU of -1000 to 600; lung is about 0.1


def test_a_cube_lies_where_its_voxel_is_and_is_shifted_inwards_at_borders():
    voxels = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7)
    scan = Scan(voxels, np.diag([-1.0, -2.0, 1.0, 1.0]))
    middle = cut_cube(scan, (2.1, 5.9, 4.2), (2, 2, 3))  # LPS, spacing 1, 2, 1: the voxel (2, 3, 4)
    assert middle[0].tolist() == voxels[1:3, 2:4, 3:6].tolist()
    assert cut_cube(scan, (0, 0, 0), (2, 2, 3))[0].tolist() == voxels[:2, :2, :3].tolist()
    assert cut_cube(scan, (4, 10, 6), (2, 2, 3))[0].tolist() == voxels[3:, 4:, 4:].tolist()
    with pytest.raises(ValueError, match=r"at \(-200.0, 0.0, 0.0\) mm lies outside its scan of \[5, 6, 7\]"):
        cut_cube(scan, (-200, 0, 0), (2, 2, 3))


@pytest.mark.parametrize("patch", [(4, 6, 8), (3, 90, 5)])
@pytest.mark.parametrize("axes", ["ours", "original"])
def test_cubes_cut_from_the_file_equal_those_of_a_prepared_scan(luna, monkeypatch, patch, axes):
    """The second patch is wider than the scans, which are padded."""
    made = kind(patch=patch, axes=axes)
    assert made._is_native()
    native = made.evaluation_data(read(luna))
    monkeypatch.setattr(Candidates, "_is_native", lambda self: False)
    prepared = made.evaluation_data(read(luna))
    for number in range(0, len(native), 5):
        assert torch.equal(native[number]["image"], prepared[number]["image"]), number


def test_loader_processes_may_be_started_anew(luna):
    import pickle

    data = kind().evaluation_data(read(luna))
    assert torch.equal(pickle.loads(pickle.dumps(data))[3]["image"], data[3]["image"])


def test_resampling_moves_no_candidate(luna):
    import dataclasses

    task = load("Luna16").TASK
    steps = dataclasses.replace(task.preprocess, spacing_mm=(3.0, 3.0, 3.0), patch=(3, 3, 3))
    data = Candidates(dataclasses.replace(task, preprocess=steps), FinetuneSettings()).evaluation_data(read(luna))
    nodules = [sample for sample in map(data.__getitem__, range(len(data))) if sample["target"] == 1]
    assert min(sample["image"].max() for sample in nodules) > 0.4


def test_an_epoch_draws_all_positives_as_many_negatives_and_each_scan_once():
    scan_of = np.repeat(np.arange(6), 10)
    targets = np.tile([1, 0, 0, 0, 0, 0, 0, 0, 0, 1], 6)
    draw = drawn_by_scan(targets, scan_of, negatives=2)
    rows = draw(np.random.default_rng(0))
    assert sorted(rows[targets[rows] == 1]) == np.flatnonzero(targets).tolist()
    assert (targets[rows] == 0).sum() == 24
    assert len(set(rows)) == 36
    assert (np.diff(scan_of[rows]) != 0).sum() == 5
    assert set(rows) != set(draw(np.random.default_rng(1)))


def test_too_few_negatives_are_all_drawn():
    assert len(drawn_by_scan(np.array([1, 1, 0]), np.zeros(3, int), negatives=5)(np.random.default_rng(0))) == 3


def test_a_scan_is_read_once_in_an_epoch_and_memory_is_bounded():
    asked = []

    def scan(number):
        asked.append(number)
        return Scan(np.zeros((10, 10, 10), np.float32), np.eye(4))

    scans = RecentScans(scan, most_bytes=9000)  # two of 4000 bytes
    for number in (0, 0, 1, 0, 2, 0, 1):
        scans[number]
    assert asked == [0, 1, 2, 1]
    assert list(scans.held) == [0, 1]
    assert list(RecentScans(scan, most_bytes=0).held) == []


def test_training_reads_each_scan_once_an_epoch(luna, monkeypatch):
    data, draw = kind(cache="none").training_data(read(luna))
    asked, load_scan = [], data.scans.read
    monkeypatch.setattr(data.scans, "read", lambda number: asked.append(number) or load_scan(number))
    for ticket in TicketSampler(draw, count=len(data)):
        data[ticket]
    assert len(asked) == len(set(asked)) > 5


def table(rows, findings):
    """rows: (scan, place, x, score, target)."""
    made = pd.DataFrame(rows, columns=["case_id", "place", "x_mm", "score/nodule", "target/nodule"])
    made["patient_id"], made["y_mm"], made["z_mm"] = made["case_id"], 0.0, 0.0
    made["findings"] = [json.dumps(findings[row[0]]) if row[1] <= 0 else "" for row in rows]
    return made


FINDINGS = {"a": [[[0, 0, 0], 10, False], [[50, 0, 0], 4, True]], "b": [[[0, 0, 0], 10, False]]}
ROWS = [("a", 0, 1.0, 0.9, 1), ("a", 1, 51.0, 0.8, 0), ("a", 2, 90.0, 0.7, 0), ("b", 0, 99.0, 0.6, 0), ("b", 1, 4.0, 0.5, 1)]


def test_the_cpm_of_a_table_is_as_by_hand():
    """One false positive a scan before the second nodule is found; half are found without any; the excluded one counts nothing.

    Points (false positives per scan, sensitivity): (0, 1/2), (1/2, 1/2), (1, 1).
    """
    found = kind().statistics(table(ROWS, FINDINGS))
    assert [found[f"sensitivity@{rate}"] for rate in ("0.125", "0.25", "0.5", "1", "8")] == [0.5, 0.5, 0.5, 1, 1]
    assert found["cpm"] == pytest.approx((3 * 0.5 + 4) / 7)
    assert found["auroc"] == pytest.approx(3 / 6)
    counts = [int(kind().rests_on(table(ROWS, FINDINGS), name).sum()) for name in ("auroc", "cpm", "sensitivity@1")]
    assert counts == [5, 2, 2]  # candidates; scans


def test_a_scan_drawn_twice_counts_twice():
    once = table(ROWS, FINDINGS)
    assert kind().statistics(once.iloc[[0, 1, 2, 0, 1, 2, 3, 4, 3, 4]]) == pytest.approx(kind().statistics(once))
    assert kind().statistics(once.iloc[[0, 1, 2, 0, 1, 2]])["cpm"] == 1


def test_nodules_of_a_scan_without_a_candidate_are_missed(luna):
    found = kind().statistics(table([*ROWS[:3], ("b", -1, np.nan, np.nan, -1)], FINDINGS))
    assert found["sensitivity@8"] == 0.5
    assert found["auroc"] == 1
    import dataclasses

    bare = [dataclasses.replace(case, candidates=()) for case in read(luna)[:2]]
    data = kind().evaluation_data(bare)
    assert [(data[n]["place"], data[n]["target"].tolist()) for n in range(len(data))] == [(-1, [-1]), (-1, [-1])]


def test_without_nodules_there_is_no_cpm():
    found = kind().statistics(table(ROWS, {"a": [], "b": []}))
    assert np.isnan(found["cpm"])
    assert found["auroc"] == pytest.approx(3 / 6)


def test_folds_are_the_subsets_and_the_original_division_is_its_own(luna):
    assert {case.fold for case in read(luna)} == {int(case.image.parent.name[-1]) for case in read(luna)}
    assert all(f"subset{case.fold}" == case.image.parent.name for case in read(luna))
    original = {case.image.parent.name[-1]: (case.part, case.fold) for case in read(luna, split="original")}
    assert original["4"] == ("train", 1)
    assert original["6"] == ("train", 0)
    assert original["7"][0] == "test"
    with pytest.raises(ValueError, match="one division"):
        read(luna, split="original", fold=2)


def test_the_two_lists_differ(luna):
    module = load("Luna16")
    counts = [
        sum(len(case.candidates) for case in module.read_cases(luna, FinetuneSettings(), candidates=v)) for v in ("V1", "V2")
    ]
    assert 0 < counts[0] < counts[1]


@pytest.fixture(scope="module")
def trained(luna, tmp_path_factory):
    """A run of one fold."""
    results = tmp_path_factory.mktemp("results")
    assert run(load("Luna16").TASK, [f"data_root={luna}", f"log_dir={results}", *SMALL]) == 0
    return results / "Luna16" / "r" / "fold0"


def test_a_run_leaves_candidates_and_nodules_in_its_table(luna, trained):
    folder, words = trained, [f"data_root={luna}", f"log_dir={trained.parents[2]}", *SMALL]
    found = pd.read_csv(folder / "predictions_val.csv")
    cases = [case for case in read(luna) if case.fold == 0]
    assert len(found) == sum(len(case.candidates) for case in cases)
    names = {score["name"] for score in json.loads((folder / "scores.json").read_text())["scores"]["val"]}
    assert names >= {"auroc", "cpm", "sensitivity@8"}
    before = (folder / "predictions_val.csv").read_text()
    assert run(load("Luna16").TASK, [*words, "mode=evaluate"]) == 0
    assert (folder / "predictions_val.csv").read_text() == before


def test_new_scans_are_predicted_at_the_places_of_a_list(luna, trained, tmp_path):
    case = next(case for case in read(luna) if case.fold == 0)
    scans = tmp_path / "in"
    scans.mkdir()
    for file in (case.image, case.image.with_suffix(".raw")):
        (scans / file.name).symlink_to(file)
    words = [f"data_root={luna}", "mode=predict", f"input={scans}", f"output={tmp_path / 'out'}", "accelerator=cpu"]
    words.append(f"checkpoint={trained / 'checkpoints' / 'best.ckpt'}")
    assert run(load("Luna16").TASK, words) == 2
    pd.read_csv(luna / "candidates_V2.csv").query("seriesuid == @case.case_id").to_csv(scans / "candidates.csv", index=False)
    assert run(load("Luna16").TASK, words) == 0
    mine = pd.read_csv(tmp_path / "out" / "predictions.csv", dtype={"case_id": str})
    theirs = pd.read_csv(trained / "predictions_val.csv", dtype={"case_id": str}).query("case_id == @case.case_id")
    assert len(mine) == len(case.candidates)
    assert np.allclose(mine["score/nodule"], theirs["score/nodule"], atol=1e-6)


def spoiled(root, tmp_path, name, change):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    change(copy / name)
    return copy


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("annotations.csv", lambda path: path.unlink(), "there is no .*annotations.csv"),
        ("candidates_V2.csv", lambda path: path.write_text("a,b\n1,2\n"), "lacks the columns .*seriesuid"),
        ("candidates_V2.csv", lambda path: path.write_text(path.read_text() + "2.25.1,x,0,0,1\n"), "1 rows hold no number"),
        ("candidates_V2.csv", lambda path: path.write_text(path.read_text() + "2.25.1,0,0,0,7\n"), "has the classes"),
        (".", lambda path: [folder.rename(folder.with_name("x" + folder.name)) for folder in path.glob("subset*")], "no subset0"),
    ],
)
def test_bad_tables_are_one_sentence(luna, tmp_path, name, change, told):
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        read(spoiled(luna, tmp_path, name, change))


@pytest.mark.parametrize("words", [["candidates=V3"], ["negatives=0"], ["negatives=many"]])
def test_bad_options_are_one_sentence(luna, capsys, words):
    assert run(load("Luna16").TASK, [f"data_root={luna}", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_candidates_of_one_class_are_refused():
    case = Case(
        case_id="a", patient_id="a", image="x", candidates=(Candidate((0, 0, 0), 0),), findings=(Finding((0, 0, 0), 5, False),)
    )
    with pytest.raises(ValueError, match=r"classes \[0\]; both 0 and 1"):
        kind().check([case])
    assert len(Cubes([case], lambda case: case, finish=lambda cube: cube, sides=(2, 2, 2))) == 1


@pytest.mark.parametrize("axes", ["SPL", "LPS"])
def test_random_changes_stay_in_the_plane_of_the_slices(axes):
    changes = random_steps(load("Luna16").TASK.augment, keys=["image"], axes=axes)
    compose, sides, place = Compose(changes), {"S": 5, "P": 12, "L": 12}, axes.index("S")
    along_z = torch.arange(5.0).reshape([-1 if letter == "S" else 1 for letter in axes])
    varied = torch.rand([sides[letter] for letter in axes], generator=torch.Generator().manual_seed(0))
    for seed in range(8):
        compose.set_random_state(seed=seed)
        kept = compose({"image": along_z.expand([sides[letter] for letter in axes])[None].clone()})["image"][0]
        torch.testing.assert_close(
            kept.movedim(place, 0).flatten(1), torch.arange(5.0)[:, None].expand(5, 144), atol=1e-4, rtol=0
        )
    compose.set_random_state(seed=1)
    assert not torch.equal(compose({"image": varied[None].clone()})["image"][0], varied)
