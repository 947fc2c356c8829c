"""A fine-tuned network on new scans."""

import dataclasses
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import torch
from monai.data.utils import list_data_collate
from torch.utils.data import DataLoader
from tqdm import tqdm

from mg3d.finetune.cases import Case
from mg3d.finetune.fit import load_network, machine
from mg3d.finetune.images import SLICE_SUFFIXES, VOLUME_SUFFIXES, slices_of
from mg3d.finetune.kinds.base import Kind
from mg3d.finetune.results import write_table
from mg3d.training.trainer import resolve_accelerator


def find_scans(path: Path) -> list[Case]:
    """The scans at a path: one file, or all below a folder; a folder of slices is one scan, by the numbers in their names.

    Raises:
        FileNotFoundError: nothing there is a scan.
    """
    if path.is_file():
        return [Case(case_id=_stem(path), patient_id=_stem(path), image=path)]
    if not path.is_dir():
        raise FileNotFoundError(f"input={path}: there is no such file or folder")
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and not file.name.startswith(".")]
    names = [(_name(file, path), file) for file in files if file.name.lower().endswith(VOLUME_SUFFIXES)]
    slices: dict[Path, list[Path]] = {}
    for file in slices_of(files):
        slices.setdefault(file.parent, []).append(file)
    cases = [Case(case_id=name, patient_id=name, image=file) for name, file in names]
    for folder, held in slices.items():
        cases.append(Case(case_id=_name(folder, path), patient_id=_name(folder, path), image=tuple(held)))
    counts = Counter(case.case_id for case in cases)
    cases = [case if counts[case.case_id] == 1 else _with_ending(case) for case in cases]
    if not cases:
        raise FileNotFoundError(f"input={path} holds no scan; known are {', '.join((*VOLUME_SUFFIXES, *SLICE_SUFFIXES))}")
    return cases


def _with_ending(case: Case) -> Case:
    """Of files that differ in their ending alone, such as a.nii.gz and a.mha, each keeps its own."""
    file = case.image[0].parent if isinstance(case.image, tuple) else case.image
    name = f"{case.case_id}{file.name[len(_stem(file)) :].replace('.', '_')}"
    return dataclasses.replace(case, case_id=name, patient_id=name)


def _stem(file: Path) -> str:
    return file.name.removesuffix(".gz").rpartition(".")[0] or file.name


def _name(file: Path, root: Path) -> str:
    relative = file.relative_to(root)
    return "_".join((*relative.parts[:-1], _stem(file) if file.is_file() else file.name))


def predict(kind: Kind, run: Path, *, say: Callable[[str], None]) -> Path:
    """Predictions for the scans at `input`, in a new folder; scans that cannot be used are set aside in `refused.csv`.

    Raises:
        ValueError: the folder exists already, or no scan could be used.
        FileNotFoundError: no scan, no checkpoint.
    """
    settings = kind.settings
    out = Path(settings.output) if settings.output else run / "predictions"
    if out.exists():
        raise ValueError(f"{out} exists already; name a folder that does not: output=...")
    cases = kind.for_prediction(find_scans(Path(settings.input)), Path(settings.input))
    network, _ = load_network(kind, Path(settings.checkpoint) if settings.checkpoint else run / "checkpoints" / "best.ckpt")
    network.to("cuda" if resolve_accelerator(machine(settings)) == "gpu" else "cpu")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    rows, refused = [], []
    for case in tqdm(cases, desc="predict", disable=None):
        try:
            rows += predict_one(kind, network, [case], masks=partial)
        except (ValueError, OSError, RuntimeError) as error:
            refused.append({"case_id": case.case_id, "reason": str(error).split("\n")[0]})
    if rows:
        write_table(partial / "predictions.csv", pd.DataFrame(rows))
    if refused:
        write_table(partial / "refused.csv", pd.DataFrame(refused))
    partial.replace(out)
    if not rows:
        raise ValueError(f"none of {len(cases)} scans can be used, see {out / 'refused.csv'}; the first: {refused[0]['reason']}")
    say(f"{len(cases) - len(refused)} of {len(cases)} scans predicted; wrote {out}")
    for row in refused[:3]:
        say(f"set aside {row['case_id']}: {row['reason']}")
    return out


@torch.no_grad()
def predict_one(kind: Kind, network: torch.nn.Module, cases: Sequence[Case], *, masks: Path) -> list[dict[str, object]]:
    """Rows of one case, read in this process."""
    device = next(network.parameters()).device
    size = kind.evaluation_size or kind.settings.batch_size
    rows: list[dict[str, object]] = []
    for batch in DataLoader(kind.evaluation_data(cases), batch_size=size, collate_fn=list_data_collate):
        moved = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
        rows += kind.rows(network, moved, masks=masks)
    return rows
