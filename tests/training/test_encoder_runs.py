"""A run from the command line with each encoder word, of the published volume and of few channels."""

import pytest
import torch
from small_arrow import write_split

from mg3d.config import command_line


@pytest.mark.slow
@pytest.mark.parametrize("word", ["unet", "nnunet"])
def test_an_encoder_word_trains_from_the_command_line(word, tmp_path):
    for split in ("train", "val", "test"):
        for dataset, unit in (("ct_rate", "hu"), ("ctrg", "uint8_unknown_window")):
            write_split(tmp_path, dataset, split, patients=4, shape=(128, 96, 128), unit=unit)
    small = [
        "tiny", word, "embed_dim=2", "image_size=128", "hidden_size=24", "embedding_size=16", "mim_decoder=conv",
        "tiny_text_width=16", "tiny_text_heads=2", "per_gpu_batchsize=2", "batch_size=2", "warmup_steps=1", "max_steps=2",
        "val_interval=2", "val_batches=1", "log_interval=1", "num_workers=0", "evidence=False", "accelerator=cpu",
        "ground_truth_root=''", "gradient_checkpointing=True", f"data_root={tmp_path}", f"log_dir={tmp_path}", "run_name=run",
    ]  # fmt: skip
    assert command_line(["with", *small]) == 0
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert saved["mg3d"]["settings"]["vision_encoder"] == word
    token = saved["state_dict"]["model.vision.mask_token"]
    assert token.shape == (1,)
    assert token.item() != -1  # it has been trained
