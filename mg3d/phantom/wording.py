"""Phrases of the synthetic reports.

Placeholders: `{name}` and `{Name}` (capitalised) of the finding, `{where}` a location or nothing, `{size}` in mm, `{grade}` of
severity. Templates contain no comma, because commas separate clauses and every clause has its own ground truth. Every verb occurs
in positive and negative templates, so that the verb does not reveal the polarity.
"""

from typing import NamedTuple


class FindingPhrases(NamedTuple):
    """Phrases of one finding."""

    organ: str
    names: tuple[str, ...]
    """Synonyms; the first is the label."""
    positive: tuple[str, ...]
    negative: tuple[str, ...]


POSITIVE = (
    "There is {name}{where}.", "There is {name}{where}.", "{Name} is present{where}.", "{Name} is present{where}.",
    "{Name} is seen{where}.", "{Name} is identified{where}.", "{Name} is noted{where}.", "{Name} is observed{where}.",
    "There is {grade} {name}{where}.", "{grade} {name} is present{where}.", "Findings of {name} are seen{where}.",
)  # fmt: skip
NEGATIVE = (
    "There is no {name}.", "There is no {name}.", "{Name} is not present.", "{Name} is not present.", "No {name} is seen.",
    "{Name} is not identified.", "No {name} is noted.", "{Name} is not observed.", "No evidence of {name}.",
    "No findings of {name} are seen.",
)  # fmt: skip
UNCERTAIN = ("Possible {name}{where}.", "{Name}{where} is suspected.", "Appearance raises the question of {name}{where}.")
GRADES = ("mild", "moderate", "marked")
CONNECTIVES = (
    "Also ", "Again ", "In addition ", "Furthermore ", "Besides ", "At the same time ", "Incidentally ", "Likewise ",
    "As before ", "Overall ",
)  # fmt: skip
"""Prefixes of a statement, independent of its polarity."""

PHRASES: dict[str, FindingPhrases] = {
    "Medical material": FindingPhrases(
        "heart", ("medical material", "implanted device", "medical hardware"),
        ("A pacemaker with two leads lies in the left chest wall.", "A pulse generator is implanted below the left clavicle."),
        ("No pacemaker and no other device are implanted.",),
    ),
    "Arterial wall calcification": FindingPhrases(
        "vessels", ("arterial wall calcification", "calcified plaque of the aorta", "aortic wall calcification"),
        ("The aortic wall carries {grade} calcified plaques.", "Calcific atheroma lines the thoracic aorta."),
        ("The aortic wall is free of calcified plaques.",),
    ),
    "Cardiomegaly": FindingPhrases(
        "heart", ("cardiomegaly", "cardiac enlargement", "enlargement of the heart"),
        ("The cardiac silhouette exceeds half of the thoracic width.", "The heart is enlarged.", "Heart size is increased."),
        ("Heart size is within the expected range.", "The heart is not enlarged.", "Heart size is normal."),
    ),
    "Pericardial effusion": FindingPhrases(
        "heart", ("pericardial effusion", "pericardial fluid", "fluid around the heart"),
        ("Fluid up to {size} mm surrounds the heart.", "The pericardium holds an effusion of {size} mm."),
        ("The pericardium is free of fluid.",),
    ),
    "Coronary artery wall calcification": FindingPhrases(
        "vessels", ("coronary artery wall calcification", "coronary calcification", "coronary artery calcification"),
        ("The coronary arteries carry {grade} calcified plaques.", "Calcified coronary plaques are visible."),
        ("The coronary arteries are free of calcified plaques.",),
    ),
    "Hiatal hernia": FindingPhrases(
        "mediastinum", ("hiatal hernia", "hernia of the stomach", "sliding hernia at the oesophageal hiatus"),
        ("Part of the stomach has slid behind the heart.", "A hernia of {size} mm with an air-fluid level lies there."),
        ("The stomach lies below the diaphragm and is not herniated.",),
    ),
    "Lymphadenopathy": FindingPhrases(
        "mediastinum", ("lymphadenopathy", "mediastinal nodal enlargement", "nodal enlargement"),
        ("Mediastinal nodes measure up to {size} mm in short axis.", "Lymph nodes of {size} mm exceed the usual size."),
        ("Mediastinal and hilar nodes are not enlarged.",),
    ),
    "Emphysema": FindingPhrases(
        "lungs", ("emphysema", "emphysematous change", "emphysematous destruction of the lung"),
        ("Small air pockets replace lung tissue in both upper lobes.", "Centrilobular lucencies affect both lungs."),
        ("Lung density is preserved and emphysematous areas are absent.",),
    ),
    "Atelectasis": FindingPhrases(
        "lungs", ("atelectasis", "plate-like atelectasis", "subsegmental collapse"),
        ("A band of collapsed lung runs{where}.", "Linear volume loss is visible{where}."),
        ("Both lungs are fully expanded without collapse.",),
    ),
    "Lung nodule": FindingPhrases(
        "lungs", ("lung nodule", "pulmonary nodule", "nodule of the lung"),
        ("A {size} mm nodule lies{where}.", "Round focus measuring {size} mm{where}."),
        ("Neither lung shows a nodule.", "Both lungs are free of nodules."),
    ),
    "Lung opacity": FindingPhrases(
        "lungs", ("lung opacity", "ground-glass opacity", "hazy opacity of the lung"),
        ("Ground glass of up to {size} mm covers lung{where}.", "Hazy increase of lung density{where}."),
        ("Both lungs are clear of ground glass.",),
    ),
    "Pulmonary fibrotic sequela": FindingPhrases(
        "lungs", ("pulmonary fibrotic sequela", "fibrotic banding", "scarring of the lung"),
        ("Fibrous strands reach the pleura{where}.", "Old scars draw on the lung{where}."),
        ("Neither apex shows fibrous strands.",),
    ),
    "Pleural effusion": FindingPhrases(
        "pleura", ("pleural effusion", "pleural fluid", "fluid in the pleural space"),
        ("Layering fluid of {size} mm depth{where}.", "The dependent pleural space holds fluid{where}."),
        ("The pleural spaces are free of fluid.", "The costophrenic recesses are clear of fluid."),
    ),
    "Mosaic attenuation pattern": FindingPhrases(
        "lungs", ("mosaic attenuation pattern", "mosaic attenuation", "mosaic lung density"),
        ("Lung density varies from lobule to lobule like a mosaic.", "Patchwork of darker and lighter lung."),
        ("Lung density is even without a mosaic pattern.",),
    ),
    "Peribronchial thickening": FindingPhrases(
        "airways", ("peribronchial thickening", "bronchial wall thickening", "thickening of the bronchial walls"),
        ("The walls of the central bronchi are thickened.", "Cuffing surrounds the central bronchi."),
        ("Bronchial walls are not thickened.",),
    ),
    "Consolidation": FindingPhrases(
        "lungs", ("consolidation", "airspace consolidation", "consolidated lung"),
        ("Dense airspace filling of up to {size} mm with air bronchogram{where}.", "Solid lung with air bronchogram{where}."),
        ("Neither lung shows airspace filling.", "Both lungs are clear of consolidation."),
    ),
    "Bronchiectasis": FindingPhrases(
        "airways", ("bronchiectasis", "bronchial dilatation", "dilatation of the bronchi"),
        ("Bronchi are wider than their arteries{where}.", "Tram lines mark widened bronchi{where}."),
        ("Bronchial calibre is normal.",),
    ),
    "Interlobular septal thickening": FindingPhrases(
        "lungs", ("interlobular septal thickening", "septal thickening", "thickening of the interlobular septa"),
        ("A net of thickened septa outlines the lobules.", "Septal lines reach the pleura of both lungs."),
        ("The interlobular septa are not thickened.",),
    ),
}  # fmt: skip

