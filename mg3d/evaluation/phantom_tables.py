"""Tables that need the phantom's ground truth: grounding, laterality by true side, and generated reports."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mg3d.evaluation.card_data import CardData, CardEmbeddings
from mg3d.evaluation.encoder import as_sentence
from mg3d.evaluation.grounding import centre_map, finding_rows, method_rows, score_maps
from mg3d.evaluation.negation_and_laterality import embed_mirrored, side_rows, sided_prompts
from mg3d.evaluation.phantom_ground_truth import finding_sides, read_ground_truth, read_masks, require_masks
from mg3d.evaluation.phantom_reports import report_rows
from mg3d.evaluation.tables import Rows
from mg3d.glossary import LABELS, prompts

NORMAL_REPORT = "No acute finding in the thorax. The heart is of normal size. Both lungs are clear of consolidation."


class PhantomTables:
    """Tables of a card on the phantom in `root`, the folder of `tools/make_phantom.py`.

    Raises:
        ValueError: the data are not those of the phantom in `root`, or have no reports (raised by the table).
    """

    def __init__(self, root: Path, data: CardData) -> None:
        self.root = root
        chosen, reports = data.reported()
        ids = [data.study_ids[volume] for volume in chosen]
        truths = read_ground_truth(root, ids, [report.report for report in reports])
        if not truths:
            raise ValueError(f"{root} does not have the ground truth of these studies. Name the folder of the same phantom.")
        for volume in data.first_volumes:
            require_masks(root, data.volume_ids[volume])
        self.truths = truths
        """Ground truth of each study with a report."""

    def side_table(self, embeddings: CardEmbeddings) -> dict[str, Rows]:
        """AUROC of prompts with a side, by true side."""
        sides = finding_sides(self.truths)
        sided = np.flatnonzero((sides >= 0).any(1))
        chosen = embeddings.report_volumes[sided]
        prompts = embeddings.encoder.embed_texts([as_sentence(text) for text in sided_prompts()]).unflatten(0, (len(LABELS), 2))
        rows = side_rows(
            embeddings.volumes[chosen],
            embed_mirrored(embeddings, chosen),
            prompts,
            sides[sided],
            embeddings.report_patients[sided],
            bootstrap=embeddings.card.bootstrap,
        )
        return {"Laterality by prompts and true side": rows}

    def grounding_tables(self, embeddings: CardEmbeddings) -> dict[str, Rows]:
        """Grounding maps of `There is X.` against the masks of every finding that is present, with two baseline maps."""
        maps, masks, findings, patients = self._ground(embeddings)
        first = next(iter(maps.values()))
        random = torch.rand(first.shape, generator=torch.Generator().manual_seed(embeddings.card.seed))
        baselines = {"centre (baseline)": centre_map(first.shape[1:]).expand_as(first), "random (baseline)": random}
        scores = {name: score_maps(part, masks) for name, part in (maps | baselines).items()}
        bootstrap = embeddings.card.bootstrap
        tables = {"Grounding": method_rows(scores, patients, bootstrap)}
        for name in maps:
            tables[f"Grounding by finding, {name}"] = finding_rows(
                scores[name], findings, patients, centre_hit=scores["centre (baseline)"].hit, bootstrap=bootstrap
            )
        return tables

    def _ground(self, embeddings: CardEmbeddings) -> tuple[dict[str, Tensor], Tensor, np.ndarray, np.ndarray]:
        """Maps by method and masks of m (volume, finding) pairs, their findings and patients."""
        data, pairs = embeddings.data, [prompts(label) for label in LABELS]
        maps, masks, findings, patients = [], [], [], []
        for volume in data.first_volumes:
            (image,) = data.batches([volume], size=1)
            mask = read_masks(self.root, data.volume_ids[volume], data.shape)
            present = mask.flatten(1).any(1)
            maps.append({name: part[0, present] for name, part in embeddings.encoder.ground(image.clamp(0, 1), pairs).items()})
            masks.append(mask[present])
            findings += [LABELS[index] for index in present.nonzero()[:, 0]]
            patients += [data.patients[volume]] * int(present.sum())
        return (
            {name: torch.cat([part[name] for part in maps]) for name in maps[0]},
            torch.cat(masks),
            np.array(findings),
            np.array(patients),
        )

    def report_table(self, embeddings: CardEmbeddings, generated: Mapping[str, str] | None) -> dict[str, Rows]:
        """Content of generated reports against the ground truth, with the true report and one normal report for comparison.

        generated: study id -> report.

        Raises:
            ValueError: a study has no generated report.
        """
        true = [text.report for text in embeddings.reports]
        systems = {"true report": true, "same normal report for all": [NORMAL_REPORT] * len(true)}
        if generated is not None:
            missing = [study for study in embeddings.report_studies if study not in generated]
            if missing:
                raise ValueError(f"{len(missing)} of {len(true)} studies have no report in --reports, such as {missing[0]}")
            systems["generated"] = [generated[study] for study in embeddings.report_studies]
        rows = report_rows(systems, self.truths, embeddings.report_patients, embeddings.card.bootstrap)
        return {"Reports against the ground truth": rows}
