"""What a card can be asked for beside its main numbers: stress, probes, and the truth of synthetic studies."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mg3d.datasets.studies import ReportText
from mg3d.evaluation import content, explorer, grounding, probes, stress, truth
from mg3d.evaluation.cases import Cases
from mg3d.evaluation.embedder import ModelEmbedder, embed_batches, sentence
from mg3d.evaluation.measure import logits_by_wording
from mg3d.evaluation.results import Rows
from mg3d.evaluation.retrieval import directions
from mg3d.evaluation.run_card import Setting
from mg3d.glossary import ENSEMBLE, LABELS, prompts
from mg3d.metrics.retrieval import first_rank
from mg3d.sentence_spans import normalise, polarity
from mg3d.settings.schema import Settings

CONSTANT = "No acute finding in the thorax. The heart is of normal size. Both lungs are clear of consolidation."
COSINES = "Sentences: pairs by cosine"
PRECISION_KS = (1, 5, 10)
SWEEP = tuple(round(0.05 * step, 2) for step in range(6, 20))


class Looking(Protocol):
    """A model that tells where in an image a text is found."""

    def maps(self, volumes: Tensor, pairs: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
        """Kind of map -> [B, pairs, d, h, w], 0 and above, of volumes in [0, 1]: where the first text rather than the second is
        found."""


class Speaking(Protocol):
    """A model with a text side of SSM."""

    def sentences(self, texts: Sequence[ReportText]) -> list[tuple[ReportText, Tensor]]:
        """Each report with those of its units that are read, and a vector [S, d] for each."""


def _settings(setting: Setting) -> dict[str, int]:
    return {"n_bootstrap": setting.card.n_bootstrap, "seed": setting.card.seed}


def stress_part(setting: Setting) -> dict[str, Rows]:
    """The stress table, of the first volumes of the card's first studies with a report, or of any where none has one."""
    card, cases, embedder = setting.card, setting.cases, setting.embedder
    chosen = (setting.told_volumes if len(setting.told) else cases.first)[: card.stress_studies]
    made = stress.changes(cases.window_hu if cases.has_hounsfield else None)
    batches = lambda: cases.batches(chosen, size=setting.batch)  # noqa: E731
    vectors = stress.changed_outputs(lambda volumes: embedder.volumes(volumes).numpy(), batches, made)
    scores, ranks = {}, {}
    reports = setting.reports[: len(chosen)].numpy() if setting.reports is not None else None
    keys = [normalise(text.report) for text in setting.report_texts[: len(chosen)]]
    for name, rows in vectors.items():
        logits = logits_by_wording(torch.from_numpy(rows), setting.prompts, embedder.logit_scale, card.wordings)
        scores[name] = logits[card.wording]
        if reports is not None and len(set(keys)) > stress.K:  # else every report is among the first
            part = directions(rows, reports, report_keys=keys)[0]
            ranks[name] = first_rank(part.similarity, part.right)
    rows = stress.stress_rows(scores, cases.labels[chosen], cases.patients[chosen], ranks=ranks, **_settings(setting))
    return {f"Stress, {len(chosen)} volumes": rows}


def probes_part(setting: Setting, truths: Sequence[Mapping[str, Any]] | None = None) -> dict[str, Rows]:
    """Negation and laterality; truths: of the studies with a report, for the sides of findings."""
    card, cases, embedder = setting.card, setting.cases, setting.embedder
    by_wording = dict(zip(card.wordings, setting.prompts, strict=True))
    members = [by_wording[name] for name in ENSEMBLE if name in by_wording]
    pair = by_wording.get(card.wording)
    if pair is None:
        pair = sum(members) / sum(members).norm(dim=-1, keepdim=True)
    tables = {"Negation": probes.negation_rows(setting.volumes, pair, cases.labels, cases.patients, **_settings(setting))}
    swapped = [text._replace(report=probes.swap_sides(text.report)) for text in setting.report_texts]
    sided = np.array([a.report != b.report for a, b in zip(swapped, setting.report_texts, strict=True)], bool)
    if not sided.any():
        return tables
    # `left` and `right` differ in length, so the units of the swapped text are other offsets: both are read as they are cut.
    swapped = [_cut_again(setting.report_texts[place], swapped[place].report) for place in np.flatnonzero(sided)]
    chosen = setting.told_volumes[sided]
    mirrored = embed_batches(embedder, (batch.flip(stress.X) for batch in cases.batches(chosen, size=setting.batch)))
    volumes, patients = setting.volumes[chosen], cases.patients[chosen]
    reports = setting.reports[torch.from_numpy(sided)]
    tables["Left and right: reports"] = probes.mirror_rows(
        volumes, mirrored, reports, embedder.texts(swapped), patients, **_settings(setting)
    )
    if truths is not None:
        sides = truth.sides_of([truths[place] for place in np.flatnonzero(sided)])
        embedded = embedder.texts([sentence(text) for text in probes.sided_prompts()]).unflatten(0, (len(LABELS), 2))
        rows = probes.side_rows(volumes, mirrored, embedded, sides, patients, **_settings(setting))
        tables["Left and right: prompts, by true side"] = rows
    return tables


