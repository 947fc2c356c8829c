"""Raw CT-RATE and CTRG folders -> Arrow files for pre-training (docs/data.md). Run it again to go on where it ended."""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from mg3d.datasets.schema import DATASETS
from mg3d.preparation.leaks import LeakError
from mg3d.preparation.recipe import Recipe
from mg3d.preparation.run import Options, prepare
from mg3d.preparation.shards import FULL_DISK
from mg3d.settings.schema import volume_shape


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line as values."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ct-rate", type=Path, metavar="ROOT", help="folder that holds CT-RATE's dataset/, or is it")
    parser.add_argument("--ctrg", type=Path, metavar="ROOT", help="folder of chest_ctrg_jpg.json and its slices")
    parser.add_argument("--out", type=Path, default=Path("data/pretrain_arrows"), help="(%(default)s)")
    parser.add_argument("--image-size", type=int, default=128, help="S of S x 3S/4 x S voxels z y x (%(default)s)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (%(default)s)")
    parser.add_argument("--val-patients", type=int, default=500, help="carved out of train, at most a tenth of it (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of that draw (%(default)s)")
    parser.add_argument(
        "--split", choices=("own", "original"), default="own", help="original: CTRG's published order (%(default)s)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="at most N volumes of each official split")
    parser.add_argument("--max-quarantine", type=float, default=0.02, help="share of volumes that may be left out (%(default)s)")
    parser.add_argument("--retry-quarantine", action="store_true", help="try again the shards that left volumes out")
    _add_recipe(parser)
    values = parser.parse_args(arguments)
    values.roots = {name: root for name in DATASETS if (root := vars(values).pop(name)) is not None}
    if not values.roots:
        parser.error("give --ct-rate ROOT, --ctrg ROOT or both")
    if min(values.workers, values.val_patients + 1, values.limit or 1) < 1:
        parser.error("--workers and --limit start at 1, --val-patients at 0")
    try:
        values.recipe = _recipe(values)
    except ValueError as error:
        parser.error(str(error))
    return values


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
    except (FileNotFoundError, NotADirectoryError, PermissionError, ValueError) as error:
        return _stop(_told(error, options.roots.get("ctrg")), 2)
    except OSError as error:
        if error.errno not in FULL_DISK:
            return _stop(_told(error, options.roots.get("ctrg")), 1)
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


def _told(error: Exception, ctrg: Path | None) -> str:
    """The error in words. Below CTRG's folder no path is told, for it may be a person's name."""
    if not isinstance(error, OSError) or error.filename is None:
        return str(error)
    if ctrg is None or not Path(str(error.filename)).absolute().is_relative_to(ctrg.absolute()):
        return f"{error.filename}: {error.strerror}; finished shards are kept, run again when this is mended"
    return f"something in CTRG's folder {ctrg} cannot be read ({type(error).__name__}: {error.strerror}); make all of it readable"


def _stop(sentence: str, code: int) -> int:
    print(sentence, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
