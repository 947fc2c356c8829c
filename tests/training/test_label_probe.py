import json

import torch

from mg3d.config import resolve
from mg3d.evaluation.label_probe import build_probe
from mg3d.training.run import diagnose

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


def test_the_diagnosis_learns_labels_that_follow_the_intensity(tmp_path, bright_and_dark, capsys):
    more = {"data_root": str(bright_and_dark), "log_dir": str(tmp_path / "run"), "max_steps": 40, "warmup_steps": 2}
    diagnose(resolve(["tiny"], SMALL | more))
    result = json.loads((tmp_path / "run" / "diagnosis.json").read_text())
    assert len(result) == capsys.readouterr().out.count("mg3d: ") == 18
    assert min(result.values()) > 0.9
