"""Custom data: any folder of scan files or DICOM series, with an optional table of reports and labels."""

from collections import defaultdict
from pathlib import Path, PurePosixPath

from mg3d.preparation.quarantine import Quarantined
from mg3d.preparation.readers.registry import reader_of
from mg3d.preparation.records import Inventory, VolumeRecord
from mg3d.preparation.sources.listing import ListedVolume, read_listing, strip_suffix
from mg3d.preparation.sources.options import SourceOptions
from mg3d.preparation.sources.pseudonyms import pseudonym, read_salt
from mg3d.preparation.split import draw_val_patients

DATASET = "custom"


def list_custom(root: Path, options: SourceOptions) -> Inventory:
    """List the volumes of `options.table`, or without a table all volumes below `root`, sorted by path.

    Volumes without a split are train. If no row has the split val, val is drawn from the patients of train.

    Raises:
        FileNotFoundError: no volume, or no table.
        ValueError: the table cannot be read or names no file, or a patient is in two splits.
    """
    listing = read_listing(root, options.table)
    salt = None if options.keep_ids else read_salt(options.out / f"{DATASET}_salt.txt")

    def make_id(kind: str, name: str) -> str:
        return f"{DATASET}/{name if salt is None else pseudonym(f'{kind}/{name}', salt)}"

    inventory = Inventory(root, notes=list(listing.notes), hides_files=salt is not None)
    split_of = _assign_splits(listing.volumes, options, inventory.notes)
    names = _unique_names([volume.path for volume in listing.volumes])
    n_split, n_study = defaultdict(int), defaultdict(int)
    for volume in sorted(listing.volumes, key=lambda volume: volume.path):
        volume_id = make_id("volume", names[volume.path])
        if code := volume.quarantine_code:
            inventory.quarantined.append(Quarantined(volume_id, DATASET, "scan", code, row=volume.row))
            continue
        split = split_of[volume.patient]
        n_split[split] += 1
        if options.limit is not None and n_split[split] > options.limit:
            continue
        n_study[volume.study] += 1
        inventory.records.append(
            VolumeRecord(
                volume_id=volume_id,
                study_id=make_id("study", volume.study),
                patient_id=make_id("patient", volume.patient),
                dataset=DATASET,
                official_split=volume.split or "none",
                split=split,
                reconstruction=n_study[volume.study],
                findings=volume.findings,
                impression=volume.impression,
                files=(str(volume.path),),
                source=volume_id,
                reader=reader_of(volume.path) or "dicom",
                row=volume.row,
                labels=volume.labels,
                label_source="table" if listing.has_labels else "none",
            )
        )
    n_unreported = sum(record.findings is None and record.impression is None for record in inventory.records)
    if n_unreported:
        inventory.notes.append(f"custom: {n_unreported} of {len(inventory.records)} volumes have no report")
    if any(record.reader == "dicom" and (root / record.files[0]).is_dir() for record in inventory.records):
        inventory.notes.append(
            "custom: of a folder with several DICOM series, the axial series with most slices is used, then the thinnest; "
            "prepro/index_dicom.py --choose prefers the chest"
        )
    return inventory


def _assign_splits(volumes: list[ListedVolume], options: SourceOptions, notes: list[str]) -> dict[str, str]:
    """Patient -> split."""
    splits = defaultdict(set)
    for volume in volumes:
        if not volume.quarantine_code:
            splits[volume.patient].add(volume.split or "train")
    n_mixed = sum(len(values) > 1 for values in splits.values())
    if n_mixed:
        raise ValueError(f"custom: {n_mixed} patients are in more than one split; give all volumes of a patient the same `split`")
    split_of = {patient: next(iter(values)) for patient, values in sorted(splits.items())}
    if "val" in split_of.values():
        return split_of
    train = [patient for patient, split in split_of.items() if split == "train"]
    val, note = draw_val_patients(train, options.val_patients, options.seed)
    notes += [f"custom: {note}"] if note else []
    return split_of | dict.fromkeys(val, "val")


def _unique_names(paths: list[PurePosixPath]) -> dict[PurePosixPath, str]:
    """Path -> name for its id: without suffix, unless a folder or `.nii.gz` of that name takes precedence."""
    owner: dict[str, PurePosixPath] = {}
    for path in sorted(paths, key=lambda path: (reader_of(path) is not None, not path.name.lower().endswith(".gz"), path)):
        owner.setdefault(strip_suffix(path), path)
    return {path: strip_suffix(path) if owner[strip_suffix(path)] == path else str(path) for path in paths}
