import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from mg3d.files import replacing_folder

ROOT = Path(__file__).parents[1]
KILLED = """
import os, signal, sys
from pathlib import Path
from mg3d.files import replacing_folder
with replacing_folder(Path(sys.argv[1])) as new:
    (new / "half").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("name", ["set", "set [2]"])
def test_the_next_write_of_a_folder_removes_what_a_killed_one_left(tmp_path, name):
    subprocess.run([sys.executable, "-c", KILLED, tmp_path / name], env={**os.environ, "PYTHONPATH": str(ROOT)})
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(f".{name}.tmp-")
    other_machine = left.with_name(f".{name}.tmp-{platform.node()}-2-{left.name.split('-')[-2]}-0123abcd")
    other_folder = left.with_name(left.name.replace(name, f"{name}2"))
    for folder in (other_machine, other_folder):
        folder.mkdir()
    with replacing_folder(tmp_path / name) as outer, replacing_folder(tmp_path / name) as inner:  # this process is running
        (outer / "outer").touch()
        (inner / "inner").touch()
    assert set(tmp_path.iterdir()) == {tmp_path / name, other_machine, other_folder}
    assert [path.name for path in (tmp_path / name).iterdir()] == ["outer"]
