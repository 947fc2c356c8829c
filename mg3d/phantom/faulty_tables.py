"""Faults of CT-RATE's tables. Planting one once more changes nothing."""

import csv
import hashlib
import io
from collections.abc import Sequence

from mg3d.files import write_bytes
from mg3d.glossary import LABELS
from mg3d.phantom import ct_rate
from mg3d.phantom.generate import Study, read_truth
from mg3d.phantom.site import Rows, Site, names, stem

FLIPPED = 0.03
"""Share of the labels that are turned, of the scans that carry no other fault."""
ORPHAN = "train_99999_a_1"


def nan_spacing(site: Site, victims: Sequence[Study]) -> list[str]:
    """ZSpacing is empty, as pandas writes what is not a number."""
    return _set(site, "metadata", victims, {"ZSpacing": ""})


def shape_mismatch(site: Site, victims: Sequence[Study]) -> list[str]:
    """The metadata tell of another number of rows than the file has."""
    return _set(site, "metadata", victims, {"Rows": 777})


def ffs_row(site: Site, victims: Sequence[Study]) -> list[str]:
    """The patient lay feet first; the file is upright all the same, as in CT-RATE."""
    return _set(site, "metadata", victims, {"PatientPosition": "FFS"})


def blank_age(site: Site, victims: Sequence[Study]) -> list[str]:
    """No age."""
    return _set(site, "metadata", victims, {"PatientAge": ""})


def iop_spelling(site: Site, victims: Sequence[Study]) -> list[str]:
    """ImageOrientationPatient written in two other ways, of volumes whose headers are blank."""
    spellings = ("[1.0, 0.0, 0.0, 0.0, 1.0, 0.0]", "['1', '0', '0', '0', '1', '0']")
    return _respell(site, victims, "ImageOrientationPatient", spellings)


def xyspacing_spelling(site: Site, victims: Sequence[Study]) -> list[str]:
    """XYSpacing written in three other ways, of volumes whose headers are blank."""
    patterns = ("[{0},{0}]", "['{0}', '{0}']", "({0}, {0})")
    spellings = [pattern.format(site.voxel_mm(victim)) for pattern, victim in zip(patterns, victims, strict=True)]
    return _respell(site, victims, "XYSpacing", spellings)


def not_given(site: Site, victims: Sequence[Study]) -> list[str]:
    """Findings and impression are the words `Not given.`, for all reconstructions of a scan."""
    return _retell(site, victims[0], "Not given.", "Not given.")


def empty_report(site: Site, victims: Sequence[Study]) -> list[str]:
    """Findings and impression are empty, for all reconstructions of a scan."""
    return _retell(site, victims[0], "", "")


def duplicate_report_other_patient(site: Site, victims: Sequence[Study]) -> list[str]:
    """A patient of valid has the very report of a patient of train."""
    told = read_truth(victims[0])["report"]
    return names(victims[0]) + _retell(site, victims[1], told["findings"], told["impression"])


def two_rows(site: Site, victims: Sequence[Study]) -> list[str]:
    """The reports' table has a second, different row of the same volume."""
    name = names(victims[0])[0]
    other = {"Findings_EN": "Another report, of nobody knows whom.", "Impressions_EN": "Unclear."}

    def doubled(rows: Rows) -> Rows:
        mine = [row for row in rows if stem(row) == name]
        return [*rows, {**mine[0], **other}] if len(mine) == 1 else rows

    site.edit("reports", "train", doubled)
    return [name]


def orphan_label(site: Site, victims: Sequence[Study]) -> list[str]:
    """A row of labels for a volume that neither tree nor any other table knows."""
    site.add_rows("labels", {ORPHAN: dict.fromkeys(LABELS, 0)})
    return [ORPHAN]


def label_flip(site: Site, victims: Sequence[Study]) -> list[str]:
    """3 % of the labels of train say the opposite of the truth, alike for all reconstructions of a scan."""
    cells = {}
    for study in (scan for victim in victims for scan in site.scans(victim)):
        present = read_truth(study)["present"]
        turned = {label: int(not present[label]) for label in LABELS if _draw(study, label) < FLIPPED}
        cells |= dict.fromkeys(names(study), turned) if turned else {}
    if cells:
        site.set_cells("labels", cells)
    return list(cells)


def latin1_csv(site: Site, victims: Sequence[Study]) -> list[str]:
    """The reports of valid in Latin-1 instead of UTF-8, with one sign that tells the two apart."""
    path = site.table("reports", "valid")
    name = names(victims[0])[0]
    content = path.read_bytes()
    if "±".encode("latin-1") not in content.replace("±".encode(), b""):
        told = f"{read_truth(victims[0])['report']['findings']} The largest node measures 9 ± 1 mm."
        site.set_cells("reports", {name: {"Findings_EN": told}})
        write_bytes(path, path.read_text(encoding="utf-8").encode("latin-1"))
    return [name]


def swapped_columns(site: Site, victims: Sequence[Study]) -> list[str]:
    """In the reports of train the names of two columns are exchanged: VolumeName stands above the findings."""
    path = site.table("reports", "train")
    head, _, rest = path.read_text(encoding="utf-8").partition("\n")
    exchanged = {"VolumeName": "Findings_EN", "Findings_EN": "VolumeName"}
    line = io.StringIO()
    csv.writer(line).writerow(exchanged.get(column, column) for column in ct_rate.REPORT_COLUMNS)
    write_bytes(path, (line.getvalue().rstrip("\r\n") + ("\r" if head.endswith("\r") else "") + "\n" + rest).encode())
    return [path.relative_to(site.dataset).as_posix()]


def _set(site: Site, kind: str, victims: Sequence[Study], cells: dict[str, object]) -> list[str]:
    """Changes cells of the first volume of every victim."""
    chosen = [names(victim)[0] for victim in victims]
    site.set_cells(kind, dict.fromkeys(chosen, cells))
    return chosen


def _retell(site: Site, study: Study, findings: str, impression: str) -> list[str]:
    """Gives all volumes of a scan another report."""
    told = {"Findings_EN": findings, "Impressions_EN": impression}
    site.set_cells("reports", dict.fromkeys(names(study), told))
    return names(study)


def _respell(site: Site, victims: Sequence[Study], column: str, spellings: Sequence[str]) -> list[str]:
    """Moves volumes to the first release's tree, whose geometry the table alone tells, and writes a cell in another way."""
    chosen = {}
    for victim, spelling in zip(victims, spellings, strict=True):
        name, volume = site.first_volume(victim)
        ct_rate.write_raw(site.only_path(name, fixed=False), volume, -1024)
        chosen[name] = {column: spelling, "RescaleIntercept": -1024}
    site.set_cells("metadata", chosen)
    return list(chosen)


def _draw(study: Study, label: str) -> float:
    """A number in [0, 1) that belongs to one label of one scan."""
    return int(hashlib.sha256(f"{study.words}/{label}".encode()).hexdigest()[:12], 16) / 16**12
