"""Vocabulary of chest CT findings: labels, prompts, synonyms."""

LABELS: tuple[str, ...] = (
    "Medical material",
    "Arterial wall calcification",
    "Cardiomegaly",
    "Pericardial effusion",
    "Coronary artery wall calcification",
    "Hiatal hernia",
    "Lymphadenopathy",
    "Emphysema",
    "Atelectasis",
    "Lung nodule",
    "Lung opacity",
    "Pulmonary fibrotic sequela",
    "Pleural effusion",
    "Mosaic attenuation pattern",
    "Peribronchial thickening",
    "Consolidation",
    "Bronchiectasis",
    "Interlobular septal thickening",
)
"""The 18 abnormalities of CT-RATE, in the order of its label files."""

PREVALENCE: tuple[float, ...] = (
    0.120, 0.278, 0.107, 0.071, 0.248, 0.142, 0.253, 0.194, 0.256, 0.455, 0.367, 0.267, 0.119, 0.074, 0.103, 0.176, 0.100,
    0.079,
)  # fmt: skip
"""Prevalence of each label among the CT-RATE training scans."""

PROMPTS: dict[str, tuple[str, str]] = {
    "there_is": ("There is {finding}.", "There is no {finding}."),
    "ct_clip": ("{Finding} is present.", "{Finding} is not present."),
    "original": ("{Finding}.", "not {Finding}."),
    "seen": ("{Finding} is seen.", "No {finding} is seen."),
    "evidence": ("There is evidence of {finding}.", "There is no evidence of {finding}."),
    "noted": ("{Finding} is noted.", "{Finding} is not noted."),
}
"""Wording -> zero-shot prompt pair (present, absent). `there_is`: the default; `ct_clip`: from the CT-CLIP evaluation;
`original`: from the original code's evaluation on CT-RATE; the others are paraphrases."""

ENSEMBLE: tuple[str, ...] = ("there_is", "ct_clip", "seen", "evidence", "noted")
"""Wordings whose embeddings are averaged; without `original`, because a bare name is not a report sentence."""

FINDING_CUES: dict[str, tuple[str, ...]] = {
    "Medical material": (
        "medical material", "pacemaker", "catheter", "stent", "prosthe", "sternotomy", "suture", "implant", "tube", "device",
    ),
    "Arterial wall calcification": (
        "arterial wall calcification", "aortic calcification", "aortic wall calcification", "calcified plaque of the aorta",
        "atheromat", "calcific atheroma", "calcified atheroma",
    ),
    "Cardiomegaly": ("cardiomegaly", "cardiac enlargement", "enlargement of the heart", "heart is enlarged", "heart size"),
    "Pericardial effusion": ("pericardial effusion", "pericardial fluid", "fluid around the heart"),
    "Coronary artery wall calcification": ("coronary artery wall calcification", "coronary calcification",
                                           "coronary artery calcification", "coronary plaque", "coronary arter"),
    "Hiatal hernia": ("hiatal hernia", "hiatus hernia", "sliding hernia"),
    "Lymphadenopathy": ("lymphadenopathy", "enlarged lymph node", "nodal enlargement", "lymph node"),
    "Emphysema": ("emphysema",),
    "Atelectasis": ("atelecta",),
    "Lung nodule": ("nodule", "nodular"),
    "Lung opacity": ("opacity", "opacities", "ground glass", "ground-glass", "infiltrat"),
    "Pulmonary fibrotic sequela": ("fibrotic", "fibrosis", "sequela"),
    "Pleural effusion": ("pleural effusion", "pleural fluid", "hydrothorax"),
    "Mosaic attenuation pattern": ("mosaic attenuation", "mosaic pattern", "mosaic perfusion"),
    "Peribronchial thickening": ("peribronchial thickening", "bronchial wall thickening", "thickening of the bronchial wall"),
    "Consolidation": ("consolidat",),
    "Bronchiectasis": ("bronchiecta",),
    "Interlobular septal thickening": ("septal thickening", "thickening of the interlobular sept"),
}  # fmt: skip
"""Word prefixes that name each of `LABELS` in reports. A weak labeller: it knows neither all synonyms nor uncertainty."""

def prompts(finding: str, *, wording: str = "there_is") -> tuple[str, str]:
    """Prompt pair (present, absent) of a finding such as `"Hiatal hernia"`."""
    lower = finding[0].lower() + finding[1:]
    present, absent = PROMPTS[wording]
    return present.format(finding=lower, Finding=finding), absent.format(finding=lower, Finding=finding)
