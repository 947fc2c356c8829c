"""A pre-training run of a few seconds, started from the command line."""

import torch
from small_arrow import write_split

SMALL = [
    "image_size=32", "mim_patch_size=8", "embed_dim=12", "num_heads=[2]", "hidden_size=24", "embedding_size=16",
    "tiny_text_width=16",
    "tiny_text_layers=1", "tiny_text_heads=2", "per_gpu_batchsize=4", "batch_size=4", "warmup_steps=2", "max_steps=6",
    "val_interval=2", "val_batches=2", "log_interval=1", "num_workers=0", "patch_size=4", "depths=[2]", "ground_truth_root=''",
    "evidence=False", "accelerator=cpu",
]  # fmt: skip


def write_arrows(root, *, val=8):
    for split, patients in (("train", 14), ("val", val), ("test", 9)):
        for dataset, unit in (("ct_rate", "hu"), ("ctrg", "uint8_unknown_window")):
            write_split(root, dataset, split, patients=patients, shape=(32, 24, 32), unit=unit)
    return root


def words(arrows, log_dir, *more):
    return ["with", "tiny", *SMALL, f"data_root={arrows}", f"log_dir={log_dir}", "run_name=run", *more]


def checkpoint(run_dir, name="last"):
    return torch.load(run_dir / "checkpoints" / f"{name}.ckpt", weights_only=True)


def assert_same(one, other, path=""):
    assert type(one) is type(other), path
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_same(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), path
        for place, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{path}/{place}")
    else:
        assert one == other, path


def assert_same_training(ours, theirs):
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert_same(ours[part], theirs[part], part)
