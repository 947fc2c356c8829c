"""Several runs in one folder at a time."""

import json
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from small_raw import CtRateTree

from mg3d.datasets.schema import index_path
from mg3d.preparation import locks, run
from mg3d.preparation.engines import local_engine
from mg3d.preparation.progress import new_tally
from mg3d.preparation.recipe import Recipe
from mg3d.preparation.run import PrepareOptions, prepare
from mg3d.preparation.shards import PlanChangedError

ROOT = Path(__file__).parents[2]


def options(root, out, **more):
    return PrepareOptions(out=out, roots={"ct_rate": root}, **{"image_size": 32, "val_patients": 1, "shard_rows": 2, **more})


def content(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.fixture
def held(tmp_path):
    """Gives a shard to a living process that does nothing; call to let go."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])

    def hold(out, number):
        lock = out / "shards" / "ct_rate" / f"shard-{number:05d}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.write_text(json.dumps(locks.Holder(locks._host(), process.pid, locks._started(process.pid))._asdict()))
        return process

    yield hold
    process.kill()
    process.wait()


def recording(order):
    inner = local_engine(1, new_tally(multiprocessing.get_context("spawn")))

    def engine(work, tasks):
        order.extend(int(task.path.stem[-5:]) for task in tasks)
        yield from inner(work, tasks)

    return engine


def test_a_worker_begins_with_its_share_and_helps_with_the_rest(small_tree, tmp_path):
    root = small_tree.write()
    orders = {}
    for place in range(3):
        order = orders[place] = []
        prepare(options(root, tmp_path / f"out{place}", worker=(place, 3)), engine=recording(order))
    assert orders[0] == [0, 3, 1, 2, 4]
    assert orders[1] == [1, 4, 2, 3, 0]
    assert sorted(orders[2]) == [0, 1, 2, 3, 4]
    assert orders[2][0] == 2
    prepare(options(root, tmp_path / "single"))
    assert content(tmp_path / "out0") == content(tmp_path / "out1") == content(tmp_path / "single")


def test_a_worker_leaves_what_others_hold_and_says_so(small_tree, tmp_path, held):
    root, out = small_tree.write(), tmp_path / "out"
    process = held(out, 3)
    summary = prepare(options(root, out, worker=(0, 2)))
    assert summary.built == 4
    assert [line.split(":")[0] for line in summary.waiting] == ["shard-00003.arrow"]
    assert any(f"process {process.pid}" in line and "no index yet" in line for line in summary.lines())
    assert not index_path(out, "ct_rate", "train").exists()
    assert not (out / "shards" / "ct_rate" / "manifest.json").exists()
    process.kill()
    process.wait()
    again = prepare(options(root, out, worker=(1, 2)))
    assert (again.built, again.skipped, again.waiting) == (1, 4, [])
    prepare(options(root, tmp_path / "single"))
    assert content(out) == content(tmp_path / "single")


def test_a_worker_sees_what_another_finished_after_it_had_passed_by(small_tree, tmp_path, held):
    root, out = small_tree.write(), tmp_path / "out"
    process, index, parts = held(out, 3), index_path(out, "ct_rate", "train"), []
    inner = local_engine(1, new_tally(multiprocessing.get_context("spawn")))

    def engine(work, tasks):
        yield from inner(work, tasks)
        parts.append(len(tasks))
        if len(parts) == 2:  # this run has been through all shards, and the other now does the one it held
            process.kill()
            process.wait()
            assert prepare(options(root, out, worker=(1, 2))).built == 1
            index.unlink()

    summary = prepare(options(root, out, worker=(0, 2)), engine=engine)
    assert (summary.built, summary.waiting) == (4, [])
    assert parts == [3, 2, 1]
    assert index.exists()


def test_a_run_without_a_share_waits_for_the_others_and_takes_up_what_they_leave(small_tree, tmp_path, held, monkeypatch):
    monkeypatch.setattr(run, "POLL_S", 0.01)
    root, out = small_tree.write(), tmp_path / "out"
    process = held(out, 1)
    thread = threading.Timer(0.5, lambda: (process.kill(), process.wait()))
    thread.start()
    summary = prepare(options(root, out))
    assert (summary.built, summary.waiting) == (5, [])
    assert index_path(out, "ct_rate", "train").exists()
    thread.join()


def test_four_runs_at_once_build_every_shard_once(small_tree, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "POLL_S", 0.01)
    root, out = small_tree.write(), tmp_path / "out"
    summaries, errors = [], []

    def start():
        try:
            summaries.append(prepare(options(root, out)))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not errors
    assert sum(summary.built for summary in summaries) == 5
    prepare(options(root, tmp_path / "single"))
    assert content(out) == content(tmp_path / "single")


def test_other_voxels_in_the_same_folder_are_said_to_be_made_anew(small_tree, tmp_path):
    root, out = small_tree.write(), tmp_path / "out"
    assert not any("otherwise" in line for line in prepare(options(root, out)).lines())
    again = prepare(options(root, out, recipe=Recipe(shape=(32, 24, 32), dtype="uint8")))
    assert again.built == 5
    assert any("voxels are asked for otherwise than by the last run" in line for line in again.lines())


@pytest.mark.parametrize(
    ("more", "changed"),
    [({"image_size": 64}, "preproc"), ({"val_patients": 0}, "splits"), ({"compression": "zstd"}, "compression")],
)
def test_another_plan_is_refused_while_a_run_is_at_work(small_tree, tmp_path, held, more, changed):
    root, out = small_tree.write(), tmp_path / "out"
    prepare(options(root, out))
    before = content(out)
    process = held(out, 0)
    with pytest.raises(PlanChangedError, match=rf"process {process.pid} of .* prepares .*different: {changed}"):
        prepare(options(root, out, **more))
    (out / "shards" / "ct_rate" / "shard-00000.lock").unlink()
    assert content(out) == before
    assert not prepare(options(root, out, **more)).waiting


def test_a_run_whose_plan_is_replaced_under_it_stops(small_tree, tmp_path):
    root, out = small_tree.write(), tmp_path / "out"
    inner = recording([])

    def engine(work, tasks):
        plan = out / "shards" / "ct_rate" / "plan.json"
        for outcome in inner(work, tasks):
            yield outcome
            plan.write_text(plan.read_text().replace('"hash": "', '"hash": "other'))

    with pytest.raises(PlanChangedError, match="other settings or other tables"):
        prepare(options(root, out), engine=engine)
    assert len(list(out.rglob("*.arrow"))) == 1


@pytest.mark.slow
def test_the_command_as_three_workers_of_an_array(tmp_path):
    tree = CtRateTree(tmp_path / "ct_rate")
    for name in ("train", "valid"):
        for number in range(1, 300):
            tree.add(f"{name}_{number}_a_1")
    root, script = tree.write(), ROOT / "prepro" / "prepro_pretraining_data.py"
    command = [sys.executable, script, "--ct-rate", root, "--image-size", "32", "--val-patients", "9"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    shares = [[*command, "--out", tmp_path / "array", "--worker", f"{place}/3"] for place in range(3)]
    workers = [subprocess.Popen(share, env=environment, stdout=subprocess.PIPE) for share in shares]
    told = [worker.communicate(timeout=300)[0].decode() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    assert sum(int(text.split("shards: ")[1].split()[0]) for text in told) == 3
    assert any("no index yet" not in text for text in told)
    subprocess.run([*command, "--out", tmp_path / "single"], env=environment, check=True)
    assert content(tmp_path / "array") == content(tmp_path / "single")


@pytest.mark.slow
def test_a_pool_and_a_ray_cluster_of_two_write_the_same_bytes(small_tree, tmp_path):
    pytest.importorskip("ray")
    root = small_tree.write()
    single = prepare(options(root, tmp_path / "single"))
    pool = prepare(options(root, tmp_path / "pool", workers=2))
    ray = prepare(options(root, tmp_path / "ray", workers=2, engine="ray"))
    assert single.built == pool.built == ray.built == 5
    assert ray.raw_bytes == single.raw_bytes > 0
    assert content(tmp_path / "single") == content(tmp_path / "pool") == content(tmp_path / "ray")


def test_ray_that_is_not_installed_is_told(small_tree, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"--engine ray needs Ray.*pip install -e \.\[ray\]"):
        prepare(options(small_tree.write(), tmp_path / "out", engine="ray"))
