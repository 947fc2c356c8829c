"""A local folder that replaces a data set on the Hugging Face Hub."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from huggingface_hub.hf_api import RepoFile

from mg3d.preparation import streaming

REPO = "someone/CT-RATE"


@dataclass
class FakeHub:
    root: Path
    cache: Path
    revision: str = "a" * 40
    downloads: list = field(default_factory=list)
    """Names of downloaded files."""
    errors: dict = field(default_factory=dict)
    """Part of a path -> errors of the next downloads."""
    on_disk: list = field(default_factory=list)
    """Bytes of volumes in the cache at the start and end of every download."""

    def repo_info(self, repo, repo_type):
        assert (repo, repo_type) == (REPO, "dataset")
        return SimpleNamespace(sha=self.revision)

    def list_repo_tree(self, repo, **_):
        for path in sorted(path for path in self.root.rglob("*") if path.is_file()):
            yield RepoFile(path=path.relative_to(self.root).as_posix(), size=path.stat().st_size, oid="0" * 40)

    def download(self, repo, path, *, repo_type, revision, local_dir):
        assert (repo, revision) == (REPO, self.revision)
        self.downloads.append(path.rpartition("/")[2])
        steps = next((steps for part, steps in self.errors.items() if part in path), [])
        if steps:
            raise steps.pop(0)
        self.measure()
        (local_dir / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.root / path, local_dir / path)
        self.measure()

    def measure(self):
        total = 0
        for path in self.cache.rglob("*.nii.gz"):
            try:
                total += path.stat().st_size
            except FileNotFoundError:
                continue
        self.on_disk.append(total)

    def install(self, set_attribute=setattr):
        set_attribute(streaming, "HfApi", lambda: self)
        set_attribute(streaming, "hf_hub_download", self.download)
        set_attribute(streaming, "RETRY_WAIT_S", 0.0)
