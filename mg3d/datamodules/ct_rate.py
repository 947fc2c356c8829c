"""CT-RATE."""

from mg3d.datamodules.base import StudyDataModule


class CTRateDataModule(StudyDataModule):
    """Chest CT scans with reports, several reconstructions per scan; one is drawn per epoch."""

    dataset = "ct_rate"
