"""CTRG-Chest-548K alone."""

from typing import Any

from mg3d.datamodules.multitask import MultiTaskDataModule


class CTRGDataModule(MultiTaskDataModule):
    """Training and validation batches of CTRG-Chest-548K; arguments as `MultiTaskDataModule`, without the mixture."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(datasets=("ctrg",), dataset_weights=(), **arguments)
