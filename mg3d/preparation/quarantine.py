"""Volumes that cannot be used, the reasons, and the file that lists them."""

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mg3d.files import replacing

REASONS: dict[str, str] = {
    "not_downloaded": "listed in the tables, but not downloaded yet",
    "download_failed": "the download failed; the next run tries again",
    "missing_file": "listed in the tables, but the file is missing",
    "unreadable": "the file or folder exists, but cannot be read (permissions, disk error)",
    "gzip_truncated": "the compressed file is truncated or damaged",
    "jpeg_truncated": "a slice is damaged",
    "nifti_header": "the header cannot be read",
    "unknown_format": "unsupported format: name a NIfTI file, a folder of DICOM slices or one of its slices",
    "not_3d": "not a 3D array of scalars",
    "too_large": "larger than the supported maximum",
    "nan_spacing": "no voxel spacing in the header or the metadata",
    "spacing_out_of_range": "implausible voxel spacing",
    "shape_mismatch": "size differs from the metadata, or between slices",
    "hu_ambiguous": "air is not near -1000 HU, as stored or after rescaling",
    "no_body": "no voxel above -300 HU",
    "constant_image": "all voxels are equal",
    "no_chest": "on the data set's list of volumes without a chest",
    "too_few_slices": "fewer slices than a chest CT has",
    "too_long": "scan length exceeds 1.5 m",
    "duplicate_row": "conflicting table rows for one volume",
    "nested_series": "a folder that includes another listed DICOM series: name one slice of each series in the table",
    "grey_range": "grey values below 0 or above 255",
    "image_damaged": "not a readable MetaImage or NRRD file",
    "archive_damaged": "the .zip archive is damaged or encrypted",
    "several_scans": "an archive with several volume files: unpack it",
    "array_damaged": "the .npz file is damaged or lacks the expected array",
    "dicom_damaged": "no DICOM file in the folder, or a slice that cannot be decoded",
    "codec_missing": "no installed package decodes the compression of the slices",
    "not_ct": "not single-frame CT slices",
    "several_studies": "DICOM series of several studies in one folder: list them with prepro/index_dicom.py",
    "no_axial_series": "only scouts, screen captures, reformatted views or maps of other units than HU",
    "missing_slices": "gaps between the slices of a series",
    "duplicate_slices": "different slices at one position",
    "slices_disagree": "slices of one series are not parallel or not aligned",
    "gantry_tilt": "axes are sheared by more than 45 degrees",
    "oblique": "axes are rotated too far from the patient axes",
    "report_missing": "neither findings nor impression",
    "oom": "not enough memory",
    "unknown": "unexpected error; detail is its type",
}
"""Code -> meaning."""
NOT_A_VOLUME = {"not_ct", "no_axial_series", "too_few_slices"}
"""Codes of series that are not a CT volume, such as localizers: excluded, but not a failure."""
RETRIED = {"download_failed"}
"""Codes that the next run tries again."""


class Refusal(Exception):
    """A volume cannot be used. `detail` never contains report text or file names."""

    def __init__(self, code: str, detail: str = "") -> None:
        if code not in REASONS:
            raise KeyError(f"unknown reason code {code!r}")
        super().__init__(code, detail)
        self.code, self.detail = code, detail

    @property
    def reason(self) -> str:
        """The meaning of the code, with the detail."""
        return REASONS[self.code] + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True)
class Quarantined:
    """One line of quarantine.jsonl."""

    volume_id: str
    dataset: str
    stage: str
    """scan (listing of tables and folders) or volume (reading of voxels)."""
    code: str
    detail: str = ""
    row: int = 0
    """Row of the table that names the volume, from 1; 0: no table."""


def read_quarantine(path: Path) -> list[Quarantined]:
    """The entries of a quarantine.jsonl, without incomplete lines; none if there is no file."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            entries.append(Quarantined(**json.loads(line)))
        except (json.JSONDecodeError, TypeError):
            continue
    return entries


def write_quarantine(path: Path, entries: Sequence[Quarantined], datasets: Collection[str]) -> None:
    """Replace the entries of `datasets` in quarantine.jsonl and keep those of other data sets. Invalid lines are dropped."""
    others = [entry for entry in read_quarantine(path) if entry.dataset not in datasets]
    merged = sorted([*others, *entries], key=lambda entry: (entry.dataset, entry.volume_id, entry.code))
    with replacing(path) as stream:
        stream.write("".join(json.dumps(asdict(entry), sort_keys=True) + "\n" for entry in merged).encode())


def counts(entries: Sequence[Quarantined]) -> dict[str, int]:
    """Code -> number of volumes, most frequent first."""
    return dict(Counter(entry.code for entry in entries).most_common())
