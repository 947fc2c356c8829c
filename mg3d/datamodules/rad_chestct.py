"""Rad-ChestCT."""

from mg3d.datamodules.base import StudyDataModule


class RadChestCTDataModule(StudyDataModule):
    """Chest CT scans with labels and without reports; for objectives that need volumes only."""

    dataset = "rad_chestct"
