"""Run a preparation repeatedly and kill it with SIGKILL at random times: killed_runs.py ROOT FOLDER KILLS WORKERS BUDGET.

With a BUDGET above 0, in bytes, the raw files are streamed, through FOLDER/cache.

Prints JSON: number of killed runs, number of completed preparations, and differences from an uninterrupted run.
"""

import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

from fake_hub import REPO, FakeHub
from tqdm import tqdm

from mg3d.preparation.recipe import Recipe
from mg3d.preparation.run import PrepareOptions, prepare


def options(root, out, workers, budget):
    small = {"out": out, "recipe": Recipe(shape=(32, 24, 32)), "val_patients": 1, "shard_rows": 2, "workers": workers}
    if not budget:
        return PrepareOptions(roots={"ct_rate": root}, **small)
    cache = out.parent / "cache"
    FakeHub(root, cache).install()
    return PrepareOptions(roots={"ct_rate": cache}, stream={"ct_rate": REPO}, stream_budget=budget, **small)


def content(out):
    """Path -> bytes, without lock files: one that nobody holds means nothing, and a dying worker may leave one."""
    files = [path for path in out.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def shard_times(out):
    return {path: path.stat().st_mtime_ns for path in out.rglob("*.arrow") if path.with_suffix(".json").exists()}


def streamed_bytes(folder):
    return sum(path.stat().st_size for path in (folder / "cache").rglob("*.nii.gz*"))


def start(root, out, workers, budget):
    process = os.fork()
    if process == 0:
        os.setpgid(0, 0)
        prepare(options(root, out, workers, budget))
        os._exit(0)
    return process


def left_behind(group, wait_s=20):
    """Whether a process of the group of a killed run is still there after a while."""
    for _ in range(wait_s * 50):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.02)
    return True


def main(root, folder, kills, workers, budget):
    tqdm.monitor_interval = 0  # neither a thread nor a semaphore may be shared with forked processes that are killed
    tqdm.set_lock(threading.RLock())
    began = time.monotonic()
    prepare(options(root, folder / "uninterrupted", workers, budget))
    whole = time.monotonic() - began
    expected, out = content(folder / "uninterrupted"), folder / "broken"
    draw, killed, rounds, faults = random.Random(kills), 0, 0, []
    finished, groups = {}, []
    killed_now = True
    while killed < kills or killed_now:
        process = start(root, out, workers, budget)
        if killed < kills:
            time.sleep(draw.uniform(0, whole))
            os.kill(process, signal.SIGKILL)
        status = os.waitpid(process, 0)[1]
        killed_now = os.WIFSIGNALED(status)
        killed += killed_now
        groups.append(process)
        finished |= shard_times(out)
        faults += ["too much on disk"] if streamed_bytes(folder) > budget else []
        faults += [f"{path.name} was redone" for path, then in finished.items() if shard_times(out).get(path) != then]
        if not killed_now:
            rounds += 1
            faults += [f"processes of run {group} are still alive" for group in groups if left_behind(group)]
            groups.clear()
            found = content(out)
            faults += [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
            faults += [] if os.WEXITSTATUS(status) == 0 else [f"exit code {os.WEXITSTATUS(status)}"]
            shutil.rmtree(out)
            finished = {}
    print(json.dumps({"killed": killed, "rounds": rounds, "faults": faults}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
