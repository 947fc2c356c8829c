"""Volumes that are left out, why, and the file that lists them."""

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mg3d.files import replacing

REASONS: dict[str, str] = {
    "not_downloaded": "listed, and nothing of it is there yet",
    "download_failed": "could not be fetched; tried again by the next run",
    "missing_file": "listed, but the file is not there",
    "unreadable": "the file or folder is there, but this program may not or cannot read it",
    "gzip_truncated": "the compressed file ends early or is damaged",
    "jpeg_truncated": "a slice is damaged",
    "nifti_header": "the header cannot be read",
    "unknown_format": "not a format that is read here: name a NIfTI file, a folder of DICOM slices or one of its slices",
    "not_3d": "not three axes",
    "too_large": "more voxels than a CT has",
    "nan_spacing": "neither header nor metadata give a spacing",
    "spacing_out_of_range": "a spacing that no CT has",
    "shape_mismatch": "another size than the metadata say, or slices of different size",
    "hu_ambiguous": "air lies at -1000 HU neither as stored nor with the metadata's slope and intercept",
    "no_body": "nothing that a crop around the body could be laid around",
    "constant_image": "every voxel is the same",
    "no_chest": "on the data set's own list of volumes without a chest",
    "too_few_slices": "fewer slices than a chest needs",
    "too_long": "longer than a person",
    "duplicate_row": "rows of one volume that say different things",
    "grey_range": "grey values below 0 or above 255",
    "mha_damaged": "the MetaImage file is damaged, or its voxels lie elsewhere",
    "array_damaged": "the .npz file is damaged, or holds no such array",
    "dicom_damaged": "no DICOM file in the folder, or one whose voxels cannot be decoded",
    "codec_missing": "no installed package decodes the compression; pip install -e '.[dicom]'",
    "not_ct": "DICOM of another kind than single-frame CT slices",
    "no_axial_series": "scouts, captures or reformatted views only",
    "missing_slices": "gaps between the slices of a series",
    "duplicate_slices": "different slices at one position",
    "slices_disagree": "slices of one series point in different directions or do not lie in a row",
    "gantry_tilt": "slices or axes are sheared, as by a tilted gantry",
    "oblique": "axes are rotated away from the patient axes",
    "report_missing": "neither findings nor impression",
    "oom": "not enough memory",
    "unknown": "an error that has no code yet; detail names its type",
}
"""Code -> meaning."""
NOT_COUNTED = {"no_chest", "not_downloaded"}
"""Codes that are expected and do not count towards the allowed share."""
TRIED_AGAIN = {"download_failed"}
"""Codes that the next run does not take as final."""


class Refusal(Exception):
    """A volume cannot be used. `detail` holds numbers, never text of a report and never a file name."""

    def __init__(self, code: str, detail: str = "") -> None:
        if code not in REASONS:
            raise KeyError(f"no reason code {code!r}")
        super().__init__(code, detail)
        self.code, self.detail = code, detail


@dataclass(frozen=True)
class Quarantined:
    """One line of quarantine.jsonl."""

    volume_id: str
    dataset: str
    stage: str
    """scan (tables and folders) or volume (the voxels)."""
    code: str
    detail: str = ""


def write_quarantine(path: Path, entries: Sequence[Quarantined], datasets: Collection[str]) -> None:
    """Replaces the lines of `datasets` in quarantine.jsonl and keeps those of other data sets; a torn line is dropped."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            entry = Quarantined(**json.loads(line))
        except (json.JSONDecodeError, TypeError):
            continue
        kept += [] if entry.dataset in datasets else [entry]
    everything = sorted([*kept, *entries], key=lambda entry: (entry.dataset, entry.volume_id, entry.code))
    with replacing(path) as stream:
        stream.write("".join(json.dumps(asdict(entry), sort_keys=True) + "\n" for entry in everything).encode())


def counts(entries: Sequence[Quarantined]) -> dict[str, int]:
    """Code -> number, most frequent first."""
    return dict(Counter(entry.code for entry in entries).most_common())
