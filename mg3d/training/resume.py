"""Resume a run: find its checkpoint, and refuse one of other settings, reports, volumes or text features."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mg3d.datamodules.multitask import MultiTaskDataModule
from mg3d.datasets.arrow import open_index
from mg3d.datasets.schema import differing_steps
from mg3d.datasets.storage import Storage
from mg3d.models.mg3d import MG3D
from mg3d.settings.parse import defaults, flatten
from mg3d.settings.schema import Settings

MAY_DIFFER = (
    "accelerator", "devices", "num_nodes", "num_workers", "log_interval", "val_interval", "val_batches", "resume_from",
    "evidence", "max_minutes", "ground_truth_root", "log_dir", "run_name", "data_root", "cache_dir", "per_gpu_batchsize",
    "precision", "gradient_checkpointing", "grad_cache_chunk", "text_cache", "compile",
)  # fmt: skip
"""Settings that may differ between a checkpoint and the run that resumes from it."""


class SavedRun(NamedTuple):
    """A checkpoint to resume from."""

    path: Path
    content: dict[str, Any]
    """As `load_checkpoint`."""


def run_folder(settings: Settings) -> Path:
    """Output folder of the run."""
    return Path(settings.run.log_dir) / settings.run.run_name


def find_checkpoint(settings: Settings) -> SavedRun | None:
    """The checkpoint of `resume_from`; None to start from scratch.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it has other settings, or a new run would overwrite an existing one.
    """
    run_dir, source = run_folder(settings), settings.run.resume_from
    last = run_dir / "checkpoints" / "last.ckpt"
    if source == "" and last.is_file():
        require_data(settings)  # a typo in data_root is the likelier mistake
        raise ValueError(f"{run_dir} already contains a run; resume it with resume_from=last, or choose another run_name")
    if source == "" or (source == "auto" and not last.is_file()):
        return None
    path = last if source in ("last", "auto") else Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"resume_from={source}: {path} does not exist")
    saved = SavedRun(path, load_checkpoint(path))
    theirs, ours = defaults() | saved.content["mg3d"]["settings"], flatten(settings)
    if other := [name for name in ours if name not in MAY_DIFFER and theirs.get(name) != ours[name]]:
        values = ", ".join(f"{name}={theirs.get(name)!r} (now {ours[name]!r})" for name in other[:5])
        raise ValueError(f"{path} was trained with other settings: {values}; use these, or choose another run_name")
    return saved


def require_data(settings: Settings) -> None:
    """Raises FileNotFoundError for a training index that is missing in data_root."""
    for dataset in settings.data.datasets:
        open_index(Storage(settings.data.data_root, settings.data.cache_dir), dataset, "train")


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of a pre-training run. Its tensors are memory-mapped: they are read from the file when they are used.

    Raises:
        ValueError: the file is damaged or of another program.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise ValueError(f"{path} is not readable as a checkpoint ({type(error).__name__}); it may be incomplete") from error
    if not isinstance(checkpoint, dict) or "mg3d" not in checkpoint:
        raise ValueError(f"{path} is not a checkpoint of an mg3d pre-training run: it has no entry 'mg3d'")
    return checkpoint


def is_finished(saved: SavedRun, settings: Settings) -> bool:
    """Whether a checkpoint has reached `max_steps`."""
    return saved.content["global_step"] >= settings.optim.max_steps


def refuse_other_data(
    saved: SavedRun, tokenizer_origin: dict[str, Any] | None, recipes: Mapping[str, dict[str, Any] | None]
) -> None:
    """Raises ValueError if a checkpoint was trained on other reports, or on volumes that were prepared differently.

    recipes: data set -> preparation recipe of its volumes now. Recipes that the checkpoint does not store are not compared.
    """
    path, stored = saved.path, saved.content["mg3d"]
    advice = "use the data it was trained on, or choose another run_name"
    for name, theirs in stored.get("recipes", {}).items():
        if other := differing_steps(theirs, recipes.get(name)):
            raise ValueError(
                f"{path} was trained on volumes of {name} prepared differently ({', '.join(other)}) than in data_root; {advice}"
            )
    theirs = stored.get("tokenizer", tokenizer_origin)
    if theirs != tokenizer_origin:
        raise ValueError(
            f"{path} has a tokenizer of {theirs['reports']:,} training reports other than the {tokenizer_origin['reports']:,} in "
            f"data_root; {advice}"
        )


def refuse_other_text(model: MG3D, data: MultiTaskDataModule, max_text_len: int) -> None:
    """Raises ValueError if cached text features belong to another text encoder or length."""
    cache = data.options.collator["text_features"]
    if cache is not None:
        cache.require_made_for(model.text.fingerprint(), max_text_len)
