"""The objectives of pre-training, one row each: which branch of the model computes it, and its default weight."""

from typing import NamedTuple


class ObjectiveRow(NamedTuple):
    """One objective; its weight is the setting `weight_NAME`."""

    branch: str
    """Import path of the `mg3d.models.branches.base.Branch` that computes its features and its loss."""
    weight: float
    """Default weight; 0 = off."""
    help: str


OBJECTIVES: dict[str, ObjectiveRow] = {
    "mlm": ObjectiveRow("mg3d.models.branches.report.ReportBranch", 1.0, "Masked report modelling."),
    "sal": ObjectiveRow("mg3d.models.branches.report.ReportBranch", 0.1, "Sentence alignment of the recovered report."),
    "mim": ObjectiveRow("mg3d.models.branches.volume.VolumeBranch", 1.0, "Masked volume modelling."),
    "cml": ObjectiveRow("mg3d.models.branches.contrast.ContrastBranch", 1.0, "Contrast of volumes and reports."),
    "dcl": ObjectiveRow(
        "mg3d.models.branches.disentangled.DisentangledBranch", 0.1, "Contrast of volumes and their sentence-wise aggregation."
    ),
    "ssm": ObjectiveRow(
        "mg3d.models.branches.disentangled.DisentangledBranch", 0.1, "Sentence similarity matching between patients."
    ),
    "captioning": ObjectiveRow(
        "mg3d.models.branches.captioning.CaptioningBranch", 0.0,
        "Report generation with teacher forcing. Not in the paper; enabled by the preset `captioning`.",
    ),
}  # fmt: skip
"""Objective -> row, in the order in which losses are logged. A new objective is one more row."""
