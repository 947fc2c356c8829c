"""The table of objectives: name -> how its loss is made from the settings. One more objective is one more row."""

from collections.abc import Callable

from mg3d.losses.base import Objective
from mg3d.losses.captioning import CaptionLoss
from mg3d.losses.cml import CMLLoss
from mg3d.losses.dcl import DCLLoss
from mg3d.losses.mim import MIMLoss
from mg3d.losses.mlm import MLMLoss
from mg3d.losses.sal import SALLoss
from mg3d.losses.ssm import SSMLoss
from mg3d.settings.schema import ModelSettings

OBJECTIVES: dict[str, Callable[[ModelSettings], Objective]] = {
    "mlm": lambda model: MLMLoss(),
    "sal": lambda model: SALLoss(per="sentence" if model.wiring == "paper" else "patient"),
    "mim": lambda model: MIMLoss(),
    "cml": lambda model: CMLLoss(exclude_duplicates=model.wiring == "paper"),
    "dcl": lambda model: DCLLoss(exclude_duplicates=model.wiring == "paper"),
    "ssm": lambda model: SSMLoss(
        same_above=model.ssm_same_above,
        differ_below=model.ssm_differ_below,
        form="two_means" if model.wiring == "paper" else "pair_mean",
        use_polarity=model.wiring == "paper",
    ),
    "captioning": lambda model: CaptionLoss(smoothing=model.caption_label_smoothing),
}
"""Order = order of the log. The weight of NAME is the setting `weight_NAME`."""


def build_losses(model: ModelSettings, names: list[str]) -> dict[str, Objective]:
    """The loss modules of the named objectives."""
    return {name: OBJECTIVES[name](model) for name in names}
