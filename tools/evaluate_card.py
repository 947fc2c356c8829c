"""Evaluate a checkpoint on a card: a named, versioned recipe of data, labels, prompts and metrics (docs/evaluation.md)."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mg3d.cli import ArgumentParser, add_device_options, output_file, positive_int, run_and_print
from mg3d.evaluation.cards import CARDS

if TYPE_CHECKING:
    from mg3d.checkpoints.pretrained import Pretrained
    from mg3d.evaluation.card_data import CardData
    from mg3d.evaluation.card_result import CardResult


def load(checkpoint: str, tokenizer: Path | None) -> "Pretrained":
    """Model of a saved folder, hub id, run, or checkpoint of a run."""
    from mg3d.checkpoints.pretrained import from_pretrained, from_run
    from mg3d.checkpoints.resolve import find_local

    found = find_local(checkpoint)
    loaded = from_run(found, tokenizer=tokenizer) if found and found.is_file() else from_pretrained(checkpoint)
    if loaded.tokenizer is None:
        raise ValueError(f"{checkpoint} has no tokenizer, so prompts cannot be embedded. Name its folder with --tokenizer.")
    return loaded


def open_data(options: argparse.Namespace, loaded: "Pretrained") -> "CardData":
    """The card's data; ValueError if their shape differs from the model's, a warning if their preprocessing does."""
    from mg3d.datasets.schema import GEOMETRY_STEPS, differing_steps
    from mg3d.evaluation.card_data import CardData
    from mg3d.settings.schema import volume_shape

    settings = loaded.settings.data
    data = CardData(options.data_root, CARDS[options.card], window_hu=settings.window_hu, text_unit=settings.text_unit)
    expected = volume_shape(settings.image_size, settings.volume_size)
    if data.shape != expected:
        raise ValueError(
            f"{options.data_root} has volumes of {data.shape} voxels (z, y, x), but the model reads {expected}. Prepare it again."
        )
    if steps := differing_steps(loaded.config["preprocessing"].get("recipe"), data.metadata.get("preproc"), GEOMETRY_STEPS):
        print(
            f"mg3d: warning: {options.data_root} differs from the model's training data in preprocessing: {', '.join(steps)}",
            file=sys.stderr,
        )
    return data


def evaluate(options: argparse.Namespace) -> "CardResult":
    """Result of the card."""
    from mg3d.evaluation.encoder import MG3DEncoder
    from mg3d.evaluation.evaluate import evaluate_card, model_tables
    from mg3d.evaluation.phantom_tables import PhantomTables
    from mg3d.precision import find_device, inference_precision

    loaded = load(options.checkpoint, options.tokenizer)
    data = open_data(options, loaded)
    device, settings = find_device(options.device), loaded.settings
    precision = inference_precision(options.precision, device, trained=settings.run.precision)
    encoder = MG3DEncoder(loaded.model.to(device), loaded.tokenizer, max_text_len=settings.data.max_text_len, precision=precision)
    extra_tables = model_tables(
        encoder,
        same_above=settings.model.ssm_same_above,
        differ_below=settings.model.ssm_differ_below,
        phantom=PhantomTables(options.ground_truth_root, data) if options.ground_truth_root else None,
        generated=json.loads(options.reports.read_text(encoding="utf-8")) if options.reports else None,
        with_stress_test=options.stress,
    )
    return evaluate_card(
        data.card,
        data,
        encoder,
        model={"checkpoint": Path(options.checkpoint).name, "preprocessing": loaded.config["preprocessing"]},
        allow_partial=options.partial,
        batch_size=options.batch,
        extra_tables=extra_tables,
    )


def run(options: argparse.Namespace) -> str:
    """Write the requested files and return all tables as text."""
    result = evaluate(options)
    from mg3d.evaluation.card_result import write_result, write_result_page
    from mg3d.evaluation.tables import format_tables

    if options.json:
        write_result(options.json, result)
    if options.html:
        write_result_page(options.html, result)
    text = format_tables(result.title, result.tables)
    if options.card == "phantom" and not options.ground_truth_root:
        text += "\n\nmg3d: --ground-truth-root FOLDER adds grounding, true sides, report content and precision of sentence pairs"
    return text


def main(arguments: Sequence[str]) -> int:
    """Print all tables; returns the exit code."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("card", choices=CARDS, help="; ".join(f"{card.name}: {card.revision}" for card in CARDS.values()))
    parser.add_argument("--checkpoint", required=True, help="run folder, .ckpt of a run, saved model folder, or hub id")
    parser.add_argument("--data-root", type=Path, required=True, metavar="FOLDER", help="folder of Arrow files")
    parser.add_argument(
        "--partial", action="store_true", help="evaluate data that differ from the card's, and mark every table as PARTIAL"
    )
    parser.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="tokenizer, if it is not stored with the checkpoint")
    add_device_options(parser)
    parser.add_argument("--batch", type=positive_int, default=8, metavar="N", help="volumes per forward pass (%(default)s)")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the result, for tools/compare_results.py")
    parser.add_argument("--html", type=output_file, metavar="FILE", help="write tables and plots as one page")
    parser.add_argument(
        "--stress", action="store_true", help="stress test: drop in AUROC under flips, rotations, HU offsets, spacings, crops"
    )
    parser.add_argument(
        "--ground-truth-root",
        type=Path,
        metavar="FOLDER",
        help="folder of tools/make_phantom.py: adds grounding, laterality and report content against its ground truth",
    )
    parser.add_argument(
        "--reports", type=Path, metavar="FILE", help="generated reports, JSON of study id -> text; needs --ground-truth-root"
    )
    options = parser.parse_args(arguments)
    if options.reports and not options.ground_truth_root:
        parser.error("--reports needs --ground-truth-root")
    return run_and_print(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
