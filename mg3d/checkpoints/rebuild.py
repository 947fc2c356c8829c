"""The model that settings and a configuration of BERT describe, and what its tensors must be."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import BertConfig, BertModel

from mg3d.models.build import build_model
from mg3d.models.mg3d import MG3D
from mg3d.models.text.encoder import TextEncoder
from mg3d.settings.schema import Settings

_NAMED = 3


class _RealLinspace(TorchFunctionMode):
    """MONAI's Swin reads numbers out of `linspace` while it is built, which tensors without memory cannot give."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return func(*args, **(kwargs | {"device": "cpu"} if func is torch.linspace else kwargs))


def rebuild(settings: Settings, text_config: Mapping[str, Any], precision: torch.dtype) -> MG3D:
    """The untrained model.

    Raises:
        ValueError: `text_config` is no configuration of a BERT.
    """
    try:
        bert = BertModel(BertConfig.from_dict(dict(text_config)), add_pooling_layer=False)
    except Exception as error:  # the library checks few entries, so that the others end in errors of any kind
        raise ValueError(f"text_config does not describe a BERT ({' '.join(str(error).split())[:120]})") from error
    return build_model(settings, TextEncoder(bert, frozen=settings.text.freeze_text)).to(precision)


def outline(settings: Settings, text_config: Mapping[str, Any], precision: torch.dtype) -> MG3D:
    """The same model on the meta device: shapes and no numbers, so that the largest costs no memory."""
    with torch.device("meta"), _RealLinspace():
        return rebuild(settings, text_config, precision)


def require_fit(tensors: Mapping[str, Tensor], model: MG3D, what: str) -> None:
    """Refuses tensors that are not just those of `model`, in name, shape and precision, or hold numbers that are not finite.

    what: the tensors in words, such as "the tensors in FOLDER".
    """
    wanted = model.state_dict()
    shared = [name for name in wanted if name in tensors]
    kinds = {
        "missing": [name for name in wanted if name not in tensors],
        "not expected": [name for name in tensors if name not in wanted],
        "of another shape": [
            f"{name} {list(tensors[name].shape)} instead of {list(wanted[name].shape)}"
            for name in shared if tensors[name].shape != wanted[name].shape
        ],
        "of another precision": [
            f"{name} {tensors[name].dtype} instead of {wanted[name].dtype}"
            for name in shared if tensors[name].dtype != wanted[name].dtype
        ],
    }  # fmt: skip
    told = [f"{len(names)} {kind} ({', '.join(names[:_NAMED])})" for kind, names in kinds.items() if names]
    if told:
        raise ValueError(f"{what} are not those of its settings: {'; '.join(told)}")
    broken = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise ValueError(f"{what} hold numbers that are not finite, in {', '.join(broken[:_NAMED])}; the training had diverged")
