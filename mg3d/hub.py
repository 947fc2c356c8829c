"""Error messages for pre-trained models that cannot be loaded."""

from pathlib import Path


def loading_error(what: str, name: str, error: Exception, *, expected: str) -> FileNotFoundError | ValueError:
    """Translates an error of transformers or tokenizers, which raise anything from KeyError to Exception for damaged files.

    Args:
        what: e.g. "text encoder".
        name: value of the setting text_encoder.
        error: the library's error.
        expected: files of a complete model.

    Returns:
        FileNotFoundError if the model is neither a local folder nor available from the Hub, ValueError if its files are damaged.
    """
    message = (str(error).strip() or "no message").splitlines()[0][:160]
    kind = type(error).__name__
    if Path(name).is_dir():
        return ValueError(
            f"{what} {name!r}: files in this folder are damaged or missing ({kind}: {message}). Download the model again; "
            f"expected: {expected}"
        )
    if isinstance(error, (OSError, ValueError)):
        return FileNotFoundError(
            f"{what} {name!r} is not a local folder and could not be downloaded from the Hugging Face Hub ({kind}). Download it "
            "on a machine with network access and set text_encoder=<local directory>"
        )
    return ValueError(
        f"{what} {name!r}: the copy in the Hugging Face cache is damaged ({kind}: {message}). Delete it there, or set "
        "text_encoder=<local directory>"
    )
