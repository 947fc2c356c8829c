"""Where raw files can be fetched from one by one: a data set on the Hugging Face hub, or a folder that plays it."""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

CHUNK_BYTES = 1 << 20
NO_ACCESS = (401, 403)


class HubRefusedError(PermissionError):
    """The hub gives nothing to this user; trying again does not help."""


class Hub(Protocol):
    """What a stream needs of a place; small enough to be handed to other processes."""

    def revision(self) -> str:
        """Names the state of all files; empty when the place has no such name."""

    def files(self, revision: str) -> dict[str, int]:
        """Path -> bytes of every file."""

    def chunks(self, path: str, start: int, revision: str) -> Iterator[bytes]:
        """The content of a file from byte `start` on.

        Raises:
            HubRefusedError: nothing will come, whatever file is asked for.
            OSError: anything else that went wrong; another try may help.
        """


@dataclass(frozen=True)
class FolderHub:
    """A folder, e.g. a mounted archive, from which files are copied."""

    root: Path

    def revision(self) -> str:
        """A folder has no name for its state."""
        return ""

    def files(self, revision: str) -> dict[str, int]:
        """Every file below the folder."""
        found = (path for path in self.root.rglob("*") if path.is_file())
        return {path.relative_to(self.root).as_posix(): path.stat().st_size for path in found}

    def chunks(self, path: str, start: int, revision: str) -> Iterator[bytes]:
        """Reads the file from `start` on."""
        with (self.root / path).open("rb") as stream:
            stream.seek(start)
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk


@dataclass(frozen=True)
class HuggingFaceHub:
    """A data set repository, by the token of `hf auth login` or HF_TOKEN."""

    repo: str

    def revision(self) -> str:
        """The commit at the head of main."""
        with _told(self.repo):
            return HfApi().repo_info(self.repo, repo_type="dataset").sha or "main"

    def files(self, revision: str) -> dict[str, int]:
        """Every file of a commit, a thousand in a request."""
        with _told(self.repo):
            tree = HfApi().list_repo_tree(self.repo, recursive=True, revision=revision, repo_type="dataset")
            return {item.path: item.size for item in tree if isinstance(item, RepoFile)}

    def chunks(self, path: str, start: int, revision: str) -> Iterator[bytes]:
        """Asks for the bytes from `start` on; a server that sends all of them is listened to until then."""
        url = hf_hub_url(self.repo, path, repo_type="dataset", revision=revision)
        headers = build_hf_headers() | ({"Range": f"bytes={start}-"} if start else {}) | {"Accept-Encoding": "identity"}
        with _told(self.repo), get_session().stream("GET", url, headers=headers, follow_redirects=True) as response:
            hf_raise_for_status(response)
            skip = start if response.status_code != 206 else 0
            for chunk in response.iter_raw():  # as it comes, so that a break loses nothing, and as it is stored
                yield chunk[skip:]
                skip = max(skip - len(chunk), 0)


class _told:
    """Turns the hub's errors into ours, without their messages: those may hold a signed address."""

    def __init__(self, repo: str) -> None:
        self.repo = repo

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or not isinstance(error, Exception):
            return
        refused = isinstance(error, (GatedRepoError, RepositoryNotFoundError))
        if isinstance(error, HfHubHTTPError):
            with suppress(AttributeError):
                refused = refused or error.response.status_code in NO_ACCESS
        if refused:
            raise HubRefusedError(
                f"the hub gives no access to the data set {self.repo} ({type(error).__name__}); accept its terms on its page, "
                "then log in with `hf auth login` or set HF_TOKEN"
            ) from None
        raise ConnectionError(f"the hub did not answer as expected ({type(error).__name__})") from None


def open_hub(source: str) -> Hub:
    """The hub that `--stream` names: an existing folder, else `owner/name` of a data set.

    Raises:
        ValueError: it is neither. What was given is not repeated when it looks like an address, which may hold a password.
    """
    if Path(source).is_dir():
        return FolderHub(Path(source).absolute())
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and ".." not in PurePosixPath(source).parts:
        return HuggingFaceHub(source)
    shown = "an address" if "://" in source or "@" in source else repr(source)
    raise ValueError(f"--stream got {shown}; it takes a folder that exists, or owner/name of a data set on the Hugging Face hub")