NORMAL: dict[str, tuple[str, ...]] = {
    "heart": (
        "Cardiac chambers are unremarkable.", "Cardiac contours are normal.", "The heart lies in normal position.",
        "Heart chambers show no special feature.",
    ),
    "vessels": (
        "Calibre of the great vessels is normal.", "The pulmonary trunk is not dilated.", "The aorta is of normal width.",
        "Great vessels are unremarkable.",
    ),
    "mediastinum": (
        "The oesophagus is unremarkable.", "The thymic bed is unremarkable.", "No mediastinal mass is seen.",
        "The mediastinum lies in the midline without shift.",
    ),
    "lungs": (
        "Lung volumes are normal.", "Ventilation of both lungs is preserved.", "No mass is seen in either lung.",
        "The lung apices are unremarkable.",
    ),
    "airways": (
        "The trachea is of normal width.", "The main bronchi are not narrowed.", "No endobronchial lesion is seen.",
        "Trachea and main bronchi lie in normal position.",
    ),
    "pleura": (
        "The pleura is not thickened.", "No pneumothorax is seen.", "Pleural surfaces are smooth without plaques.",
        "No pleural plaque is present.",
    ),
    "bones": (
        "Vertebral heights are preserved.", "No lytic lesion is seen in the bones.", "Bones are unremarkable for age.",
        "Thoracic vertebrae are in normal alignment.",
    ),
    "abdomen": (
        "Visible parts of the liver are unremarkable.", "The spleen is of normal size.", "Adrenal glands are not thickened.",
        "Upper abdominal organs are unremarkable.",
    ),
}  # fmt: skip

DISTRACTORS: dict[str, tuple[str, ...]] = {
    "bones": ("An old fracture crosses the right sixth rib.", "Degenerative spurs of the thoracic spine."),
    "abdomen": ("Fatty liver.", "A cyst of {size} mm lies in the left kidney."),
    "mediastinum": ("A nodule of {size} mm lies in the thyroid.",),
}
"""Findings outside the 18 labels, in a few reports; not drawn in the volume."""

NOTHING_FOUND = (
    "No acute finding in the thorax", "Chest CT within normal limits", "Unremarkable chest CT", "No pathology in the chest",
)  # fmt: skip
