"""Checks of measured voxels: what cannot be used, intensities, orientation, heads among chests."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np

from mg3d.doctor.catalogue import ArrowPlace, Catalogue, RawPlace
from mg3d.doctor.findings import Finding, examples, number
from mg3d.doctor.measure import VolumeFacts
from mg3d.doctor.probe import Head, usual_axes
from mg3d.preparation.hounsfield import PADDING_HU
from mg3d.preparation.quarantine import REASONS, Quarantined

CODE_OF_REASON = {
    "gzip_truncated": "truncated_gzip",
    "no_chest": "no_chest_listed",
}
"""Reason of the quarantine -> code of the finding, where they differ."""
CHEST_AIR = 0.05
"""Least share of air in the body of a chest, see `measure.air_inside`; synthetic chests have at least 0.10, heads 0."""
NO_AIR_HU, ALL_AIR_HU = -700.0, -500.0
"""A first percentile above, or a 95th below, is that of no chest in HU."""
MANY = 0.05
"""Share of a data set's volumes from which on a fault is the rule, not the exception."""


def check_refused(entries: Iterable[Quarantined]) -> list[Finding]:
    """One finding per reason for which volumes are left out."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for entry in entries:
        by_reason[entry.code].append(entry.volume_id)
    return [
        Finding(
            code=CODE_OF_REASON.get(reason, reason),
            severity="fact" if reason == "no_chest" else "warning",
            found=f"{number(len(names), 'volume')} left out: {REASONS.get(reason, reason)} ({examples(names)})",
            expected="every listed volume can be used",
            action="nothing: they stay out" if reason == "no_chest" else _mend(reason),
            volumes=tuple(sorted(names)),
        )
        for reason, names in sorted(by_reason.items())
    ]


def _mend(reason: str) -> str:
    torn = {"missing_file", "missing_slices", "gzip_truncated", "jpeg_truncated", "nifti_header", "not_3d", "constant_image"}
    if reason in torn:
        return "download them again; the preparation leaves them out"
    if reason in {"nan_spacing", "shape_mismatch", "spacing_out_of_range", "hu_ambiguous"}:
        return "compare the file with its row of the metadata; the preparation leaves them out"
    return "nothing, if these can be missed; the preparation leaves them out"


def check_padding(catalogue: Catalogue, facts: Mapping[int, VolumeFacts]) -> list[Finding]:
    """Volumes with a scanner's filling outside of its field of view; harmless when it is left out of statistics."""
    padded = [place for place, fact in facts.items() if fact.padding > 0]
    if not padded:
        return []
    share = float(np.mean([facts[place].padding for place in padded]))
    names = names_of(catalogue, padded)
    return [
        Finding(
            code="padding_8192",
            severity="fact",
            found=f"{number(len(names), 'volume')} filled with less than {PADDING_HU} HU outside the field of view, "
            f"{share:.1%} of their voxels on average ({examples(names)})",
            action="nothing: it is clipped, and no rule here counts it as air",
            volumes=names,
            values={"share": share},
        )
    ]


def check_fixed_in_raw_tree(catalogue: Catalogue, facts: Mapping[int, VolumeFacts]) -> list[Finding]:
    """Volumes in HU that lie where scanner values are expected: the table's intercept would be applied to them twice."""
    found = [
        place
        for place, fact in facts.items()
        if isinstance(where := catalogue.places[place], RawPlace)
        and where.record.dataset == "ct_rate"
        and where.record.files[0].split("/")[0] in {"train", "valid"}
        and fact.hu_source == "already_hu"
    ]
    names = names_of(catalogue, found)
    if not names:
        return []
    return [
        Finding(
            code="fixed_in_raw_tree",
            severity="warning",
            found=f"{number(len(names), 'volume')} of the first release's tree already in HU ({examples(names)})",
            expected="scanner values, which the metadata's intercept turns into HU",
            action="nothing here: the preparation decides by where air lies; other programs would turn them to air",
            volumes=names,
        )
    ]


def check_hu(catalogue: Catalogue, facts: Mapping[int, VolumeFacts]) -> list[Finding]:
    """Stored volumes whose numbers are no HU of a chest: never rescaled (no air) or rescaled twice (all air)."""
    hu = {place: fact for place, fact in facts.items() if fact.unit == "hu" and not fact.refused}
    findings = []
    for code, wrong, what in (
        ("not_rescaled", [place for place, fact in hu.items() if fact.low > NO_AIR_HU], "without any air"),
        ("double_rescaled", [place for place, fact in hu.items() if fact.high < ALL_AIR_HU], "of nothing but air"),
    ):
        names = names_of(catalogue, wrong)
        if names:
            findings.append(
                Finding(
                    code=code,
                    severity="blocking" if len(names) > MANY * len(hu) else "warning",
                    found=f"{number(len(names), 'volume')} {what} ({examples(names)})",
                    expected="air near -1000 HU and tissue near 40 HU in every chest",
                    action="see their pictures; if the intercept is applied wrongly, prepare them anew",
                    volumes=names,
                )
            )
    return findings


def check_chest(catalogue: Catalogue, facts: Mapping[int, VolumeFacts]) -> list[Finding]:
    """Volumes with too little air inside the body for a chest."""
    usable = [place for place, fact in facts.items() if fact.unit == "hu" and not fact.refused and fact.high >= ALL_AIR_HU]
    names = names_of(catalogue, [place for place in usable if facts[place].inside_air < CHEST_AIR])
    if not names:
        return []
    return [
        Finding(
            code="head_scan",
            severity="blocking" if len(names) > MANY * len(usable) else "warning",
            found=f"{number(len(names), 'volume')} with less than {CHEST_AIR:.0%} air inside the body ({examples(names)})",
            expected="lungs in every volume",
            action="look at their pictures; put heads and abdomens on the list of volumes without a chest",
            volumes=names,
        )
    ]


def check_orientation(catalogue: Catalogue, heads: Mapping[int, Head]) -> list[Finding]:
    """Files whose axes run in another direction than most; they are turned upright, so that only a lying header does harm."""
    usual = usual_axes(list(heads.values()))
    names = names_of(catalogue, [place for place, head in heads.items() if head.axes not in {"", usual}])
    if not names:
        return []
    return [
        Finding(
            code="orientation",
            severity="warning",
            found=f"{number(len(names), 'file')} with another orientation than {usual} ({examples(names)})",
            expected=f"{usual}, as in the other files",
            action="look at their pictures: they are turned by their header, and upside down if that is wrong",
            volumes=names,
        )
    ]


def check_unusable(catalogue: Catalogue, facts: Mapping[int, VolumeFacts]) -> list[Finding]:
    """Volumes that turned out unusable when their voxels were read."""
    entries = [
        Quarantined(catalogue.rows["volume_id"][place], catalogue.rows["dataset"][place], "volume", fact.refused, fact.detail)
        for place, fact in facts.items()
        if fact.refused
    ]
    findings = check_refused(entries)
    stored = isinstance(catalogue.places[next(iter(facts))], ArrowPlace) if facts else False
    return [_as_blocking(finding) if stored else finding for finding in findings]


def _as_blocking(finding: Finding) -> Finding:
    action = "the shard is damaged: run the preparation again"
    return Finding(**{**vars(finding), "severity": "blocking", "action": action})


def names_of(catalogue: Catalogue, places: Iterable[int]) -> tuple[str, ...]:
    """Ids of the volumes at places, sorted."""
    ids = catalogue.rows["volume_id"]
    return tuple(sorted(str(ids[place]) for place in places))
