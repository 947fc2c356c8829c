"""Parameter names of mg3d and of the published MG-3D code: one-to-one prefix renamings, with identical tensors on both sides."""

_PAIRS: tuple[tuple[str, str], ...] = (
    ("vision.", "vision_encoder."),
    ("text.bert.", "language_encoder."),
    ("project_image.", "multi_modal_vision_proj."),
    ("project_report.", "multi_modal_language_proj."),
    ("type_embedding.", "modality_type_embeddings."),
    ("fusion_volume.layers.", "local_img_cross_multihead_attention."),
    ("fusion_report.layers.", "local_text_cross_multihead_attention."),
    ("branches.report.sal_head.prediction.", "mlm_head.fc."),
    ("branches.report.sal_head.target.", "uni_emd_sen."),
    ("branches.report.mlm_head.", "mlm_head."),
    ("branches.volume.decoder.", "mim_swin_unter_head."),
    ("fused_contrast.unimodal_image_pool.", "uni_modal_vision_pooler."),
    ("fused_contrast.multimodal_image_pool.", "multi_modal_vision_pooler."),
    ("fused_contrast.unimodal_report_pool.", "uni_global_text_attention."),
    ("fused_contrast.multimodal_report_pool.", "multi_global_text_attention."),
    ("fused_contrast.multimodal_head.norm.", "itc_cross_head.vision_ln."),
    ("fused_contrast.multimodal_head.projection.", "itc_cross_head.vision_proj."),
    ("fused_contrast.unimodal_head.norm.", "itc_cross_head.language_ln."),
    ("fused_contrast.unimodal_head.projection.", "itc_cross_head.language_proj."),
    ("branches.disentangled.aggregation.layers.", "agg_img_cross_attention."),
    ("branches.disentangled.aggregation.pool.", "multi_modal_agg_vision_pooler."),
    ("branches.disentangled.aggregation.sentence_head.", "multi_modal_sen_vision_pooler."),
    ("branches.disentangled.image_head.norm.", "itc_agg_head.vision_ln."),
    ("branches.disentangled.image_head.projection.", "itc_agg_head.vision_proj."),
    ("branches.disentangled.aggregate_head.norm.", "itc_agg_head.language_ln."),
    ("branches.disentangled.aggregate_head.projection.", "itc_agg_head.language_proj."),
)
"""(ours, released); a longer prefix precedes its own beginning."""

UNUSED = "unused."
"""Prefix of released tensors that no forward pass reads."""

_UNUSED_WITHIN: tuple[tuple[str, str], ...] = (
    ("local_img_cross_multihead_attention.", ".fc"),
    ("local_text_cross_multihead_attention.", ".fc"),
    ("multi_modal_agg_vision_pooler.", "global_attention."),
    ("mim_swin_unter_head.", "fc."),
    ("language_encoder.", "pooler."),
    ("language_encoder.", "embeddings.position_ids"),
)
"""(released prefix, part of the rest of the name): unused tensors inside modules that are used."""


def part_of(name: str) -> str:
    """Part of the model that a tensor of mg3d belongs to: `branches.NAME`, or the first component of its name."""
    return ".".join(name.split(".")[: 2 if name.startswith("branches.") else 1])


def to_ours(released: str) -> str:
    """mg3d's name of a released tensor."""
    if any(released.startswith(prefix) and within in released[len(prefix) - 1 :] for prefix, within in _UNUSED_WITHIN):
        return UNUSED + released
    for ours, theirs in _PAIRS:
        if released.startswith(theirs):
            return ours + released[len(theirs) :]
    return UNUSED + released


def to_released(ours: str) -> str:
    """The released name of one of mg3d's tensors; the inverse of `to_ours`.

    Raises:
        ValueError: the released code has no counterpart, for example of the learned mask token.
    """
    if ours.startswith(UNUSED):
        return ours[len(UNUSED) :]
    for prefix, theirs in _PAIRS:
        if ours.startswith(prefix) and to_ours(released := theirs + ours[len(prefix) :]) == ours:
            return released
    raise ValueError(f"{ours} has no counterpart in the published MG-3D code")
