"""The Sacred experiment: words of a command line -> typed settings -> a run. `main.py` is its only caller."""

import errno
import re
import sys
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pkg_resources, which Sacred imports, warns of its own end
    from sacred import SETTINGS, Experiment
    from sacred.arg_parser import get_config_updates

from mg3d.settings.describe import listed, meanings
from mg3d.settings.encoders import unread
from mg3d.settings.parse import defaults, flatten, parse, refuse_unknown, refuse_unread
from mg3d.settings.presets import PRESETS
from mg3d.settings.schema import Settings

SETTINGS.CAPTURE_MODE = "no"  # Lightning writes to the terminal itself
SETTINGS.CONFIG.READ_ONLY_CONFIG = False
SETTINGS.HOST_INFO.INCLUDE_GPU_INFO = False

experiment = Experiment("mg3d", save_git_info=False)
experiment.add_config(defaults())
for _word, _values in PRESETS.items():
    experiment.add_named_config(_word, {name: list(v) if isinstance(v, tuple) else v for name, v in _values.items()})

GO_ON = 75
"""Exit code of a run that a scheduler's signal stopped between two steps: start the same command again (EX_TEMPFAIL)."""
QUIET = {"--loglevel": "CRITICAL"}
"""Sacred would tell a refusal a second time, as an error with a duration."""

COMMANDS = ("pretrain", "evaluate", "diagnose", "print_config")

USAGE = """\
usage: python main.py [COMMAND] [with WORD ... name=value ...]

commands
  pretrain        train, validate and show the evidence (default)
  evaluate        the evidence for the checkpoint resume_from (default: the newest of the run)
  diagnose        learn the labels directly from the volumes: can every finding be seen at this grid?
  print_config    the whole typed configuration

words
{words}

example: python main.py with task_pretrain_mg3d swin_b text_radbert data_root=data/pretrain_arrows per_gpu_batchsize=4
Every name=value is a setting; `python main.py print_config` lists them."""


def resolve(words: Sequence[str], updates: Mapping[str, Any]) -> Settings:
    """Typed settings from preset words (in order, the last wins) and settings by name (which win over words)."""
    refuse_unknown(words, PRESETS, "word")
    refuse_unknown(updates, defaults())
    flat = defaults()
    for word in words:
        flat.update(PRESETS[word])
    flat.update(updates)
    settings = parse(flat)
    refuse_unread(updates, settings)
    return settings


def read_words(arguments: Sequence[str]) -> Settings:
    """Typed settings from what stands after `with` on a command line: preset words, and name=value."""
    updates, words = get_config_updates(arguments)
    return resolve(words, updates)


def print_config(settings: Settings) -> None:
    """Prints every setting, by group, as it would run, and what it means."""
    for group, kind in Settings.__annotations__.items():
        print(f"{group} ({kind.__name__})")
        names = kind.__annotations__
        flat, told = flatten(settings), meanings(kind)
        for name in names:
            note = f"    (not read by {settings.vision.vision_encoder})" if name in unread(settings.vision) else ""
            print(listed(name, flat[name], told[name], note=note))


def command_line(arguments: Sequence[str]) -> int:
    """Runs `arguments` (without the program's name); returns the exit code. A user's mistake is one sentence on stderr."""
    arguments = list(arguments)
    if any(word in ("-h", "--help", "help") for word in arguments):
        words = textwrap.fill(" ".join(PRESETS), 100, initial_indent="  ", subsequent_indent="  ")
        print(USAGE.format(words=words))
        return 0
    settings = Settings()
    try:
        command = arguments.pop(0) if arguments and arguments[0] != "with" else "pretrain"
        refuse_unknown([command], COMMANDS, "command")
        if arguments and arguments.pop(0) != "with":
            raise ValueError("settings come after the word `with`: python main.py [COMMAND] with name=value")
        settings = read_words(arguments)
        if command == "print_config":
            print_config(settings)
            return 0
        return _run(command, settings)
    except BrokenPipeError:  # whoever read what is printed has seen enough
        sys.stdout = None
        return 0
    except (ValueError, OSError) as error:
        print(f"mg3d: {sentence(error, settings)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"mg3d: stopped; {what_goes_on(settings)}", file=sys.stderr)
        return 130
    except RuntimeError as error:
        told = broken_by_machine(error)
        if not told:
            raise
        print(f"mg3d: {told}; {what_goes_on(settings)}", file=sys.stderr)
        return 1


def broken_by_machine(error: RuntimeError) -> str:
    """What was wrong with the machine, in words, when that ended the run; empty for a fault of the program."""
    text = str(error)
    if re.match(r"DataLoader worker .* (killed by signal|exited unexpectedly)", text):
        return "a loader process was ended from outside (a stop of the whole job, or a lack of memory: then lower num_workers)"
    if type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator: can't allocate memory" in text:
        return (
            "the memory of the device is used up; grad_cache_chunk=1 to 8 or gradient_checkpointing=True need less for equal "
            "gradients, a smaller per_gpu_batchsize too, and tools/plan.py predicts how much"
        )
    return ""


def what_goes_on(settings: Settings) -> str:
    """How a run that ended early is taken up again."""
    if not (Path(settings.run.log_dir) / settings.run.run_name / "checkpoints" / "last.ckpt").is_file():
        return "no checkpoint had been written yet, so the same command starts anew"
    return "`resume_from=last` goes on from the newest checkpoint"


def sentence(error: ValueError | OSError, settings: Settings) -> str:
    """What went wrong, in one sentence: our own words as they are, also out of a loader process; the system's with the path."""
    text = str(error)
    if caught := re.match(r"Caught (\w+) in DataLoader worker process", text):
        said = re.findall(rf"^(?:[\w.]+\.)?{caught[1]}: (.+)", text, re.MULTILINE)
        return said[-1] if said else text.splitlines()[-1]
    if not isinstance(error, OSError) or error.errno is None:
        return text
    where = error.filename or settings.run.log_dir
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk of {where} is full; make room or set log_dir to another disk. What was whole is kept; "
            f"{what_goes_on(settings)}"
        )
    return (
        f"{where}: {error.strerror.lower()}; log_dir={settings.run.log_dir!r} must be a directory that can be written, "
        f"data_root={settings.data.data_root!r} one that can be read"
    )


def _run(command: str, settings: Settings) -> int:
    from mg3d.training import run  # heavy: only when something is to be trained

    function = getattr(run, command)
    told: list[str] = []

    def body() -> None:
        try:
            function(settings)
        except run.Preempted as stopped:
            if run.is_first_rank():  # a process that starts others takes an end of theirs that is not 0 for a failure
                told.append(str(stopped))

    experiment.command(body, unobserved=True)
    experiment.run("body", config_updates=flatten(settings), info={"command": command}, options=QUIET)
    for line in told:
        print(f"mg3d: {line}", file=sys.stderr)
    return GO_ON if told else 0


if __name__ == "__main__":
    sys.exit(command_line(sys.argv[1:]))
