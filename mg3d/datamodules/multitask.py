"""The mixture of data sets that pre-training reads."""

from collections.abc import Sequence

import pytorch_lightning as pl
from transformers import PreTrainedTokenizerBase

from mg3d.datamodules.base import StudyDataModule
from mg3d.datamodules.ct_rate import CTRateDataModule
from mg3d.datamodules.ctrg import CTRGDataModule
from mg3d.datamodules.custom import CustomDataModule
from mg3d.datamodules.rad_chestct import RadChestCTDataModule

DATA_MODULES = {
    module.dataset: module for module in (CTRateDataModule, CTRGDataModule, RadChestCTDataModule, CustomDataModule)
}
"""Name in the setting `datasets` -> data module."""


class MultiTaskDataModule(StudyDataModule):
    """Mixes the studies of several data modules; batches contain studies of all of them.

    Args:
        modules: at least one; the loader options of the first one are used.
        weights: sampling weight of each module; empty = by number of studies.
    """

    def __init__(
        self,
        modules: Sequence[StudyDataModule],
        *,
        weights: Sequence[float] = (),
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        pl.LightningDataModule.__init__(self)
        self.names = tuple(name for module in modules for name in module.names)
        self.train_parts = [part for module in modules for part in module.train_parts]
        self.val_parts = [part for module in modules for part in module.val_parts]
        self._configure(modules[0].options, tokenizer)
        self.weights = tuple(weights)