def _cut_again(original: ReportText, swapped: str) -> ReportText:
    """The swapped text with the units of the original, moved by what the exchanged words before each edge have grown."""
    edges = sorted({edge for span in original.sentence_spans for edge in span})
    moved = {edge: len(probes.swap_sides(original.report[:edge])) for edge in edges}
    spans = tuple((moved[start], moved[end]) for start, end in original.sentence_spans)
    return original._replace(report=swapped, sentence_spans=spans)


def grounding_part(setting: Setting, model: Looking, root: Path) -> dict[str, Rows]:
    """Maps of `There is X.` against the true masks, of every finding that is there, beside maps that know nothing.

    Raises:
        FileNotFoundError: the set was made without masks.
    """
    cases, pairs = setting.cases, [prompts(label) for label in LABELS]
    maps, masks, findings, patients = [], [], [], []
    for start in range(0, len(cases.first), setting.batch):
        places = cases.first[start : start + setting.batch]
        (volumes,) = cases.batches(places, size=setting.batch)
        seen = model.maps(volumes.clamp(0.0, 1.0), pairs)
        there = torch.stack([truth.read_masks(_mask_path(root, cases.ids[place]), volumes.shape[2:]) for place in places])
        chosen = there.flatten(2).any(2)
        maps.append({kind: part[chosen] for kind, part in seen.items()})
        masks.append(there[chosen])
        rows, columns = chosen.nonzero().unbind(1)
        findings.append(columns.numpy())
        patients.append(cases.patients[places][rows.numpy()])
    together = {kind: torch.cat([part[kind] for part in maps]) for kind in maps[0]}
    some = next(iter(together.values()))
    together["the middle"] = grounding.middle_map(some.shape[1:]).expand_as(some)
    together["at random"] = torch.rand(some.shape, generator=torch.Generator().manual_seed(setting.card.seed))
    scores = {kind: grounding.ground(part, torch.cat(masks)) for kind, part in together.items()}
    people, numbers = np.concatenate(patients), _settings(setting)
    by_finding = {
        f"Grounding by finding, {kind}": grounding.grounding_rows(
            scores[kind], np.concatenate(findings), people, LABELS, middle=scores["the middle"].hit, **numbers
        )
        for kind in maps[0]
    }
    return {
        "Grounding against the true masks": grounding.compared_rows(scores, people, **numbers),
        **by_finding,
        "Grounding, Dice over thresholds": grounding.dice_rows(scores, people, **numbers),
    }


def require_masks(cases: Cases, root: Path) -> None:
    """Refuses a synthetic set without masks (FileNotFoundError), before minutes of other numbers; others are refused as such."""
    if (root / "truth").is_dir():
        for place in cases.first:
            _mask_path(root, cases.ids[place])


def _mask_path(root: Path, volume_id: str) -> Path:
    path = truth.mask_path(root, volume_id)
    if not path.is_file():
        raise FileNotFoundError(f"no mask {path}; add them with `python tools/make_phantom.py --out {root} --masks`")
    return path


def content_part(
    setting: Setting, truths: Sequence[Mapping[str, Any]], written: Mapping[str, str] | None = None
) -> dict[str, Rows]:
    """Reports against the truth: the true ones (what the reader reads), a constant one, and those a model has written.

    written: study id -> text.

    Raises:
        ValueError: a study has no written report.
    """
    ids = [setting.cases.study_ids[place] for place in setting.told_volumes]
    true = [text.report for text in setting.report_texts]
    systems = {"the true report": true, "one normal report for all": [CONSTANT] * len(true)}
    if written is not None:
        missing = [name for name in ids if name not in written]
        if missing:
            raise ValueError(f"{len(missing)} of {len(ids)} studies have no written report, the first {missing[0]}; write all")
        systems["written by the model"] = [written[name] for name in ids]
    patients = setting.cases.patients[setting.told_volumes]
    return {"Reports against the truth": content.content_rows(systems, truths, patients, **_settings(setting))}


