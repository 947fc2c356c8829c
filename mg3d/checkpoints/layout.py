"""Names of tensors: ours, and those of the released MG-3D code. Tensors correspond one to one; only their names differ.

Both directions are renamings of prefixes, so `to_ours(to_released(name)) == name` for every name of ours and
`to_released(to_ours(name)) == name` for every released one. The axes of every tensor are the same on both sides.
"""

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
"""(ours, released). Where one prefix begins with another, the longer one stands first."""

UNUSED = "unused."
"""Ours for a released tensor that no preset computes with: this prefix before its released name."""

_UNUSED_WITHIN: tuple[tuple[str, str], ...] = (
    ("local_img_cross_multihead_attention.", ".fc"),
    ("local_text_cross_multihead_attention.", ".fc"),
    ("multi_modal_agg_vision_pooler.", "global_attention."),
    ("mim_swin_unter_head.", "fc."),
    ("language_encoder.", "pooler."),
    ("language_encoder.", "embeddings.position_ids"),
)
"""(released prefix, what the rest of the name contains): built by the released code inside modules that are used, never read."""


def part_of(name: str) -> str:
    """Part of the model that one of our tensors belongs to: a branch, or a module beside them."""
    return ".".join(name.split(".")[: 2 if name.startswith("branches.") else 1])


def to_ours(released: str) -> str:
    """Our name of a released tensor."""
    if any(released.startswith(prefix) and within in released[len(prefix) - 1 :] for prefix, within in _UNUSED_WITHIN):
        return UNUSED + released
    for ours, theirs in _PAIRS:
        if released.startswith(theirs):
            return ours + released[len(theirs) :]
    return UNUSED + released


def to_released(ours: str) -> str:
    """The released name of one of our tensors.

    Raises:
        ValueError: the released code has nothing that corresponds (for example the learned mask token).
    """
    if ours.startswith(UNUSED):
        return ours[len(UNUSED) :]
    for prefix, theirs in _PAIRS:
        if ours.startswith(prefix) and to_ours(released := theirs + ours[len(prefix) :]) == ours:
            return released
    raise ValueError(f"{ours} has no counterpart in the released code")
