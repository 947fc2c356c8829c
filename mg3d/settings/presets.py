"""Presets: named groups of settings for the command line. Where two presets set the same setting, the last one wins."""

_SWIN = {"vision_encoder": "swin", "depths": (2, 2, 2, 2), "num_heads": (3, 6, 12, 24)}
_VIT = {"vision_encoder": "vit", "patch_size": 16, "mim_decoder": "linear"}

PRESETS: dict[str, dict[str, object]] = {
    # --- task; the defaults of the schema are the paper's recipe
    "task_pretrain_mg3d": {},
    "task_pretrain_ptunifier": {},  # the name in the published code
    # --- volume encoders
    "swin_b": _SWIN | {"embed_dim": 48, "token_projection": False},
    "vit3d16": _SWIN | {"embed_dim": 48, "token_projection": False},  # the published code's name of swin_b
    "swin_l": _SWIN | {"embed_dim": 96, "token_projection": True},  # 768 channels after the projection, as published
    "swin_l_unprojected": _SWIN | {"embed_dim": 96, "token_projection": False},  # 1536 channels
    "vit_b": _VIT | {"embed_dim": 768, "depths": (12,), "num_heads": (12,)},
    "vit_l": _VIT | {"embed_dim": 1024, "depths": (24,), "num_heads": (16,)},
    "vit_tiny": _VIT | {"embed_dim": 96, "depths": (4,), "num_heads": (3,)},  # for the preset tiny
    "unet": {"vision_encoder": "unet", "embed_dim": 48, "norm_statistics": "batch"},
    "nnunet": {"vision_encoder": "nnunet", "embed_dim": 48},
    # --- report encoders
    "text_radbert": {"text_encoder": "StanfordAIMI/RadBERT", "freeze_text": True},
    "text_tiny": {"text_encoder": "tiny", "freeze_text": False},
    # --- objectives (docs/fidelity.md)
    "mg3d": {"wiring": "paper", "weight_cml": 1.0, "sentence_views": 2},
    "mg3d_intended": {"wiring": "intended", "weight_cml": 0.1, "sentence_views": 0},
    "mg3d_released": {"wiring": "released", "weight_cml": 0.1, "sentence_views": 0},
    # --- an additional objective for any of these
    "captioning": {"weight_captioning": 1.0},
    # --- a small model for a synthetic data set: minutes on two CPU cores
    "tiny": {
        "data_root": "data/synthetic/pretrain_arrows", "ground_truth_root": "data/synthetic", "log_dir": "result/tiny",
        "image_size": 64, "max_text_len": 250, "sentence_views": 4, "image_pool": "positional",
        "text_encoder": "tiny", "freeze_text": False, "tiny_text_layers": 1,
        "embed_dim": 48, "patch_size": 8, "window_size": 4, "depths": (2,), "num_heads": (3,),
        "standardise_voxels": True, "pool_queries": 8,
        "hidden_size": 96, "embedding_size": 96, "fusion_layers": 1, "fusion_heads": 4, "mim_decoder": "linear",
        "mim_patch_size": 16,
        "learning_rate": 1e-3, "head_lr_multiplier": 1.0, "weight_decay": 1e-2, "warmup_steps": 50, "max_steps": 900,
        "per_gpu_batchsize": 16, "batch_size": 16, "num_workers": 1, "val_interval": 100, "val_batches": 8, "log_interval": 20,
    },
    # --- the paper's encoder on a synthetic data set, for a GPU
    "full": {
        "data_root": "data/synthetic_full/pretrain_arrows", "ground_truth_root": "data/synthetic_full", "log_dir": "result/full",
        "max_steps": 20_000, "warmup_steps": 500,
    },
}  # fmt: skip
"""Preset -> the settings it sets."""