def read_sentences(
    setting: Setting, model: Speaking, truths: Sequence[Mapping[str, Any]] | None
) -> tuple[explorer.Sentences, list[str]]:
    """Every sentence of every report that the model reads, and its text."""
    read = model.sentences(setting.report_texts)
    texts, meanings, owner = [], [], []
    for place, (text, _) in enumerate(read):
        texts += [text.report[start:end] for start, end in text.sentence_spans]
        meanings += truth.meanings_of(truths[place], *text) if truths is not None else [None] * len(text.sentence_spans)
        owner += [place] * len(text.sentence_spans)
    _, patient = np.unique(setting.cases.patients[setting.told_volumes], return_inverse=True)
    polarities = torch.tensor([polarity(text) for text in texts], dtype=torch.int8)
    codes = explorer.meaning_codes(meanings)
    return explorer.Sentences(
        torch.cat([vectors for _, vectors in read]), polarities, torch.from_numpy(patient[owner]), codes
    ), texts


def matching_part(
    setting: Setting,
    sentences: explorer.Sentences,
    texts: Sequence[str] | None,
    *,
    same_above: float,
    differ_below: float,
    batch: int,
) -> dict[str, Rows]:
    """What SSM takes for the same; texts: of the sentences, where they may be shown (synthetic ones), else None."""
    limits = {"same_above": same_above, "differ_below": differ_below}
    pairs = explorer.all_pairs(sentences)
    tables = {
        "Sentences: nearest of other patients": explorer.precision_rows(sentences, ks=PRECISION_KS, **_settings(setting)),
        "Sentences: wrong pairs in a batch": explorer.batch_row(sentences, patients=batch, **limits, **_settings(setting)),
        COSINES: explorer.histogram_rows(pairs),
        "Sentences: pairs by threshold": explorer.threshold_rows(pairs, sorted({*SWEEP, same_above, differ_below})),
    }
    if texts is not None:
        tables["Sentences: examples of pairs"] = explorer.examples(pairs, texts, **limits)
    return tables


def chosen_parts(
    model: ModelEmbedder,
    settings: Settings,
    *,
    with_stress: bool = False,
    ground_truth_root: Path | None = None,
    written: Mapping[str, str] | None = None,
) -> list[Callable[[Setting], dict[str, Rows]]]:
    """Probes and sentence pairs, and where asked for stress; with the folder of a synthetic set also what its truth tells.

    Raises (when called): FileNotFoundError as `grounding_part`; ValueError: the folder is not of these studies.
    """
    truths: list[Mapping[str, Any]] = []

    def known(setting: Setting) -> Sequence[Mapping[str, Any]] | None:
        if ground_truth_root is not None and not truths:
            ids = [setting.cases.study_ids[place] for place in setting.told_volumes]
            found = truth.read_truths(ground_truth_root, ids, [text.report for text in setting.report_texts])
            if found is None:
                raise ValueError(
                    f"{ground_truth_root} does not hold the truth of these studies; name the folder of the very synthetic set"
                )
            truths.extend(found)
        return truths or None

    def matching(setting: Setting) -> dict[str, Rows]:
        if not setting.report_texts:
            return {}
        sentences, texts = read_sentences(setting, model, known(setting))
        limits = {"same_above": settings.model.ssm_same_above, "differ_below": settings.model.ssm_differ_below}
        batch = settings.optim.batch_size
        return matching_part(setting, sentences, texts if known(setting) else None, batch=batch, **limits)

    parts: list[Callable[[Setting], dict[str, Rows]]] = [lambda setting: probes_part(setting, known(setting))]
    if "ssm" in model.model.objectives:
        parts.append(matching)
    if ground_truth_root is not None:
        parts.append(lambda setting: grounding_part(setting, model, ground_truth_root))
        parts.append(lambda setting: content_part(setting, known(setting) or [], written) if setting.report_texts else {})
    return [*parts, stress_part] if with_stress else parts
