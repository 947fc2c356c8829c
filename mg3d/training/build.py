"""From typed settings to the parts of a run: tokenizer, data, model, losses."""

import os
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from mg3d.datamodules.multitask import MultiTaskDataModule
from mg3d.datasets.tokenizer import load_tokenizer, pad_reports, train_wordpiece
from mg3d.models.mg3d import MG3D
from mg3d.models.text.encoder import TextEncoder, load_text_encoder, tiny_text_encoder
from mg3d.models.vision.registry import VisionEncoder, build_vision_encoder
from mg3d.settings.schema import Settings, volume_shape
from mg3d.training.objectives import loss_weights

TOKENIZER_FOLDER = "tokenizer"
MOST_REPORTS_FOR_STATISTICS = 20_000
LONGEST_WAIT_S = 600


def build_tokenizer(settings: Settings, run_dir: Path, data: MultiTaskDataModule) -> PreTrainedTokenizerBase:
    """The tokenizer of the text encoder; for `tiny`, WordPiece trained on the training reports and kept in `run_dir`.

    The first rank trains it, the others wait for its files.
    """
    if settings.text.text_encoder != "tiny":
        return load_tokenizer(settings.text.text_encoder)
    folder = run_dir / TOKENIZER_FOLDER
    deadline = time.monotonic() + LONGEST_WAIT_S
    while not (folder / "tokenizer.json").is_file():
        if int(os.environ.get("RANK", "0")) == 0:
            reports = (row.report for row in data.training_reports())
            folder.parent.mkdir(parents=True, exist_ok=True)
            return train_wordpiece(reports, vocab_size=settings.text.tiny_vocabulary, out_dir=folder)
        if time.monotonic() > deadline:
            raise FileNotFoundError(f"the first rank has written no {folder}; all ranks must share the folder log_dir")
        time.sleep(1)
    return load_tokenizer(str(folder))


def build_text_encoder(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> TextEncoder:
    """The report encoder, checked against the tokenizer."""
    text = settings.text
    if text.text_encoder != "tiny":
        return load_text_encoder(text.text_encoder, frozen=text.freeze_text, tokenizer_size=len(tokenizer))
    return tiny_text_encoder(
        vocab_size=len(tokenizer),
        width=text.tiny_text_width,
        layers=text.tiny_text_layers,
        heads=text.tiny_text_heads,
        max_positions=settings.data.max_text_len,
    )


def build_vision(settings: Settings) -> VisionEncoder:
    """The untrained volume encoder."""
    vision = settings.vision
    return build_vision_encoder(
        vision.vision_encoder,
        embed_width=vision.embed_dim,
        patch_size=vision.patch_size,
        window_size=vision.window_size,
        depths=vision.depths,
        heads=vision.num_heads,
        patch_merging=vision.patch_merging,
        mask_token=settings.loss.weight_mim > 0 and settings.model.mim_fill == "token",
    )


def build_model(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> MG3D:
    """The untrained model, initialised from `settings.run.seed`."""
    torch.manual_seed(settings.run.seed)
    model = settings.model
    return MG3D(
        vision=build_vision(settings),
        text=build_text_encoder(settings, tokenizer),
        objectives=tuple(loss_weights(settings.loss)),
        volume_shape=volume_shape(settings.data.image_size),
        width=model.hidden_size,
        embedding_width=model.embedding_size,
        fusion=model.fusion,
        fusion_layers=model.fusion_layers,
        fusion_heads=model.fusion_heads,
        pool_queries=model.pool_queries,
        input_shift=settings.vision.input_shift,
        input_scale=settings.vision.input_scale,
        image_position=model.image_position,
        mim_decoder=model.mim_decoder,
        mim_fill=model.mim_fill,
        mim_text=model.mim_text,
        cml_pair=model.cml_pair,
        project_twice=model.project_twice,
        aggregation_values=model.aggregation_values,
        sal_target=model.sal_target,
        ssm_text=model.ssm_text,
    )


def build_data(settings: Settings, tokenizer: PreTrainedTokenizerBase | None = None) -> MultiTaskDataModule:
    """The mixture of the data sets; without a tokenizer only its reports and studies can be read."""
    data, model = settings.data, settings.model
    return MultiTaskDataModule(
        data_root=Path(data.data_root),
        datasets=data.datasets,
        dataset_weights=data.dataset_weights,
        shape=volume_shape(data.image_size),
        window_hu=data.window_hu,
        text_unit=data.text_unit,
        shuffle_pairs=data.pairs == "shuffled",
        tokenizer=tokenizer,
        max_text_len=data.max_text_len,
        mim_cube=model.mim_cube,
        mim_mask_ratio=model.mim_mask_ratio,
        mlm_probability=model.mlm_probability,
        sentence_view_probability=data.sentence_view_probability,
        per_gpu_batchsize=settings.optim.per_gpu_batchsize,
        num_workers=data.num_workers,
        seed=settings.run.seed,
    )


def fit_sentence_space(model: MG3D, data: MultiTaskDataModule, settings: Settings) -> dict[str, Any]:
    """Fits SSM's word weights and mean on the training reports; returns quantiles of random pairs' cosine; {} without SSM.

    Raises:
        ValueError: more than half of random pairs would count as the same sentence.
    """
    if "ssm" not in model.objectives:
        return {}
    reports = data.training_reports(most=MOST_REPORTS_FOR_STATISTICS)
    ids, attention_mask, index = pad_reports(data.tokenizer, reports, settings.data.max_text_len)
    model.fit_sentence_space(ids, index)
    cosines = model.random_sentence_cosines(ids, attention_mask, index, seed=settings.run.seed)
    same = float((cosines >= settings.model.ssm_same_above).float().mean())
    if same > 0.5 and settings.model.ssm_text != "plain":
        raise ValueError(
            f"{same:.0%} of random sentence pairs have a text cosine of at least ssm_same_above={settings.model.ssm_same_above}, "
            "so SSM would call most sentences the same; raise ssm_same_above or set weight_ssm=0"
        )
    levels = (0.05, 0.5, 0.95, 0.99)
    values = torch.quantile(cosines.float(), torch.tensor(levels))
    return {"share_same": same, "quantiles": {f"{q:.2f}": round(float(v), 4) for q, v in zip(levels, values, strict=True)}}
