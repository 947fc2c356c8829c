"""Which abnormalities of Rad-ChestCT stand for which of CT-RATE's 18 labels. Two readings are in use; a file names its own."""

from collections.abc import Mapping
from typing import Literal

from mg3d.glossary import LABELS

VERSION = 1
"""Changes with any row below."""
Variant = Literal["ct_clip", "hlip"]

_SHARED: dict[str, tuple[str, ...]] = {
    "Cardiomegaly": ("cardiomegaly",),
    "Pericardial effusion": ("pericardial_effusion",),
    "Hiatal hernia": ("hernia",),
    "Emphysema": ("emphysema",),
    "Atelectasis": ("atelectasis",),
    "Lung nodule": ("nodule", "nodulegr1cm"),
    "Lung opacity": ("opacity",),
    "Pulmonary fibrotic sequela": ("fibrosis",),
    "Pleural effusion": ("pleural_effusion",),
    "Peribronchial thickening": ("bronchial_wall_thickening",),
    "Consolidation": ("consolidation",),
    "Bronchiectasis": ("bronchiectasis",),
    "Interlobular septal thickening": ("septal_thickening",),
}
_DEVICES = ("catheter_or_port", "chest_tube", "clip", "gi_tube", "hardware", "pacemaker_or_defib", "stent", "tracheal_tube")

VARIANTS: dict[Variant, dict[str, tuple[str, ...]]] = {
    # `calcification` is one label there and has no single counterpart among the 18.
    "ct_clip": {**_SHARED, "Lymphadenopathy": ("lymphadenopathy",), "Medical material": _DEVICES},
    "hlip": {
        **_SHARED,
        "Arterial wall calcification": ("calcification",),
        "Coronary artery wall calcification": ("calcification",),
    },
}
"""Reading -> label -> abnormalities, of which one at any place is enough. A label that is not there is not known."""


def label_source(variant: Variant) -> str:
    """What the index says of labels made by `labels_of`."""
    return f"rad_chestct/{variant}/{VERSION}"


def labels_of(abnormalities: Mapping[str, int], variant: Variant) -> tuple[int, ...]:
    """The 18 labels (1, 0, -1 = not known) of abnormality -> 1 or 0; a label is known when one of its abnormalities is."""
    table = VARIANTS[variant]
    known = ([abnormalities[name] for name in table.get(label, ()) if name in abnormalities] for label in LABELS)
    return tuple(max(values, default=-1) for values in known)
