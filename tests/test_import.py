"""Importing the package on unusual machines."""

import getpass
import importlib
import pwd

import mg3d


def test_a_user_id_without_a_name_can_import_the_package(monkeypatch):
    def unknown(user_id):
        raise KeyError(f"getpwuid(): uid not found: {user_id}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "")  # restored after the test
    importlib.reload(mg3d)
    assert getpass.getuser().startswith("uid-")
