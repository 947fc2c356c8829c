"""Faults that take more than one file or table: copies of patients, pairs of scans, cases of CTRG."""

import io
import json
from collections.abc import Callable, Sequence

from PIL import Image

from mg3d.files import write_bytes, write_json
from mg3d.glossary import LABELS
from mg3d.phantom import ct_rate, ctrg
from mg3d.phantom.generate import CTRG, Study, draw, intercept_of, kernels, read_truth, render, study_truth
from mg3d.phantom.site import Site, names

TAKEN_AWAY = tuple(label for label in LABELS if label != "Cardiomegaly")
"""Findings that can be taken away; the heart is drawn with the body."""
GAP = 3
"""Slices that are missing in the middle of a case."""


def duplicate_pixels(site: Site, victims: Sequence[Study]) -> list[str]:
    """A patient of valid has, with a report of their own, the very voxels of a patient of train."""
    (name, volume), other = site.first_volume(victims[0]), names(victims[1])[0]
    ct_rate.write_fixed(site.only_path(other), volume, site.voxel_mm(victims[0]))
    depth, height, width = volume.shape
    site.set_cells("metadata", {other: {"NumberofSlices": depth, "Rows": height, "Columns": width}})
    return [name, other]


def patient_in_two_splits(site: Site, victims: Sequence[Study]) -> list[str]:
    """All scans of a patient of train are in valid once more, as a patient of another number."""
    number, written = site.settings.valid_patients + 1, []
    for study in site.scans(victims[0]):
        volumes = site.volumes(study)
        twins = {name: name.replace(f"train_{study.patient}_", f"valid_{number}_", 1) for name in volumes}
        for name, volume in volumes.items():
            ct_rate.write_fixed(site.only_path(twins[name]), volume, site.voxel_mm(study))
        for kind in ("reports", "metadata", "labels"):
            rows = {twin: {**site.row(kind, name), "VolumeName": f"{twin}.nii.gz"} for name, twin in twins.items()}
            site.add_rows(kind, rows)
        written += [*twins, *twins.values()]
    return written


def counterfactual_pair(site: Site, victims: Sequence[Study]) -> list[str]:
    """One more scan of a patient: the same body, noise and findings, but for one finding that can be seen in the first scan."""
    study = victims[0]
    label = removable(study)
    case = draw(study, without=label)
    truth = study_truth(study, case)
    scan = f"train_{study.patient}_{'abc'[len(site.scans(study))]}"
    written = {}
    for number, (volume, sharp) in enumerate(zip(render(study, case), kernels(study), strict=True), 1):
        name = f"{scan}_{number}"
        ct_rate.write_fixed(site.only_path(name), volume, case.voxel_mm)
        written[name] = ct_rate.metadata_row(name, truth, sharp=sharp, intercept=intercept_of(study))
    site.add_rows("metadata", written)
    site.add_rows("reports", {name: ct_rate.report_row(name, truth) for name in written})
    site.add_rows("labels", {name: {k: int(v) for k, v in truth["present"].items()} for name in written})
    truth_path = site.root / "truth" / "ct_rate" / f"{scan}.json"
    write_json(truth_path, {**truth, "study": scan, "counterfactual_of": study.name, "taken_away": label})
    return [*names(study), *written]


def removable(study: Study) -> str | None:
    """The first finding of a study that can be seen and taken away."""
    visible = read_truth(study)["visible"]
    return next((label for label in TAKEN_AWAY if visible[label]), None)


def ctrg_gap(site: Site, victims: Sequence[Study]) -> list[str]:
    """Three slices in the middle of a case are neither in its folder nor in the annotation; the numbers tell it."""
    case, count = victims[0], read_truth(victims[0])["shape"][0]
    missing = {ctrg.slice_name(case.patient, place) for place in range(count // 2, count // 2 + GAP)}
    name = names(case)[0]
    for slice_name in missing:
        (site.root / "ctrg" / ctrg.SLICES / name / slice_name).unlink(missing_ok=True)
    path = site.root / "ctrg" / ctrg.ANNOTATIONS
    cases = json.loads(path.read_text(encoding="utf-8"))
    for item in cases:
        item["image_path"] = [file for file in item["image_path"] if file.rsplit("/", 1)[-1] not in missing]
    write_json(path, cases)
    return [name]


def ctrg_mixed_sizes(site: Site, victims: Sequence[Study]) -> list[str]:
    """One slice is smaller than the others."""

    def smaller(content: bytes) -> bytes:
        with Image.open(io.BytesIO(content)) as picture:
            small = picture.resize((picture.width - 4, picture.height - 2))
        encoded = io.BytesIO()
        small.save(encoded, "JPEG", quality=92)
        return encoded.getvalue()

    return _spoil_slice(site, victims[0], smaller)


def ctrg_truncated_jpeg(site: Site, victims: Sequence[Study]) -> list[str]:
    """The second half of one slice's file is missing."""
    return _spoil_slice(site, victims[0], lambda content: content[: len(content) // 2])


def _spoil_slice(site: Site, case: Study, spoil: Callable[[bytes], bytes]) -> list[str]:
    """Changes the middle slice of a case, after it was written anew."""
    assert case.group == CTRG
    name, volume = site.first_volume(case)
    ctrg.write_slices(site.root / "ctrg", case.patient, site.settings.seed, volume)
    path = site.root / "ctrg" / ctrg.SLICES / name / ctrg.slice_name(case.patient, len(volume) // 2)
    write_bytes(path, spoil(path.read_bytes()))
    return [name]
