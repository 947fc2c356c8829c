"""Judge a checkpoint by an evaluation card: a named, versioned recipe of data, labels, prompts and metrics (`--help`)."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mg3d.checkpoints.command import Parser, answer, new_file
from mg3d.datasets.schema import SEEN, differing_steps
from mg3d.evaluation.cards import CARDS, find_card
from mg3d.settings.schema import Settings, volume_shape

if TYPE_CHECKING:
    from mg3d.checkpoints.export import Pretrained
    from mg3d.evaluation.results import Result


def load(checkpoint: str, tokenizer: Path | None) -> "Pretrained":
    """A saved folder, an id on the hub, a run, or a checkpoint of one."""
    from mg3d.checkpoints.export import from_pretrained, from_run
    from mg3d.checkpoints.places import find_weights

    found = find_weights(checkpoint)
    return from_run(found, tokenizer=tokenizer) if found and found.is_file() else from_pretrained(checkpoint)


def evaluate(given: argparse.Namespace) -> tuple["Result", Settings]:
    """The result of the card for what was given on the command line, and the model's settings."""
    import torch

    from mg3d.evaluation.cases import Cases
    from mg3d.evaluation.embedder import ModelEmbedder
    from mg3d.evaluation.parts import chosen_parts, require_masks
    from mg3d.evaluation.run_card import run_card

    card = find_card(given.card)
    loaded = load(given.checkpoint, given.tokenizer)
    if loaded.tokenizer is None:
        raise ValueError(f"{given.checkpoint} holds no tokenizer, so no prompt can be read; name the one of its run: --tokenizer")
    data = loaded.settings.data
    cases = Cases(given.data_root, card, window_hu=data.window_hu, text_unit=data.text_unit)
    asked, stored = volume_shape(data.image_size, data.volume_size), cases.indexes[cases.where[0][0]].shape
    if asked != stored:
        raise ValueError(
            f"{given.data_root} holds volumes of {stored} voxels (z, y, x), the model reads {asked}; prepare them anew"
        )
    if given.ground_truth_root:
        require_masks(cases, given.ground_truth_root)
    recipe = loaded.config["preprocessing"].get("recipe")
    if other := differing_steps(recipe, cases.metadata.get("preproc"), SEEN):
        told = f"{given.data_root} was prepared otherwise ({', '.join(other)}) than the volumes that the model was trained on"
        print(f"mg3d: {told}", file=sys.stderr)
    device = torch.device(given.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    embedder = ModelEmbedder(loaded.model.to(device), loaded.tokenizer, max_text_len=data.max_text_len)
    model = {"checkpoint": Path(given.checkpoint).name, "preprocessing": loaded.config["preprocessing"]}
    written = json.loads(given.reports.read_text(encoding="utf-8")) if given.reports else None
    parts = chosen_parts(embedder, loaded.settings, with_stress=given.stress,
                         ground_truth_root=given.ground_truth_root, written=written)
    result = run_card(card, cases, embedder, model=model, partial=given.partial, batch=given.batch, parts=parts)
    return result, loaded.settings


def report(given: argparse.Namespace) -> str:
    """Writes the files that were asked for; returns every table as text."""
    from mg3d.evaluation.page import write_result_page
    from mg3d.evaluation.results import tables_text, write_result

    result, settings = evaluate(given)
    if given.json:
        write_result(given.json, result)
    if given.html:
        limits = {"same_above": settings.model.ssm_same_above, "differ_below": settings.model.ssm_differ_below}
        write_result_page(given.html, result, **limits)
    return tables_text(result.title, result.tables)


def main(arguments: Sequence[str]) -> int:
    """Prints every table; returns the exit code."""
    parser = Parser(description=__doc__)
    parser.add_argument("card", help=", ".join(f"{card.name} ({card.revision})" for card in CARDS.values()))
    parser.add_argument("--checkpoint", required=True, help="folder or hub id of a saved model, or a run or .ckpt of it")
    parser.add_argument("--data-root", type=Path, required=True, help="folder of Arrow files")
    parser.add_argument("--partial", action="store_true", help="go on with other data than the card's, and say so in every table")
    parser.add_argument("--tokenizer", type=Path, help="folder of the tokenizer, where the checkpoint has none beside it")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ...; default: a GPU where there is one")
    parser.add_argument("--batch", type=int, default=8, help="volumes at once")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write the result there, for tools/compare_results.py")
    parser.add_argument("--html", type=new_file, metavar="FILE", help="write tables and plots there as one page")
    parser.add_argument("--stress", action="store_true", help="also what is lost under flips, turns, HU offsets, wrong spacings")
    parser.add_argument(
        "--ground-truth-root", type=Path, help="folder of a synthetic set, for grounding, sides and sentence truth"
    )
    parser.add_argument(
        "--reports", type=Path, metavar="FILE", help="JSON of study id -> generated report; needs --ground-truth-root"
    )
    given = parser.parse_args(arguments)
    if given.reports and not given.ground_truth_root:
        parser.error("--reports needs --ground-truth-root")
    return answer(lambda: report(given))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
