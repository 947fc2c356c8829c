"""Model card of a saved model."""

import json
from collections.abc import Mapping
from typing import Any

_CARD = """\
---
library_name: mg3d
tags: [medical, chest-ct, radiology, vision-language, 3d]
---
# {title}

A 3D vision-language model of chest CT volumes and radiology reports, pre-trained with mg3d {version}, an implementation of
[MG-3D](https://arxiv.org/abs/2412.05876). {parameters:.1f} M parameters, {precision}.

```python
import mg3d

model, settings, tokenizer, config = mg3d.from_pretrained("<this folder or its Hugging Face id>")
```

## Volume input

| | |
|---|---|
{preprocessing}

The encoder's patch merging is **{merging}**. The same tensors in an encoder with another merging give wrong features without an
error.

## Report input

{text}. {tokenizer}

## Training

| | |
|---|---|
{settings}

## Provenance

{provenance}

## Limitations

For research only. Not a medical device; not for clinical decisions. The licences of the training data apply.
"""
_TRAINING = (
    "vision_encoder", "embed_dim", "depths", "num_heads", "text_encoder", "hidden_size", "wiring",
    "weight_mlm", "weight_sal", "weight_mim", "weight_cml", "weight_dcl", "weight_ssm", "weight_captioning", "learning_rate",
    "batch_size", "max_steps", "datasets", "seed",
)  # fmt: skip
"""Settings listed in the section Training."""


def model_card(config: Mapping[str, Any], *, parameters: int, vocabulary: int | None) -> str:
    """Markdown from the content of config.json; vocabulary: size of the stored tokenizer, None without one."""
    settings, preprocessing = config["settings"], config["preprocessing"]
    tokenizer = f"Its tokenizer, of {vocabulary} entries, is in the folder `tokenizer`."
    if vocabulary is None:
        source = settings["text_encoder"]
        origin = "the tokenizer of its training run" if source == "tiny" else f"the tokenizer of {source}"
        tokenizer = f"**No tokenizer is stored here**: use {origin} ({config['text_config'].get('vocab_size')} entries)."
    recipe = preprocessing.get("recipe", {})
    volume = {name: value for name, value in preprocessing.items() if name not in ("text", "recipe")}
    return _CARD.format(
        title=f"mg3d, {settings['vision_encoder']} of width {settings['embed_dim']}",
        version=config["package_version"],
        parameters=parameters / 1e6,
        precision=config["precision"],
        preprocessing=_table(volume | {name: recipe[name] for name in ("crop", "resize") if name in recipe}),
        merging=settings["patch_merging"] if settings["vision_encoder"] == "swin" else "none",
        text=preprocessing["text"].capitalize(),
        tokenizer=tokenizer,
        settings=_table({name: settings[name] for name in _TRAINING if name in settings}),
        provenance="\n".join(f"* {name}: {value}" for name, value in config["provenance"].items()) or "Not stated.",
    )


def _table(rows: Mapping[str, Any]) -> str:
    texts = {name: json.dumps(value) if isinstance(value, dict) else value for name, value in rows.items()}
    return "\n".join(f"| {name} | {text} |" for name, text in texts.items())
