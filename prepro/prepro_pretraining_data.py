"""Raw CT folders -> Arrow files for pre-training (docs/data.md). Run it again to go on where it ended."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from mg3d.checkpoints.command import Parser
from mg3d.datasets.integrity import LeakError
from mg3d.datasets.schema import DATASETS
from mg3d.files import is_full_disk
from mg3d.preparation.recipe import Recipe
from mg3d.preparation.run import Options, prepare
from mg3d.preparation.stream_hubs import HubRefusedError
from mg3d.settings.schema import volume_shape

MEMORY = (
    "A worker holds one volume at a time: as it is stored in the file, its voxels, and what the resize makes of them. Its memory "
    "goes with the largest volume and not with their number; the most that any worker had is told at the end."
)

PRIVATE = ("ctrg", "custom")
"""Data sets whose names of files may be names of people."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line as values."""
    parser = Parser(description=__doc__)
    parser.add_argument("--ct-rate", type=Path, metavar="ROOT", help="folder that holds CT-RATE's dataset/, or is it")
    parser.add_argument("--ctrg", type=Path, metavar="ROOT", help="folder of CTRG-Chest's JSON and its slices or NIfTI")
    parser.add_argument("--rad-chestct", type=Path, metavar="ROOT", help="folder of Rad-ChestCT's arrays (.npz) and its tables")
    parser.add_argument("--custom", type=Path, metavar="ROOT", help="your own folder of NIfTI files or DICOM series")
    parser.add_argument("--table", type=Path, metavar="FILE", help="its CSV or JSON: volume, patient, split, findings, ...")
    parser.add_argument("--keep-ids", action="store_true", help="keep its names as ids; default: hashed")
    parser.add_argument("--out", type=Path, default=Path("data/pretrain_arrows"), help="(%(default)s)")
    parser.add_argument("--image-size", type=int, default=128, help="S of S x 3S/4 x S voxels z y x (%(default)s)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (%(default)s)")
    parser.add_argument("--val-patients", type=int, default=500, help="carved out of train, at most a tenth of it (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of that draw (%(default)s)")
    parser.add_argument(
        "--ctrg-split",
        choices=("resplit", "original"),
        default="resplit",
        help="CTRG: resplit draws val from train, the rest is test; original: as published (default: %(default)s)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="at most N volumes of each official split")
    parser.add_argument("--max-quarantine", type=float, default=0.02, help="share of volumes that may be left out (%(default)s)")
    parser.add_argument("--retry-quarantine", action="store_true", help="try again the shards that left volumes out")
    _add_recipe(parser)
    _add_scale(parser)
    values = parser.parse_args(arguments)
    values.roots = {name: root for name in DATASETS if (root := vars(values).pop(name)) is not None}
    cache = values.__dict__.pop("stream_cache") or values.out / "stream"
    if values.stream and "ct_rate" in values.roots:
        parser.error("--stream takes the place of --ct-rate; --stream-cache names the folder that the files pass through")
    values.stream = {"ct_rate": values.stream} if values.stream else {}
    values.roots |= dict.fromkeys(values.stream, cache)
    if not values.roots:
        parser.error("give a folder: --ct-rate, --ctrg, --rad-chestct or --custom ROOT, or --stream SOURCE")
    if values.table and "custom" not in values.roots:
        parser.error("--table describes the folder of --custom ROOT; give that too")
    if min(values.workers, values.val_patients + 1, 1 if values.limit is None else values.limit) < 1:
        parser.error("--workers and --limit start at 1, --val-patients at 0")
    if not 0 <= values.max_quarantine <= 1:
        parser.error(f"--max-quarantine {values.max_quarantine:g}: a share from 0 to 1 is expected, such as 0.02")
    if values.ray_address and values.engine != "ray":
        parser.error("--ray-address is for --engine ray; give that too")
    try:
        values.recipe = _recipe(values)
    except ValueError as error:
        parser.error(str(error))
    return values


def _add_scale(parser: argparse.ArgumentParser) -> None:
    """Options of docs/prepare.md."""
    group = parser.add_argument_group("at scale (docs/prepare.md)", MEMORY)
    group.add_argument("--worker", type=_share, metavar="I/N", help="this is one of N runs side by side, I = 0 to N - 1")
    group.add_argument("--engine", choices=("local", "ray"), default="local", help="what runs the --workers (%(default)s)")
    group.add_argument("--ray-address", metavar="ADDRESS", help="ray: the cluster, e.g. auto; default: this machine")
    group.add_argument("--stream", metavar="SOURCE", help="fetch CT-RATE meanwhile: owner/name on the hub, or a folder")
    group.add_argument("--stream-cache", type=Path, metavar="DIR", help="where its files lie until they are done (OUT/stream)")
    group.add_argument(
        "--stream-budget", type=_bytes, default=50 * 10**9, metavar="GB", help="most volumes on disk at a time, of this run (50)"
    )
    group.add_argument("--compression", choices=("none", "zstd"), default="none", help="of the shards (%(default)s)")
    group.add_argument("--verify", action="store_true", help="read finished shards, write anew those that are not as written")


def _share(word: str) -> tuple[int, int]:
    place, _, count = word.partition("/")
    if not (place.isdigit() and count.isdigit() and int(place) < int(count)):
        raise argparse.ArgumentTypeError(f"{word!r} is not I/N with I from 0 to N - 1, e.g. 0/8 to 7/8")
    return int(place), int(count)


def _bytes(word: str) -> int:
    try:
        gigabytes = float(word)
    except ValueError:
        gigabytes = 0.0
    if not 0 < gigabytes < float("inf"):
        raise argparse.ArgumentTypeError(f"{word!r} is no number of gigabytes above 0")
    return int(gigabytes * 1e9)


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    """How voxels are made (docs/data.md, From voxels to Arrow)."""
    group = parser.add_argument_group("voxels (docs/data.md)")
    group.add_argument("--size", type=int, nargs=3, metavar=("Z", "Y", "X"), help="voxels, in place of --image-size")
    group.add_argument("--crop", choices=("fraction", "body", "mm"), default="fraction", help="what is kept (%(default)s)")
    group.add_argument("--crop-mm", type=float, nargs=3, metavar=("Z", "Y", "X"), help="sides of the box of --crop mm")
    group.add_argument(
        "--resize", choices=("antialias", "compat"), default="antialias", help="compat: the original's (%(default)s)"
    )
    group.add_argument("--store", choices=("int16", "uint8"), default="int16", help="uint8: half the size (%(default)s)")
    group.add_argument(
        "--store-window",
        type=float,
        nargs=2,
        default=Recipe.store_window,
        metavar=("LO", "HI"),
        help="HU of 0 and 255 in uint8 (-1000 1000)",
    )


def _recipe(values: argparse.Namespace) -> Recipe:
    """Takes its own options out of `values`."""
    taken = {name: vars(values).pop(name) for name in ("size", "crop", "crop_mm", "resize", "store", "store_window")}
    size = taken.pop("size")
    if size and any(side < 32 or side % 32 for side in size):
        raise ValueError(f"--size {' '.join(map(str, size))}: every side must be a positive multiple of 32")
    lists = {name: tuple(value) if isinstance(value, list) else value for name, value in taken.items()}
    return Recipe(shape=tuple(size or volume_shape(values.image_size)), **lists)


def main(arguments: Sequence[str]) -> int:
    """Runs the preparation: 0 done, 1 done with faults or stopped, 2 not possible as asked."""
    chosen = vars(parse(arguments))
    allowed = chosen.pop("max_quarantine")
    options = Options(**chosen)
    try:
        summary = prepare(options)
    except LeakError as error:
        return _stop(str(error), 1)
    except (ConnectionError, HubRefusedError, ModuleNotFoundError) as error:
        return _stop(str(error), 2 if isinstance(error, (HubRefusedError, ModuleNotFoundError)) else 1)
    except (FileNotFoundError, NotADirectoryError, PermissionError, ValueError) as error:
        return _stop(_told(error, options.roots), 2)
    except OSError as error:
        if not is_full_disk(error):
            return _stop(_told(error, options.roots), 1)
        return _stop(f"the disk of {options.out} is full; finished shards are kept, run again with more room", 1)
    except BrokenProcessPool:
        return _stop("a worker died, most likely for lack of memory; run again with fewer --workers", 1)
    except KeyboardInterrupt:
        return _stop("stopped; finished shards are kept, run again to go on", 130)
    print("\n".join(summary.lines()))
    if summary.share > allowed:
        listed = options.out / "quarantine.jsonl"
        return _stop(f"{summary.share:.1%} of the volumes were left out, {allowed:.1%} are allowed; see {listed}", 1)
    return 0


def _told(error: Exception, roots: Mapping[str, Path]) -> str:
    """The error in words. Below a folder whose names may be people's no path is told."""
    if not isinstance(error, OSError) or error.filename is None:
        return str(error)
    path = Path(str(error.filename)).absolute()
    private = next((name for name in PRIVATE if name in roots and path.is_relative_to(roots[name].absolute())), None)
    if private is None:
        return f"{error.filename}: {error.strerror}; finished shards are kept, run again when this is mended"
    return (
        f"something in the folder {roots[private]} of {DATASETS[private].title} cannot be read ({type(error).__name__}: "
        f"{error.strerror}); make all of it readable"
    )


def _stop(sentence: str, code: int) -> int:
    print(sentence, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
