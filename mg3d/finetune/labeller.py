"""A trained labeller of reports, for clinical efficacy without a network."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mg3d.finetune.fit import read_finetuned
from mg3d.finetune.kinds.labeller import TextPlanes, counted
from mg3d.glossary import LABELS
from mg3d.metrics.thresholds import decide

_PLACES = ("checkpoints/best.ckpt", "fold0/checkpoints/best.ckpt")


class ReportLabeller:
    """What `load_labeller` gives.

    Args:
        network: of the labeller's kind.
        words: its terms.
    """

    def __init__(self, network: TextPlanes, words: Sequence[str]) -> None:
        self.network, self.place_of = network, {term: place for place, term in enumerate(words)}

    def scores(self, reports: Sequence[str]) -> np.ndarray:
        """Probability float64 [n, 18] that a report names each finding of `glossary.LABELS`."""
        return self.network.scores(counted(reports, self.place_of))

    def labels(self, reports: Sequence[str]) -> np.ndarray:
        """int8 [n, 18]: 1 present, 0 absent."""
        return decide(self.scores(reports), self.network.thresholds.numpy())


def load_labeller(path: str | Path) -> ReportLabeller:
    """The labeller of a run of downstream/CT-RATE with task=labeller: its folder, one fold's, or the checkpoint itself.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is something else.
    """
    path = Path(path)
    file = next((path / place for place in _PLACES if (path / place).is_file()), path)
    if not file.is_file():
        raise FileNotFoundError(
            f"{path} holds no labeller; train one: bash downstream/CT-RATE/finetune.sh task=labeller data_root=..."
        )
    stored = read_finetuned(file)
    words = stored["mg3d_finetune"]["kind"].get("terms")
    if words is None:
        raise ValueError(f"{file} is of {stored['mg3d_finetune']['folder']}, not of a labeller of reports")
    network = TextPlanes(len(words), len(LABELS))
    network.load_state_dict({name.removeprefix("network."): tensor for name, tensor in stored["state_dict"].items()})
    return ReportLabeller(network.eval(), words)
