"""Messages of a fine-tuning run on standard output."""


def info(message: str) -> None:
    """Prints one line, from the first rank only."""
    from pytorch_lightning.utilities import rank_zero_only

    if not getattr(rank_zero_only, "rank", 0):
        print(f"mg3d: {message}", flush=True)
