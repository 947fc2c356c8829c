"""A user's own scans."""

from mg3d.datamodules.base import StudyDataModule


class CustomDataModule(StudyDataModule):
    """Scans prepared with prepro/make_arrow.py; reports are optional."""

    dataset = "custom"
