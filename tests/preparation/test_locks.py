"""Lock files: one holder, and what becomes of a lock whose holder is dead, elsewhere or unknown."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest
from mg3d.preparation.locks import Holder, clear, holder, holding, waiting_for

from mg3d.preparation import locks


@pytest.fixture
def other():
    """A living process that does nothing."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def lock_of(path, pid, *, host=None, started=None):
    path.write_text(json.dumps({"host": host or locks._host(), "pid": pid, "started": started or locks._started(pid)}))
    return path


def taken(path):
    with holding(path) as mine:
        return mine


def test_a_lock_has_one_holder_and_goes_with_the_block(tmp_path):
    path = tmp_path / "new" / "a.lock"
    with holding(path) as mine:
        assert mine
        assert holder(path).pid == os.getpid()
        assert not taken(path)
        assert holder(path) is not None  # the one who did not get it took nothing away
    assert not path.exists()
    assert holder(path) is None


def test_eight_threads_get_a_lock_in_turn(tmp_path):
    inside, most = [], []

    def enter():
        with waiting_for(tmp_path / "a.lock"):
            inside.append(1)
            most.append(len(inside))
            inside.pop()

    locks_poll, locks.POLL_S = locks.POLL_S, 0.001
    threads = [threading.Thread(target=enter) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    locks.POLL_S = locks_poll
    assert most == [1] * 8


def test_a_living_process_keeps_its_lock_and_a_dead_one_loses_it(tmp_path, other):
    path = lock_of(tmp_path / "a.lock", other.pid)
    assert not taken(path)
    assert str(holder(path)).startswith(f"process {other.pid} of ")
    clear(path)
    assert path.exists()
    other.kill()
    while locks._started(other.pid) is not None:
        time.sleep(0.01)  # a process that nobody has waited for yet counts as dead as well
    assert holder(path) is None
    assert taken(path)


def test_a_process_number_that_was_given_again_is_no_holder(tmp_path, other):
    assert taken(lock_of(tmp_path / "a.lock", other.pid, started="1"))


@pytest.mark.parametrize(("age", "free"), [(0, False), (locks.STALE_S - 5, False), (locks.STALE_S + 5, True)])
def test_a_lock_of_another_machine_is_taken_when_it_is_renewed_no_more(tmp_path, age, free):
    path = lock_of(tmp_path / "a.lock", 1, host="elsewhere", started="1")
    then = time.time() - age
    os.utime(path, (then, then))
    assert taken(path) is free


@pytest.mark.parametrize("content", ["", "{", '{"host": "x"}'])
def test_a_lock_without_a_name_is_taken_after_a_while(tmp_path, content):
    path = tmp_path / "a.lock"
    path.write_text(content)
    assert not taken(path)
    then = time.time() - locks.UNWRITTEN_S - 1
    os.utime(path, (then, then))
    assert taken(path)


def test_a_holder_renews_its_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.01)
    path = tmp_path / "a.lock"
    with holding(path):
        os.utime(path, (0, 0))
        for _ in range(200):
            if path.stat().st_mtime:
                break
            time.sleep(0.01)
        assert path.stat().st_mtime > 1e9


def test_a_lock_that_was_made_anew_meanwhile_is_given_back(tmp_path, monkeypatch):
    path = lock_of(tmp_path / "a.lock", 1, host="elsewhere", started="1")
    stale, new = Holder("elsewhere", 1, "1"), Holder("elsewhere", 2, "2")
    contents = iter([new])
    monkeypatch.setattr(locks, "_content", lambda path: next(contents))
    path.write_text(json.dumps(new._asdict()))
    locks._set_aside(path, stale)
    assert json.loads(path.read_text())["pid"] == 2
    assert [found.name for found in tmp_path.iterdir()] == ["a.lock"]


def test_a_lock_that_was_lost_is_not_removed_from_its_new_holder(tmp_path, other):
    path = tmp_path / "a.lock"
    with holding(path):
        lock_of(path, other.pid)
    assert path.exists()
