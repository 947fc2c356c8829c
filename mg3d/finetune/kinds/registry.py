"""Name of a kind, as a folder declares it -> its class."""

from mg3d.finetune.kinds.base import Kind
from mg3d.finetune.kinds.candidates import Candidates
from mg3d.finetune.kinds.classification import Classification
from mg3d.finetune.kinds.labeller import Labeller
from mg3d.finetune.kinds.labels import Labels
from mg3d.finetune.kinds.probe import Probe
from mg3d.finetune.kinds.prompts import Prompts
from mg3d.finetune.kinds.report import ReportGeneration
from mg3d.finetune.kinds.retrieval import Retrieval
from mg3d.finetune.kinds.segmentation import Segmentation
from mg3d.finetune.settings import FinetuneSettings
from mg3d.finetune.task import Task

KINDS: dict[str, type[Kind]] = {
    "candidates": Candidates,
    "classification": Classification,
    "labeller": Labeller,
    "labels": Labels,
    "probe": Probe,
    "prompts": Prompts,
    "report": ReportGeneration,
    "retrieval": Retrieval,
    "segmentation": Segmentation,
}


def build_kind(task: Task, settings: FinetuneSettings) -> Kind:
    """The kind that a task declares."""
    return KINDS[task.kind](task, settings)
