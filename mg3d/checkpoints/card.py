"""The model card that a saved model carries: what it is, what it needs, where it comes from."""

from collections.abc import Mapping
from typing import Any

_CARD = """\
---
library_name: mg3d
tags: [medical, chest-ct, radiology, vision-language, 3d]
---
# {title}

A 3D vision-language model of chest CT volumes and radiology reports, pre-trained with
[MG-3D](https://arxiv.org/abs/2412.05876) as re-implemented by mg3d {version}. {parameters:.1f} M parameters, {precision}.

```python
import mg3d

model, settings, tokenizer, config = mg3d.from_pretrained("<this folder or its hub id>")
```

## What a volume must look like

| | |
|---|---|
{preprocessing}

The encoder's patch merging is **{merging}**. Equal tensors in an encoder with another merging give other features, without error.

## What a report must look like

{text}. {tokenizer}

## How it was trained

| | |
|---|---|
{settings}

## Where the weights come from

{provenance}

## Limits

For research. It was not tested as a medical device and must not decide about patients. Licences of the training data apply.
"""
_TOLD = (
    "vision_encoder", "embed_dim", "depths", "num_heads", "text_encoder", "hidden_size", "wiring",
    "weight_mlm", "weight_sal", "weight_mim", "weight_cml", "weight_dcl", "weight_ssm", "weight_captioning", "learning_rate",
    "batch_size", "max_steps", "datasets", "seed",
)  # fmt: skip


def model_card(config: Mapping[str, Any], *, parameters: int, words: int | None) -> str:
    """Markdown from what config.json holds; words: entries of the tokenizer stored with the model, None where none is."""
    settings, provenance = config["settings"], config["provenance"]
    lines = [f"* {name}: {value}" for name, value in provenance.items()]
    known, source = config["text_config"].get("vocab_size"), settings["text_encoder"]
    tokenizer = f"Its tokenizer, of {words} entries, is in the folder `tokenizer`."
    if words is None:
        whose = "the one trained on the reports of the run" if source == "tiny" else f"that of {source}"
        tokenizer = f"**No tokenizer is stored here**: reports must be read with {whose} (the model knows {known} words)."
    return _CARD.format(
        text=config["preprocessing"]["text"].capitalize(),
        tokenizer=tokenizer,
        title=f"mg3d, {settings['vision_encoder']} of width {settings['embed_dim']}",
        version=config["package_version"],
        parameters=parameters / 1e6,
        precision=config["precision"],
        preprocessing=_table(_volume(config["preprocessing"])),
        merging=config["patch_merging"],
        settings=_table({name: settings[name] for name in _TOLD if name in settings}),
        provenance="\n".join(lines) or "Not stated when the model was saved.",
    )


def _volume(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of volumes, with the steps that decide what of a scan is seen."""
    recipe = preprocessing.get("recipe", {})
    steps = {name: recipe[name] for name in ("crop", "resize") if name in recipe}
    return {name: value for name, value in preprocessing.items() if name not in ("text", "recipe")} | steps


def _table(rows: Mapping[str, Any]) -> str:
    return "\n".join(f"| {name} | {value} |" for name, value in rows.items())
