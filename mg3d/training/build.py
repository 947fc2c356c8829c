"""Builds tokenizer and data module from settings, and fits statistics to the training data."""

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mg3d.datamodules.base import LoaderOptions, StudyOptions
from mg3d.datamodules.multitask import DATA_MODULES, MultiTaskDataModule
from mg3d.datasets.storage import Storage
from mg3d.datasets.text_cache import TextCache
from mg3d.datasets.tokenizer import load_tokenizer, pad_reports, train_wordpiece
from mg3d.files import write_json
from mg3d.models.mg3d import MG3D
from mg3d.models.pooling import sentence_membership
from mg3d.models.sentence_space import random_pair_cosines
from mg3d.settings.schema import Settings, objective_weights, volume_shape

TOKENIZER_FOLDER = "tokenizer"
TOKENIZER_ORIGIN = "made_from.json"
"""File with `tokenizer_origin` in the tokenizer's folder."""
STATISTICS_REPORTS = 20_000
STATISTICS_VOLUMES = 600
COSINE_REPORTS, COSINE_PAIRS = 2_000, 20_000
TOKENIZER_TIMEOUT_S = 600
WITHOUT_REPORTS = {"mim"}
"""Objectives that can be trained on data sets without reports."""


def build_tokenizer(
    settings: Settings, run_dir: Path, data: MultiTaskDataModule, *, origin: dict[str, Any] | None = None
) -> PreTrainedTokenizerBase:
    """Tokenizer of the text encoder; for `tiny`, a WordPiece tokenizer trained on the training reports and saved in `run_dir`.

    An existing one is reused; with `origin`, only if it was trained on the same reports. The first rank trains it, the others
    wait for the files.
    """
    if settings.text.text_encoder != "tiny":
        return load_tokenizer(settings.text.text_encoder)
    folder = run_dir / TOKENIZER_FOLDER
    deadline = time.monotonic() + TOKENIZER_TIMEOUT_S
    while not _is_trained(folder, origin):
        if int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0:
            reports = (row.report for row in data.training_reports())
            folder.parent.mkdir(parents=True, exist_ok=True)
            tokenizer = train_wordpiece(reports, vocab_size=settings.text.tiny_vocabulary, out_dir=folder)
            write_json(folder / TOKENIZER_ORIGIN, origin or tokenizer_origin(settings, data))
            return tokenizer
        if time.monotonic() > deadline:
            raise FileNotFoundError(f"timed out waiting for the first rank to write {folder}. All ranks must share log_dir.")
        time.sleep(1)
    return load_tokenizer(str(folder))


def tokenizer_origin(settings: Settings, data: MultiTaskDataModule) -> dict[str, Any] | None:
    """Vocabulary size, and number and hash of the training reports of a `tiny` tokenizer; None for others."""
    if settings.text.text_encoder != "tiny":
        return None
    reports, digest = data.training_reports(), hashlib.sha256()
    for row in reports:
        content = row.report.encode()
        digest.update(len(content).to_bytes(8, "little") + content)
    return {"tiny_vocabulary": settings.text.tiny_vocabulary, "reports": len(reports), "sha256": digest.hexdigest()}


def _is_trained(folder: Path, origin: dict[str, Any] | None) -> bool:
    if origin is None:
        return (folder / "tokenizer.json").is_file()
    try:
        return json.loads((folder / TOKENIZER_ORIGIN).read_text(encoding="utf-8")) == origin
    except FileNotFoundError:
        return False


def build_data(
    settings: Settings,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    per_rank: int | None = None,
    with_text_cache: bool = False,
) -> MultiTaskDataModule:
    """Data module of all data sets; without a tokenizer only reports and studies can be read.

    per_rank: micro-batch per rank, default per_gpu_batchsize. with_text_cache: add the features of `text_cache` to batches.
    """
    data, model, seed = settings.data, settings.model, settings.run.seed
    studies = StudyOptions(
        shape=volume_shape(data.image_size, data.volume_size),
        window_hu=data.window_hu,
        text_unit=data.text_unit,
        needs_reports=bool(objective_weights(settings.loss).keys() - WITHOUT_REPORTS),
        shuffle_seed=seed if data.shuffle_reports else None,
    )
    collator = {
        "max_text_len": data.max_text_len,
        "mim_patch_size": model.mim_patch_size,
        "mim_mask_ratio": model.mim_mask_ratio,
        "mlm_probability": model.mlm_probability,
        "sentence_views": data.sentence_views,
        "negated_view_fraction": data.negated_view_fraction,
        "pad_to_max_length": model.wiring != "paper",
        "text_features": TextCache(settings.text.text_cache) if with_text_cache and settings.text.text_cache else None,
    }
    loader = LoaderOptions(
        batch_size=per_rank or settings.optim.per_gpu_batchsize,
        num_workers=data.num_workers,
        seed=seed,
        collator=collator,
        augmentation=settings.augment,
        text_negatives=settings.optim.text_negatives if with_text_cache else 0,
    )
    storage = Storage(data.data_root, data.cache_dir)
    modules = [DATA_MODULES[name](storage, studies, loader) for name in data.datasets]
    return MultiTaskDataModule(modules, weights=data.dataset_weights, tokenizer=tokenizer)


def fit_voxels(model: MG3D, data: MultiTaskDataModule) -> None:
    """Fits mean and standard deviation of every voxel to training volumes; nothing without standardise_voxels."""
    if model.voxels is not None:
        volumes = data.training_volumes(most=STATISTICS_VOLUMES)
        model.voxels.fit(torch.from_numpy(volume) for volume in volumes)


@torch.no_grad()
def _random_cosines(model: MG3D, ids: Tensor, attention_mask: Tensor, sentence_index: Tensor, *, seed: int) -> Tensor:
    """SSM's text cosine of random pairs of sentences of different reports."""
    some = slice(0, COSINE_REPORTS)
    ids, attention_mask, sentence_index = ids[some], attention_mask[some], sentence_index[some]
    sentences = max(int(sentence_index.max()) + 1, 1)
    vectors = model.sentence_vectors(ids, attention_mask, sentence_index, sentences)
    mask = sentence_membership(sentence_index, sentences).any(1)
    return random_pair_cosines(vectors, mask, pairs=COSINE_PAIRS, generator=torch.Generator().manual_seed(seed))


def fit_sentence_space(model: MG3D, data: MultiTaskDataModule, settings: Settings) -> dict[str, Any]:
    """Fits the text side of SSM to the training reports; returns quantiles of the cosine of random pairs, {} without SSM.

    Raises:
        ValueError: more than half of random pairs would be positive pairs.
    """
    if "ssm" not in model.objectives:
        return {}
    reports = data.training_reports(most=STATISTICS_REPORTS)
    ids, attention_mask, index = pad_reports(data.tokenizer, reports, settings.data.max_text_len)
    model.fit_sentence_space(ids, index)
    cosines = _random_cosines(model, ids, attention_mask, index, seed=settings.run.seed)
    same = float((cosines >= settings.model.ssm_same_above).float().mean())
    if same > 0.5 and settings.model.wiring == "paper":
        raise ValueError(
            f"{same:.0%} of random sentence pairs have a text cosine of at least ssm_same_above={settings.model.ssm_same_above} "
            "and would be positive pairs of SSM; raise ssm_same_above or set weight_ssm=0"
        )
    levels = (0.05, 0.5, 0.95, 0.99)
    values = torch.quantile(cosines.float(), torch.tensor(levels))
    return {"share_same": same, "quantiles": {f"{q:.2f}": round(float(v), 4) for q, v in zip(levels, values, strict=True)}}
