"""The salt of hashed ids: generated once, private, never half written, never too short."""

import pytest

from mg3d.preparation.sources.pseudonyms import pseudonym, read_salt


def test_salt_is_generated_once_private_from_the_first_byte_and_complete_or_absent(tmp_path, monkeypatch):
    path, modes = tmp_path / "out" / "salt.txt", []

    def killed(descriptor):
        modes.extend(file.stat().st_mode & 0o777 for file in path.parent.iterdir())
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mg3d.files.os.fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            read_salt(path)
    assert modes == [0o600]
    assert not list(path.parent.iterdir())
    salt = read_salt(path)
    assert (len(salt), read_salt(path)) == (32, salt)
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("content", [b"", b"\n", b"0123456789abcde\n", b"x" * 65])
def test_salt_of_another_length_is_refused_and_not_replaced(tmp_path, content):
    path = tmp_path / "salt.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="expected 16 to 64; restore it"):
        read_salt(path)
    assert path.read_bytes() == content


def test_pseudonyms_depend_on_name_and_salt_only():
    first, other = b"0" * 16, b"1" * 16
    assert pseudonym("Anna", first) == pseudonym("Anna", first)
    assert len({pseudonym("Anna", first), pseudonym("Anna", other), pseudonym("Bernd", first)}) == 3
    assert len(pseudonym("Anna", first)) == 16
