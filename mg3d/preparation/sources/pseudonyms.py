"""Hashed ids in place of names that may identify a person."""

import hashlib
import secrets
from pathlib import Path

from mg3d.files import write_bytes

SALT_BYTES = (16, 64)
"""Smallest and largest length of a salt."""


def pseudonym(name: str, salt: bytes) -> str:
    """16 hexadecimal digits, the same for the same name and salt."""
    return hashlib.blake2b(name.encode(errors="surrogateescape"), key=salt, digest_size=8).hexdigest()


def read_salt(path: Path) -> bytes:
    """The secret of the ids; generated and written, readable by its owner only, if the file does not exist.

    Copy the file to get the same ids on another machine. Do not publish it.

    Raises:
        ValueError: the salt is too short to protect anything, or too long for a key.
    """
    if not path.is_file():
        write_bytes(path, (secrets.token_hex(16) + "\n").encode(), mode=0o600)
    salt = path.read_bytes().strip()
    if not SALT_BYTES[0] <= len(salt) <= SALT_BYTES[1]:
        raise ValueError(
            f"the salt {path} has {len(salt)} bytes, expected {SALT_BYTES[0]} to {SALT_BYTES[1]}; restore it from a copy, or "
            "delete the file to generate a new one, which changes all ids"
        )
    return salt
