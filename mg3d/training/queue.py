"""A memory queue: what was computed from the last studies, as further wrong answers and sentences to compare with."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from mg3d.distributed import gather_rows
from mg3d.types import Features, QueueRows

SENTENCES = 32
"""Of a study, that are kept at most."""
KEYS = ("patient_key", "report_key")


class FeatureQueue:
    """The last `size` studies of all ranks, the same on each, oldest overwritten first (He and others, 2020: momentum contrast).

    There is no momentum encoder, so what is kept is as old as the queue is long. Not a module, or DistributedDataParallel would
    send it around at every step.

    Args:
        size: studies.
        with_cml: keep embeddings of volumes and reports.
        with_ssm: keep both sides of sentences.
    """

    def __init__(self, size: int, *, with_cml: bool, with_ssm: bool) -> None:
        self.size, self.with_cml, self.with_ssm = size, with_cml, with_ssm
        self.begin = 0
        """Where the next study goes."""
        self.kept: QueueRows | None = None
        """None before the first study; of a checkpoint on the CPU, until `rows`."""

    def rows(self, device: torch.device) -> QueueRows | None:
        """What the losses of the next step read, on `device`; None before the first."""
        if self.kept is not None:
            self.kept = QueueRows(*(part.to(device) for part in self.kept))
        return self.kept

    def push(self, rows: QueueRows) -> None:
        """Takes the rows of a step of all ranks; after the backward pass, which still reads what was there."""
        everyone = QueueRows(*(gather_rows(part)[-self.size :] for part in rows))
        if self.kept is None:
            self.kept = QueueRows(*(part.new_zeros(self.size, *part.shape[1:]) for part in everyone))
        places = (self.begin + torch.arange(len(everyone.is_there), device=everyone.is_there.device)) % self.size
        for ours, new in zip(self.kept, everyone, strict=True):
            ours[places] = new.to(ours.dtype)
        self.begin = (self.begin + len(everyone.is_there)) % self.size

    @torch.no_grad()
    def take(self, features: Features) -> QueueRows:
        """What `push` wants of a step's features, copied, for their graph ends with the step."""
        count, none = len(features.patient_key), features.patient_key.new_zeros
        mask = _fit(features.sentence_mask)
        if self.with_ssm:
            visual, text = (_fit(F.normalize(side.float(), dim=-1)) for side in (features.ssm_visual, features.ssm_text))
        else:
            visual = text = none(count, SENTENCES, 0)
            mask = torch.zeros_like(mask)
        image, report = (
            (features.cml_first_embedding, features.cml_second_embedding) if self.with_cml else (none(count, 0), none(count, 0))
        )
        return QueueRows(
            image_embedding=image.detach().clone(),
            report_embedding=report.detach().clone(),
            visual=visual,
            text=text,
            sentence_mask=mask,
            sentence_polarity=_fit(features.sentence_polarity),
            patient_key=features.patient_key,
            report_key=features.report_key,
            is_there=torch.ones_like(features.patient_key, dtype=torch.bool),
        )

    def state(self) -> dict[str, Tensor | int]:
        """For a checkpoint."""
        kept = {} if self.kept is None else self.kept._asdict()
        return {"begin": self.begin, **{name: part.cpu() for name, part in kept.items()}}

    def restore(self, state: Mapping[str, Tensor | int]) -> None:
        """Goes on from a copy of `state`. Checkpoints are read before the model has its device, so `rows` brings it there."""
        self.begin = int(state["begin"])
        kept = {name: state[name].clone() for name in QueueRows._fields if name in state}
        self.kept = QueueRows(**kept) if kept else None


def _fit(sentences: Tensor) -> Tensor:
    """The first `SENTENCES` of [B, S, ...], with zeros where there are fewer."""
    sentences = sentences[:, :SENTENCES]
    return F.pad(sentences, (0, 0) * (sentences.ndim - 2) + (0, SENTENCES - sentences.shape[1]))
