"""What to say when the files of a pre-trained model cannot be loaded."""

from pathlib import Path


def loading_error(what: str, name: str, error: Exception, *, expected: str) -> FileNotFoundError | ValueError:
    """The error to raise for `what` (e.g. "text encoder") of the setting text_encoder=`name`, from a library's error.

    FileNotFoundError: there is no such folder and the hub did not give it. ValueError: the files are there, but damaged or
    incomplete. The libraries raise anything from KeyError to plain Exception for such files.

    Args:
        expected: the files that a whole model has.
    """
    message = (str(error).strip() or "no message").splitlines()[0][:160]
    kind = type(error).__name__
    if Path(name).is_dir():
        return ValueError(
            f"{what} {name!r}: files in this folder are damaged or missing ({kind}: {message}); {expected} are expected, so "
            "download the model again"
        )
    if isinstance(error, (OSError, ValueError)):
        return FileNotFoundError(
            f"{what} {name!r} is no local folder and could not be fetched from the hub ({kind}); download the model where there "
            "is a network and set text_encoder=<local directory>"
        )
    return ValueError(
        f"{what} {name!r}: the hub's copy on this machine is damaged ({kind}: {message}); remove it from the hub's cache, or set "
        "text_encoder=<local directory>"
    )
