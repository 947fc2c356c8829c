"""Several runs in one output folder at the same time."""

import multiprocessing
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import small_prepare
from small_prepare import files
from small_raw import CtRateTree

from mg3d.datasets.schema import index_path
from mg3d.preparation import run
from mg3d.preparation.engines import local_engine
from mg3d.preparation.recipe import Recipe
from mg3d.preparation.run import prepare
from mg3d.preparation.shards import PlanChangedError, try_lock

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time, filelock
lock = filelock.FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


def options(root, out, **more):
    return small_prepare.options(root, out, **{"shard_rows": 2, **more})


@pytest.fixture
def hold():
    """Starts a process that locks a shard and does nothing."""
    processes = []

    def start(out, number):
        lock = out / "shards" / "ct_rate" / f"shard-{number:05d}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        process = subprocess.Popen([sys.executable, "-c", HOLD, lock], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"held\n"
        processes.append(process)
        return process

    yield start
    for process in processes:
        kill(process)


def kill(process):
    process.kill()
    process.wait()


def recording(order):
    inner = local_engine(1, multiprocessing.get_context("spawn").Value("q", 0))

    def engine(work, tasks):
        order.extend(int(task.path.stem[-5:]) for task in tasks)
        yield from inner(work, tasks)

    return engine


def test_a_lock_is_exclusive_and_is_released_when_its_process_is_killed(tmp_path, hold):
    process = hold(tmp_path, 0)
    lock = tmp_path / "shards/ct_rate/shard-00000.lock"
    with try_lock(lock) as free:
        assert not free
    kill(process)
    with try_lock(lock) as free, try_lock(lock) as again:
        assert free
        assert not again


def test_workers_start_at_different_shards_and_help_with_all_others(small_tree, tmp_path):
    root, orders = small_tree.write(), {}
    for index in range(3):
        orders[index] = []
        prepare(options(root, tmp_path / f"out{index}", worker=(index, 3)), engine=recording(orders[index]))
    assert orders == {0: [0, 1, 2, 3, 4], 1: [1, 2, 3, 4, 0], 2: [3, 4, 0, 1, 2]}
    prepare(options(root, tmp_path / "single"))
    assert files(tmp_path / "out0") == files(tmp_path / "out1") == files(tmp_path / "single")


def test_a_worker_reports_the_shards_that_others_hold(small_tree, tmp_path, hold):
    root, out = small_tree.write(), tmp_path / "out"
    process = hold(out, 3)
    summary = prepare(options(root, out, worker=(0, 2)))
    assert (summary.built, summary.waiting) == (4, ["shard-00003"])
    assert any("no index yet: other processes are writing 1 shards (shard-00003)" in line for line in summary.lines())
    assert not index_path(out, "ct_rate", "train").exists()
    kill(process)
    again = prepare(options(root, out, worker=(1, 2)))
    assert (again.built, again.skipped, again.waiting) == (1, 4, [])
    prepare(options(root, tmp_path / "single"))
    assert files(out) == files(tmp_path / "single")


def test_a_worker_sees_a_shard_that_another_run_finished_meanwhile(small_tree, tmp_path, hold):
    root, out = small_tree.write(), tmp_path / "out"
    process, index, parts = hold(out, 3), index_path(out, "ct_rate", "train"), []
    inner = recording([])

    def engine(work, tasks):
        yield from inner(work, tasks)
        parts.append(len(tasks))
        if len(parts) == 1:  # this run has tried all shards; now another one builds the shard that was held
            kill(process)
            assert prepare(options(root, out, worker=(1, 2))).built == 1
            index.unlink()

    summary = prepare(options(root, out, worker=(0, 2)), engine=engine)
    assert (summary.built, summary.waiting, parts) == (4, [], [5, 1])
    assert index.exists()


def test_the_last_run_removes_partial_files_of_killed_runs_and_not_those_of_a_running_one(small_tree, tmp_path, hold):
    root, out = small_tree.write(), tmp_path / "out"
    prepare(options(root, out))
    running, killed = (out / f"shards/ct_rate/shard-0000{number}.arrow.tmp-1-ab" for number in range(2))
    for number, partial in enumerate((running, killed)):
        process = hold(out, number)
        partial.write_bytes(b"half")
    kill(process)
    prepare(options(root, out))  # every shard is finished: a run with --verify may rebuild one nevertheless
    assert running.is_file()
    assert not killed.exists()


