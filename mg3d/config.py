"""Command line of pre-training: presets and settings are resolved to typed `Settings`, which a Sacred experiment runs."""

import errno
import re
import sys
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mg3d.files import is_full_disk, os_advice
from mg3d.settings.describe import descriptions, format_setting
from mg3d.settings.encoders import unread
from mg3d.settings.parse import defaults, flatten, parse, refuse_unknown, resolve
from mg3d.settings.presets import PRESETS
from mg3d.settings.schema import Settings

if TYPE_CHECKING:
    from sacred import Experiment

warnings.filterwarnings("ignore", ".*pkg_resources is deprecated.*")  # Sacred imports it

PREEMPTED = 75
"""Exit code of a run that was stopped by a scheduler's signal (EX_TEMPFAIL): run the same command again to resume."""
FILE_STORAGE = "--file_storage="
COMMANDS = ("pretrain", "evaluate", "diagnose", "print_config")

USAGE = """\
usage: python main.py [COMMAND] [--file_storage=DIR] [with PRESET ... NAME=VALUE ...]

commands
  pretrain        train, validate and evaluate (default)
  evaluate        evaluate the checkpoint resume_from (default: the last one of the run)
  diagnose        train on the labels directly: is each finding learnable at this resolution?
  print_config    print every setting, its value and its description; train nothing

options
  --file_storage=DIR    Sacred's file observer: store settings, package versions, host and status of the run in DIR

presets
{presets}

Settings (NAME=VALUE) override presets; of two presets the last one wins.
example: python main.py with task_pretrain_mg3d swin_b text_radbert data_root=data/pretrain_arrows per_gpu_batchsize=4"""


def read_arguments(arguments: Sequence[str]) -> Settings:
    """Typed settings from command-line arguments: presets and NAME=VALUE."""
    from sacred.arg_parser import get_config_updates

    updates, presets = get_config_updates(arguments)
    typed = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    known = defaults()
    for name, value in updates.items():  # Sacred reads run_name=2024_01 as the number 202401
        if isinstance(known.get(name), str) and isinstance(value, int | float) and name in typed:
            updates[name] = typed[name]
    return resolve(presets, updates)


def print_config(settings: Settings) -> None:
    """Prints every setting by group, with its value and description."""
    flat, ignored = flatten(settings), unread(settings.vision)
    for name, group in Settings.__annotations__.items():
        print(f"{name} ({group.__name__})")
        for setting, text in descriptions(group).items():
            note = f"    (not read by {settings.vision.vision_encoder})" if setting in ignored else ""
            print(format_setting(setting, flat[setting], text, note=note))


