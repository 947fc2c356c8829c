"""Command line of every folder of downstream/: help, arguments and error messages."""

import logging
import sys
import warnings
from collections.abc import Sequence

from mg3d.finetune.settings import describe_settings, read_arguments
from mg3d.finetune.task import DownstreamTask

USAGE = """\
{title}
usage: bash downstream/{folder}/finetune.sh [name=value ...]

  data_root=phantom                             synthetic data in the layout of this data set, on a CPU
  data_root=... pretrained=CHECKPOINT fold=0    fine-tune, then evaluate
  pretrained=none encoder=CHECKPOINT fold=0     the same architecture from scratch, for comparison
  folds=all                                     every fold, and the pooled result
  mode=evaluate | mode=predict input=... | mode=compare other=...

Settings with their defaults in this folder; relative paths start at the current folder.
{settings}"""
_NOISE = (".*in eval mode at the start.*", ".*exists and is not empty.*", ".*does not have many workers.*", ".*LeafSpec.*",
          ".*number of training batches.*smaller than the logging interval.*", ".*lr_scheduler.step.*", ".*lazy modules.*",
          ".*divided by 0 or nan.*", ".*predict_dataloader.*", ".*your dataloader is not resumable.*")  # fmt: skip


def run(task: DownstreamTask, arguments: Sequence[str]) -> int:
    """Runs the command line of a folder; returns the exit code. A mistake of the user is one sentence on stderr."""
    if {"-h", "--help", "help"} & set(arguments):
        settings = describe_settings(task.settings, task.defaults({}, False), task.defaults({}, True))
        print(USAGE.format(title=task.title, folder=task.folder, settings=settings))
        return 0
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in _NOISE:
        warnings.filterwarnings("ignore", message)
    from mg3d.finetune.experiment import command

    try:
        command(task, read_arguments([argument for argument in arguments if argument != "with"]))
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"mg3d: {error_message(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mg3d: interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def error_message(error: BaseException) -> str:
    """The first line of an error, also of one from a data-loader worker."""
    lines = [line for line in str(error).split("\n") if line.strip()]
    inner = [line.partition(": ")[2] for line in lines if line.startswith(("ValueError: ", "FileNotFoundError: "))]
    return inner[0] if inner else " ".join(lines[:1])
