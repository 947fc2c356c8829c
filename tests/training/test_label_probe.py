import json

import torch

from mg3d.config import resolve
from mg3d.training.label_probe import build_probe, diagnose_labels

SMALL = {
    "image_size": 32, "mim_patch_size": 8, "embed_dim": 12, "num_heads": [2], "hidden_size": 24,
    "embedding_size": 16, "patch_size": 4,
    "depths": [2], "batch_size": 8, "per_gpu_batchsize": 8, "accelerator": "cpu", "datasets": ["ct_rate"],
    "image_pool": "positional",
}  # fmt: skip


def test_the_probe_sees_what_the_contrast_sees():
    probe = build_probe(resolve(["tiny"], SMALL))
    probe.model.voxels.fit(torch.rand(5, 1, 32, 24, 32))
    volume = torch.rand(2, 1, 32, 24, 32)
    pooled = probe.model.contrast.image_pool(probe.model.encode_volume(volume))
    torch.testing.assert_close(probe.model.contrast.image_head(pooled), probe.model.embed_volume(volume))
    torch.testing.assert_close(probe(volume), probe.head(pooled))


def test_labels_that_the_intensity_gives_are_learned_and_told(tmp_path, bright_and_dark):
    settings = resolve(["tiny"], SMALL | {"data_root": str(bright_and_dark), "max_steps": 40, "warmup_steps": 2})
    lines = []
    result = diagnose_labels(settings, tmp_path, say=lines.append)
    assert result == json.loads((tmp_path / "diagnosis.json").read_text())
    assert len(result) == len(lines) == 18
    assert min(result.values()) > 0.9
