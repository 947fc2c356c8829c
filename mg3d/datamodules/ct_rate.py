"""CT-RATE alone."""

from typing import Any

from mg3d.datamodules.multitask import MultiTaskDataModule


class CTRateDataModule(MultiTaskDataModule):
    """Training and validation batches of CT-RATE; arguments as `MultiTaskDataModule`, without the mixture."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(datasets=("ct_rate",), dataset_weights=(), **arguments)
