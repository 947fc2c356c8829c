"""Words in DICOM headers that say which part of the body a series shows, what kind of image it is, and how sharp its kernel is.

Descriptions are free text and may name a person. Only the words of these tables leave this module.
"""

import re
from collections.abc import Iterable, Mapping

BODY_PARTS: dict[str, tuple[str, ...]] = {
    "chest": ("chest", "thorax", "thorac", "lung", "pulm", "hrct", "torax", "poumon", "brust", "cap", "tap"),
    "heart": ("heart", "cardi", "coronary", "koronar", "herz", "coeur", "calcium", "cascore"),
    "abdomen": ("abd", "abdom", "liver", "leber", "kidney", "renal", "pancrea", "bauch", "cap", "tap"),
    "pelvis": ("pelv", "becken", "hip", "cap", "tap"),
    "head": ("head", "brain", "skull", "neuro", "crani", "kopf", "schaedel", "sinus", "orbit", "temporal", "tete"),
    "neck": ("neck", "hals", "larynx", "thyroid"),
    "spine": ("spine", "lumbar", "cervical", "sacr", "wirbel"),
    "limb": ("knee", "foot", "ankle", "shoulder", "elbow", "wrist", "hand", "extremity", "femur", "leg", "arm"),
}
"""Part -> words in a body part or description. A word of up to three letters must match a whole word, a longer one its start."""
KINDS: dict[str, tuple[str, ...]] = {
    "localizer": ("localizer", "scout", "topogram", "surview", "scanogram"),
    "dose report": ("dose report", "dose info", "dose summary", "patient protocol", "screen save"),
    "bolus tracking": ("bolus track", "monitor", "premonitor", "smartprep", "smart prep", "sureprep", "test bolus"),
    "mip": ("mip", "maximum intensity", "max ip"),
    "minip": ("minip", "min ip", "minimum intensity"),
    "mpr": ("mpr", "cor", "coronal", "sag", "sagittal", "oblique", "reformat", "curved"),
    "rendering": ("vrt", "3d", "volume rendering", "ssd", "cad", "perfusion", "subtract", "iodine", "mono e"),
}
"""Kind of a series that is not an ordinary reconstruction -> words in its image type or description."""
_WHOLE_WORD = 3
_COMPOUND = re.compile(r"(chest|thorax|abdomen|abd|head|neck)(?=[a-z]{3})")
"""Body parts written as one word, such as CHESTABDPELVIS."""
_SIEMENS = re.compile(r"^[a-z]{1,2}(\d{2})[a-z]?\d?\b")
_CANON = re.compile(r"^fc ?(\d{2})")
_SHARP_WORDS = ("lung", "bone", "sharp", "edge", "detail", "chest", "hrct", "ultra", "yb", "yc", "yd", "ya", "d", "e", "l")
_SOFT_WORDS = ("standard", "soft", "smooth", "std", "a", "b", "c")
_SHARP_FROM, _CANON_SHARP_FROM = 50, 30


def find_words(texts: Iterable[str], table: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Names of the table with a word in the first text that has any."""
    for text in texts:
        plain = " " + re.sub(r"[^a-z0-9]+", " ", _COMPOUND.sub(r"\1 ", text.lower())) + " "
        if found := [name for name, words in table.items() if any(_has_word(plain, word) for word in words)]:
            return found
    return []


def _has_word(plain: str, word: str) -> bool:
    return (f" {word} " if len(word) <= _WHOLE_WORD else f" {word}") in plain


def kernel_class(kernel: str) -> str:
    """soft, sharp, or "" for an unknown kernel: by the number of Siemens (B70f, Br40) and Canon (FC51), else by its name."""
    plain = kernel.lower().strip()
    if match := _CANON.match(plain):
        return "sharp" if int(match[1]) >= _CANON_SHARP_FROM else "soft"
    if match := _SIEMENS.match(plain):
        return "sharp" if int(match[1]) >= _SHARP_FROM else "soft"
    words = plain.replace("_", " ").split()
    if any(word in _SHARP_WORDS for word in words):
        return "sharp"
    return "soft" if any(word in _SOFT_WORDS for word in words) else ""
