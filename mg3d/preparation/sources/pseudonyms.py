"""Names that may be people's -> ids that tell nothing, by a secret that stays on this machine."""

import hashlib
import secrets
from pathlib import Path

from mg3d.files import write_bytes

SALT_BYTES = (16, 64)
"""Fewest and most bytes of a salt."""


def pseudonym(name: str, salt: bytes) -> str:
    """16 hexadecimal digits for a name; the same for the same salt."""
    return hashlib.blake2b(name.encode(errors="surrogateescape"), key=salt, digest_size=8).hexdigest()


def read_salt(path: Path) -> bytes:
    """The secret of this machine's ids; drawn and written (readable by its owner only) when the file is not there.

    Copy the file to get the same ids elsewhere. Do not publish it.

    Raises:
        ValueError: the file is too short to hide anything, or too long for a key.
    """
    if not path.is_file():
        write_bytes(path, (secrets.token_hex(16) + "\n").encode(), mode=0o600)
    salt = path.read_bytes().strip()
    if not SALT_BYTES[0] <= len(salt) <= SALT_BYTES[1]:
        raise ValueError(
            f"the salt {path} holds {len(salt)} bytes, {SALT_BYTES[0]} to {SALT_BYTES[1]} are expected; bring back its content "
            "from a copy, or remove the file to draw another, which changes all ids that were made with it"
        )
    return salt
