"""CTRG-Chest-548K."""

from mg3d.datamodules.base import StudyDataModule


class CTRGDataModule(StudyDataModule):
    """Chest CT scans with reports, published as 8-bit slices of an unknown window."""

    dataset = "ctrg"
