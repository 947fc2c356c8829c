"""Convert raw chest CT data sets to Arrow files for pre-training. Run the same command again to resume."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mg3d.cli import ArgumentParser, positive_int

if TYPE_CHECKING:
    from mg3d.preparation.recipe import Recipe

OUT = Path("data/pretrain_arrows")
DATASETS = ("ct_rate", "ctrg", "rad_chestct", "custom")
PRIVATE = ("ctrg", "custom")
"""Data sets whose file names may be names of patients: no path in them is printed."""


def parse(arguments: Sequence[str], *, description: str, out: Path) -> argparse.Namespace:
    """Parses the command line into fields of `PrepareOptions` and `max_quarantine`."""
    parser = ArgumentParser(description=description)
    _add_data(parser, out)
    _add_voxels(parser)
    _add_scale(parser)
    values = parser.parse_args(arguments)
    values.roots = {name: root for name in DATASETS if (root := vars(values).pop(name)) is not None}
    cache = vars(values).pop("stream_cache") or values.out / "stream"
    if values.stream and "ct_rate" in values.roots:
        parser.error("use either --stream or --ct-rate; --stream-cache sets the folder of the downloads")
    values.stream = {"ct_rate": values.stream} if values.stream else {}
    values.roots |= dict.fromkeys(values.stream, cache)
    if not values.roots:
        parser.error("no data set: use --ct-rate, --ctrg, --rad-chestct or --custom ROOT, or --stream OWNER/NAME")
    if values.table and "custom" not in values.roots:
        parser.error("--table needs --custom ROOT, the folder that it describes")
    if values.val_patients < 0:
        parser.error("--val-patients must be at least 0")
    if not 0 <= values.max_quarantine <= 1:
        parser.error(f"--max-quarantine {values.max_quarantine:g}: expected a fraction between 0 and 1, such as 0.02")
    if values.ray_address and values.engine != "ray":
        parser.error("--ray-address needs --engine ray")
    try:
        values.recipe = _recipe(values)
    except ValueError as error:
        parser.error(str(error))
    return values


def _add_data(parser: argparse.ArgumentParser, out: Path) -> None:
    group = parser.add_argument_group("data (docs/data.md)")
    group.add_argument("--ct-rate", type=Path, metavar="ROOT", help="CT-RATE: the folder with dataset/ in it, or dataset/ itself")
    group.add_argument("--ctrg", type=Path, metavar="ROOT", help="CTRG-Chest: the folder of its JSON file and its scans")
    group.add_argument("--rad-chestct", type=Path, metavar="ROOT", help="Rad-ChestCT: the folder of its .npz files and tables")
    group.add_argument("--custom", type=Path, metavar="ROOT", help="your own data: a folder of scan files or DICOM series")
    group.add_argument(
        "--table", type=Path, metavar="FILE", help="reports and labels for --custom (CSV, Excel, JSON): docs/data.md"
    )
    group.add_argument("--keep-ids", action="store_true", help="use file and patient names of --custom as ids (default: hashes)")
    group.add_argument("--out", type=Path, default=out, metavar="FOLDER", help="output folder (default: %(default)s)")
    group.add_argument(
        "--val-patients", type=int, default=500, metavar="N",
        help="training patients that become the validation set, at most a tenth of them (default: %(default)s)",
    )  # fmt: skip
    group.add_argument("--seed", type=int, default=0, help="seed of the validation split (default: %(default)s)")
    group.add_argument(
        "--ctrg-split", choices=("resplit", "original"), default="resplit",
        help="CTRG: resplit draws val from train and tests on the rest; original uses the published split (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--limit", type=positive_int, metavar="N", help="use at most N volumes of each official split (default: all)"
    )
    group.add_argument(
        "--max-quarantine", type=float, default=0.02, metavar="FRACTION",
        help="exit with code 1 if a larger fraction of the volumes with raw files cannot be used; missing files and other "
        "exclusions by the tables are only reported (default: %(default)s)",
    )  # fmt: skip
    group.add_argument("--retry-quarantine", action="store_true", help="read quarantined volumes of finished shards again")


def _add_voxels(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("voxels (docs/data.md)")
    size = group.add_mutually_exclusive_group()
    size.add_argument(
        "--image-size", type=int, default=128, metavar="S", help="S x 3S/4 x S voxels, z y x (default: %(default)s)"
    )
    size.add_argument("--size", type=int, nargs=3, metavar=("Z", "Y", "X"), help="any other size in voxels, multiples of 32")
    group.add_argument(
        "--crop", choices=("fraction", "body", "mm"), default="fraction",
        help="fraction: the central part of every axis, as in the paper; body: the body's bounding box and 10 mm; mm: a box of "
        "--crop-mm around the body's center (default: %(default)s)",
    )  # fmt: skip
    group.add_argument("--crop-mm", type=float, nargs=3, metavar=("Z", "Y", "X"), help="size in mm of the box of --crop mm")
    group.add_argument(
        "--resize", choices=("antialias", "trilinear"), default="antialias",
        help="trilinear: without antialiasing, as in the original code (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--dtype", choices=("int16", "uint8"), default="int16",
        help="int16: HU; uint8: 256 levels of --uint8-window, half the disk space (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--uint8-window", type=float, nargs=2, default=(-1000.0, 1000.0), metavar=("LOW", "HIGH"),
        help="HU of 0 and 255 for --dtype uint8 (default: -1000 1000)",
    )  # fmt: skip
    group.add_argument(
        "--hu", choices=("infer", "trust"), default="infer",
        help="--custom files other than DICOM; infer: refuse a volume whose air is not near -1000 HU; trust: values are HU, "
        "as of scans without air (cardiac, small field of view, cropped to the body) (default: %(default)s)",
    )  # fmt: skip


def _add_scale(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "large data sets (docs/prepare.md)",
        "A worker holds one volume at a time: the file, its voxels and the resized copy. Memory scales with the largest volume, "
        "not with their number. The peak of a worker is printed at the end.",
    )
    group.add_argument("--workers", type=positive_int, default=1, metavar="N", help="parallel processes (default: %(default)s)")
    group.add_argument(
        "--worker", type=_worker, metavar="I/N", help="this is run I (0 to N - 1) of N concurrent runs in the same output folder"
    )
    group.add_argument("--engine", choices=("local", "ray"), default="local", help="what runs the workers (default: %(default)s)")
    group.add_argument("--ray-address", metavar="ADDRESS", help="address of a Ray cluster, e.g. auto (default: this machine)")
    group.add_argument(
        "--stream", metavar="OWNER/NAME",
        help="download CT-RATE from the Hugging Face Hub during the preparation, instead of --ct-rate",
    )  # fmt: skip
    group.add_argument("--stream-cache", type=Path, metavar="FOLDER", help="folder of the downloads (default: stream/ in --out)")
    group.add_argument(
        "--stream-budget", type=_gigabytes, default=50 * 10**9, metavar="GB",
        help="maximum size of the downloaded volumes on disk, over all workers of this run (default: 50)",
    )  # fmt: skip
    group.add_argument("--compression", choices=("none", "zstd"), default="none", help="of the shards (default: %(default)s)")
    group.add_argument("--verify", action="store_true", help="check the SHA-256 of finished shards and rebuild damaged ones")


def _worker(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 0 to N - 1, e.g. 0/8 to 7/8")
    return int(index), int(count)


def _gigabytes(text: str) -> int:
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = 0.0
    if not 0 < gigabytes < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of gigabytes")
    return int(gigabytes * 1e9)


def _recipe(values: argparse.Namespace) -> "Recipe":
    """Moves the voxel options from `values` into a recipe."""
    from mg3d.preparation.recipe import Recipe
    from mg3d.settings.schema import volume_shape

    names = ("image_size", "size", "crop", "crop_mm", "resize", "dtype", "uint8_window", "hu", "compression")
    options = {name: tuple(value) if isinstance(value := vars(values).pop(name), list) else value for name in names}
    image_size, size = options.pop("image_size"), options.pop("size")
    if any(side < 32 or side % 32 for side in size or (image_size,)):
        raise ValueError(f"size {size or image_size}: every side must be a positive multiple of 32")
    return Recipe(shape=volume_shape(image_size, size or ()), **options)


def main(arguments: Sequence[str], *, description: str = __doc__, out: Path = OUT) -> int:
    """Runs the preparation. Exit codes as in docs/prepare.md."""
    options = vars(parse(arguments, description=description, out=out))
    from concurrent.futures.process import BrokenProcessPool

    from mg3d.datasets.integrity import LeakError
    from mg3d.files import is_full_disk
    from mg3d.preparation.run import PrepareOptions, prepare
    from mg3d.preparation.streaming import HubAccessError

    allowed, out, roots = options.pop("max_quarantine"), options["out"], options["roots"]
    try:
        summary = prepare(PrepareOptions(**options))
    except KeyboardInterrupt:
        return _fail("stopped; finished shards are kept, run the command again to resume", 130)
    except BrokenProcessPool:
        return _fail("a worker was killed, probably out of memory; run again with fewer --workers", 1)
    except (HubAccessError, ModuleNotFoundError) as error:
        return _fail(str(error), 2)
    except (LeakError, ConnectionError) as error:
        return _fail(str(error), 1)
    except (FileNotFoundError, NotADirectoryError, PermissionError, ValueError) as error:
        return _fail(_message(error, roots), 2)
    except OSError as error:
        full = f"the disk of {out} is full; finished shards are kept, free some space and run the command again"
        return _fail(full if is_full_disk(error) else _message(error, roots), 1)
    print("\n".join(summary.lines()))
    if summary.failed_fraction > allowed or summary.failed_fraction == 1:
        return _fail(
            f"{summary.failed_fraction:.1%} of the volumes with raw files could not be used, allowed are {allowed:.1%} "
            f"(--max-quarantine); see {out / 'quarantine.jsonl'}",
            1,
        )
    return 0


def _message(error: Exception, roots: Mapping[str, Path]) -> str:
    """The error as one sentence, without paths below folders whose file names may be names of patients."""
    if not isinstance(error, OSError) or error.filename is None:
        return str(error)
    path = Path(str(error.filename)).absolute()
    private = next((name for name in PRIVATE if name in roots and path.is_relative_to(roots[name].absolute())), None)
    if private is None:
        return f"{error.filename}: {error.strerror}; finished shards are kept, fix this and run the command again"
    return (
        f"a file in {roots[private]} cannot be read ({type(error).__name__}: {error.strerror}); make all files in that folder "
        "readable"
    )


def _fail(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