def test_a_run_without_a_worker_number_waits_and_builds_what_others_leave(small_tree, tmp_path, hold, monkeypatch):
    monkeypatch.setattr(run, "POLL_S", 0.01)
    root, out = small_tree.write(), tmp_path / "out"
    process = hold(out, 1)
    timer = threading.Timer(0.5, lambda: kill(process))
    timer.start()
    summary = prepare(options(root, out))
    assert (summary.built, summary.waiting) == (5, [])
    assert index_path(out, "ct_rate", "train").exists()
    timer.join()


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
    assert files(out) == files(tmp_path / "single")


def test_other_voxel_settings_in_the_same_folder_are_reported(small_tree, tmp_path):
    root, out = small_tree.write(), tmp_path / "out"
    assert not any("changed" in line for line in prepare(options(root, out)).lines())
    again = prepare(options(root, out, recipe=Recipe(shape=(32, 24, 32), dtype="uint8")))
    assert again.built == 5
    assert any("the voxel settings changed since the last run; affected shards are rewritten" in line for line in again.lines())


@pytest.mark.parametrize(
    ("more", "changed"),
    [
        ({"recipe": Recipe()}, "preproc"),
        ({"val_patients": 0}, "splits"),
        ({"recipe": replace(small_prepare.SMALL, compression="zstd")}, "compression"),
    ],
)
def test_another_plan_is_refused_while_a_run_is_at_work(small_tree, tmp_path, hold, more, changed):
    root, out = small_tree.write(), tmp_path / "out"
    prepare(options(root, out))
    before = files(out)
    process = hold(out, 0)
    with pytest.raises(PlanChangedError, match=rf"another run prepares .* \(different: {changed}\)"):
        prepare(options(root, out, **more))
    kill(process)
    (out / "shards" / "ct_rate" / "shard-00000.lock").unlink()
    assert files(out) == before
    assert not prepare(options(root, out, **more)).waiting


def test_a_run_stops_when_another_one_replaces_its_plan(small_tree, tmp_path):
    root, out = small_tree.write(), tmp_path / "out"
    inner = recording([])

    def engine(work, tasks):
        manifest = out / "shards" / "ct_rate" / "manifest.json"
        for result in inner(work, tasks):
            yield result
            manifest.write_text(manifest.read_text().replace('"plan_hash": "', '"plan_hash": "other'))

    with pytest.raises(PlanChangedError, match="other settings or tables"):
        prepare(options(root, out), engine=engine)
    assert len(list(out.rglob("*.arrow"))) == 1


@pytest.mark.slow
def test_the_command_as_an_array_of_three_workers(tmp_path):
    tree = CtRateTree(tmp_path / "ct_rate")
    for name in ("train", "valid"):
        for number in range(1, 300):
            tree.add(f"{name}_{number}_a_1")
    root, script = tree.write(), ROOT / "prepro" / "prepro_pretraining_data.py"
    command = [sys.executable, script, "--ct-rate", root, "--image-size", "32", "--val-patients", "9"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    commands = [[*command, "--out", tmp_path / "array", "--worker", f"{index}/3"] for index in range(3)]
    workers = [subprocess.Popen(words, env=environment, stdout=subprocess.PIPE) for words in commands]
    printed = [worker.communicate(timeout=300)[0].decode() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    assert sum(int(text.split("shards: ")[1].split()[0]) for text in printed) == 3
    assert any("no index yet" not in text for text in printed)
    subprocess.run([*command, "--out", tmp_path / "single"], env=environment, check=True)
    assert files(tmp_path / "array") == files(tmp_path / "single")


@pytest.mark.slow
def test_a_pool_and_a_ray_cluster_write_the_same_bytes(small_tree, tmp_path):
    pytest.importorskip("ray")
    root = small_tree.write()
    single = prepare(options(root, tmp_path / "single"))
    pool = prepare(options(root, tmp_path / "pool", workers=2))
    ray = prepare(options(root, tmp_path / "ray", workers=2, engine="ray"))
    assert single.built == pool.built == ray.built == 5
    assert ray.volumes == single.volumes == 10
    assert files(tmp_path / "single") == files(tmp_path / "pool") == files(tmp_path / "ray")


def test_a_missing_ray_is_reported(small_tree, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"--engine ray needs Ray.*pip install -e \.\[ray\]"):
        prepare(options(small_tree.write(), tmp_path / "out", engine="ray"))