def command_line(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code. A user's mistake is reported as one sentence on stderr."""
    arguments = list(arguments)
    if any(argument in ("-h", "--help", "help") for argument in arguments):
        print(USAGE.format(presets=textwrap.fill(" ".join(PRESETS), 100, initial_indent="  ", subsequent_indent="  ")))
        return 0
    settings = Settings()
    try:
        command, storage, rest = split_arguments(arguments)
        settings = read_arguments(rest)
        if command == "print_config":
            print_config(settings)
            return 0
        require_data_root(settings)
        return _run(command, settings, storage)
    except BrokenPipeError:  # the reader of a pipe closed it
        sys.stdout = None
        return 0
    except (ValueError, OSError) as error:
        print(f"mg3d: {error_sentence(error, settings)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"mg3d: interrupted; {resume_hint(settings)}", file=sys.stderr)
        return 130
    except RuntimeError as error:
        cause = machine_error(error)
        if not cause:
            raise
        print(f"mg3d: {cause}; {resume_hint(settings)}", file=sys.stderr)
        return 1


def split_arguments(arguments: Sequence[str]) -> tuple[str, str, list[str]]:
    """Command, folder of the file observer (empty without), and presets and settings."""
    at = list(arguments).index("with") if "with" in arguments else len(arguments)
    storage = [argument.removeprefix(FILE_STORAGE) for argument in arguments[:at] if argument.startswith(FILE_STORAGE)]
    command, *more = [argument for argument in arguments[:at] if not argument.startswith(FILE_STORAGE)] or ["pretrain"]
    refuse_unknown([command], COMMANDS, "command")
    if more:
        raise ValueError(f"{more[0]!r} is not an option; presets and settings come after `with`: main.py [COMMAND] with ...")
    return command, storage[-1] if storage else "", list(arguments[at + 1 :])


def require_data_root(settings: Settings) -> None:
    """Raises FileNotFoundError, before torch is imported, if data_root is not a folder or URL. Finished runs need no data."""
    root = settings.data.data_root
    if "://" in root or Path(root).is_dir() or (Path(settings.run.log_dir) / settings.run.run_name / "evidence.json").is_file():
        return
    from mg3d.datasets.schema import index_path

    expected = ", ".join(index_path(Path(), dataset, "train").name for dataset in settings.data.datasets)
    raise FileNotFoundError(
        f"data_root={root} is not a folder; set it to the folder that prepro/prepro_pretraining_data.py wrote (with {expected})"
    )


def _run(command: str, settings: Settings, storage: str) -> int:
    from mg3d.training import run  # imports torch and Lightning

    options = {"--loglevel": "CRITICAL"}  # Sacred would report a refusal a second time
    if storage and run.is_first_rank():
        options["--file_storage"] = storage
    try:
        build_experiment(command, getattr(run, command)).run(command, config_updates=flatten(settings), options=options)
    except run.Preempted as stop:
        if run.is_first_rank():  # a launcher takes any other exit code than 0 of its child processes for a failure
            print(f"mg3d: {stop}", file=sys.stderr)
            return PREEMPTED
    return 0


def build_experiment(command: str, function: Any) -> "Experiment":
    """The Sacred experiment that runs one command of `mg3d.training.run` with typed settings."""
    from sacred import SETTINGS, Experiment

    SETTINGS.CAPTURE_MODE = "no"  # Lightning writes to the terminal
    SETTINGS.HOST_INFO.INCLUDE_GPU_INFO = False
    SETTINGS.DISCOVER_SOURCES = "none"
    experiment = Experiment("mg3d", save_git_info=False)
    experiment.add_config(defaults())

    def run(_config: dict[str, Any]) -> None:
        function(parse(_config))

    run.__name__ = command
    experiment.command(run)
    return experiment


def machine_error(error: RuntimeError) -> str:
    """The cause of an error of the machine; empty for an error of the program."""
    text = str(error)
    if re.search(r"shared memory|Bus error|unable to write to file </torch_", text):
        return (
            "the data-loader processes ran out of shared memory (/dev/shm); start the container with --shm-size=16g, or set "
            "num_workers=0"
        )
    if re.match(r"DataLoader worker .* (killed by signal|exited unexpectedly)", text):
        return "a data-loader process was killed (the job was stopped, or memory ran out: then reduce num_workers)"
    if type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator: can't allocate memory" in text:
        return (
            "out of memory; grad_cache_chunk=1 to 8 or gradient_checkpointing=True need less for identical gradients, a smaller "
            "per_gpu_batchsize too, and tools/plan.py predicts how much"
        )
    return ""


def resume_hint(settings: Settings) -> str:
    """How to continue a run that ended early."""
    if not (Path(settings.run.log_dir) / settings.run.run_name / "checkpoints" / "last.ckpt").is_file():
        return "no checkpoint was written yet, so the same command starts from scratch"
    return "add resume_from=last to resume (run_scripts/pretrain.sh does)"


def error_sentence(error: ValueError | OSError, settings: Settings) -> str:
    """One sentence: our own messages unchanged, also from data-loader processes; the system's messages with their path."""
    text = str(error)
    if caught := re.match(r"Caught (\w+) in DataLoader worker process", text):
        messages = re.findall(rf"^(?:[\w.]+\.)?{caught[1]}: (.+)", text, re.MULTILINE)
        return messages[-1] if messages else text.splitlines()[-1]
    if not isinstance(error, OSError) or error.errno is None:
        return text
    path = error.filename or settings.run.log_dir
    if is_full_disk(error):
        return f"{path}: the disk is full; free some space or set log_dir to another disk. {resume_hint(settings).capitalize()}"
    if error.errno not in (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EROFS):
        return f"{path}: {os_advice(error)}"
    return (
        f"{path}: {error.strerror.lower()}; log_dir={settings.run.log_dir!r} must be a writable folder, "
        f"data_root={settings.data.data_root!r} a readable one"
    )


if __name__ == "__main__":
    sys.exit(command_line(sys.argv[1:]))
