import numpy as np
import pytest
from small_card import WINDOW, SideEncoder, bright_side, small_card, write

from mg3d.evaluation.card_data import CardData
from mg3d.evaluation.card_result import compare_results, read_result, require_same_data, write_result, write_result_page
from mg3d.evaluation.evaluate import evaluate_card
from mg3d.evaluation.negation_and_laterality import negation_and_laterality_tables
from mg3d.evaluation.stress_test import stress_tables
from mg3d.evaluation.tables import Bootstrap, format_cell, format_tables
from mg3d.evaluation.zero_shot import MEAN


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("arrows"), patients=12, scans=1, reconstructions=2, voxels=bright_side)


def run(folder, *, encoder=None, allow_partial=False, **changes):
    card = small_card(**{"volumes": 24, "studies": 12, "patients": 12, "n_bootstrap": 4, "recall_ks": (1, 5), **changes})
    return evaluate_card(
        card,
        CardData(folder, card, window_hu=WINDOW),
        encoder or SideEncoder(),
        model={"name": "hand-made"},
        allow_partial=allow_partial,
        batch_size=5,
        extra_tables=[negation_and_laterality_tables, stress_tables],
    )


@pytest.fixture(scope="module")
def result(folder):
    return run(folder)


def cell(result, heading, row, column):
    (rows,) = [rows for name, rows in result.tables.items() if name.startswith(heading)]
    key = next(iter(rows[0]))
    return next(line for line in rows if line[key] == row)[column]


def test_a_perfect_model_scores_one(result):
    assert cell(result, "Zero-shot findings", MEAN, "auroc") == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert cell(result, "Zero-shot findings", MEAN, "auprc")["value"] == 1.0
    assert cell(result, "Negation", MEAN, "present, closer to X")["value"] == 1.0


def test_a_wrong_orientation_is_visible_in_the_stress_test(result):
    assert cell(result, "Stress", "unchanged", "auroc")["value"] == 1.0
    assert "volume to report, R@10" not in result.tables["Stress test, 12 volumes"][0]  # 7 texts: all are among the first 10
    assert cell(result, "Stress", "left-right flip", "drop") == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert cell(result, "Stress", "180° axial rotation", "drop")["value"] == 1.0
    for harmless in ("superior-inferior flip (slices reversed)", "anterior-posterior flip", "+30 HU"):
        assert cell(result, "Stress", harmless, "drop")["value"] == 0.0


def test_a_model_that_ignores_the_image_has_no_drop(folder):
    class Blind(SideEncoder):
        def embed_volumes(self, volumes):
            return super().embed_volumes(volumes * 0 + 1)

    drops = [row["drop"]["value"] for row in run(folder, encoder=Blind()).tables["Stress test, 12 volumes"][1:]]
    assert drops == [0.0] * len(drops)


def test_two_runs_write_equal_files(folder, result, tmp_path):
    write_result(tmp_path / "first.json", result)
    write_result(tmp_path / "second.json", run(folder))
    assert (tmp_path / "first.json").read_bytes() == (tmp_path / "second.json").read_bytes()
    assert read_result(tmp_path / "first.json").title == "card phantom v1"


def test_partial_is_shown_in_every_table_on_screen_in_the_file_and_on_the_page(folder, tmp_path):
    partial = run(folder, allow_partial=True, volumes=99)
    headings = [name for name, rows in partial.tables.items() if rows]
    assert len(headings) >= 6
    assert format_tables(partial.title, partial.tables).count("· card phantom v1 · PARTIAL 24/99") == len(headings)
    write_result(tmp_path / "result.json", partial)
    assert (tmp_path / "result.json").read_text().count('"card": "card phantom v1 · PARTIAL 24/99"') == len(partial.tables)
    write_result_page(tmp_path / "page.html", partial)
    page = (tmp_path / "page.html").read_text()
    assert page.count("PARTIAL 24/99</h2>") == page.count("</h2>") == len(partial.tables) + 1
    assert "<img" in page


def test_data_that_differ_from_the_card_are_refused_before_anything_is_computed(folder):
    class Never(SideEncoder):
        def embed_volumes(self, volumes):
            raise AssertionError

    with pytest.raises(ValueError, match="24 volumes instead of 99"):
        run(folder, encoder=Never(), volumes=99)


def test_a_better_model_differs_from_a_worse_one_and_not_from_itself(folder, result):
    class Flipped(SideEncoder):
        def embed_volumes(self, volumes):
            return super().embed_volumes(volumes.flip(-1))

    main, findings = compare_results(result, run(folder, encoder=Flipped()), n_bootstrap=99).values()
    assert main[0]["difference"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert main[0]["p"] == 2 / 100  # the smallest p of 99 draws; the sign-flip test of twelve patients has 1 / 2**11
    assert "volume to report, R@5" in {row["metric"] for row in main}
    assert len(findings) == 18
    assert all(row["p (Holm)"] >= row["p"] for row in findings)
    same = compare_results(result, result, n_bootstrap=99)["First minus second"]
    assert all(row["difference"]["value"] == 0 and row["p"] == 1 for row in same)


def test_results_of_other_data_cards_or_formats_are_not_compared(result, tmp_path):
    with pytest.raises(ValueError, match="differ in labels_sha256"):
        require_same_data(result, result._replace(data=result.data | {"labels_sha256": "f" * 64}))
    with pytest.raises(ValueError, match="these fields of the card: bins"):
        require_same_data(result, result._replace(card=result.card | {"bins": 3}))
    for content in ("{}", "[]", '{"format": 1}'):
        (tmp_path / "no.json").write_text(content)
        with pytest.raises(ValueError, match=r"was not written by `tools/evaluate_card.py --json` of this version"):
            read_result(tmp_path / "no.json")


def test_without_reports_there_is_no_text_retrieval_and_without_labels_no_value(tmp_path, monkeypatch):
    write(tmp_path, patients=12, scans=1, reconstructions=2, voxels=bright_side, reported=lambda number: False)
    known = CardData.labels.func

    def without_the_third(data):
        return np.where(np.arange(18) == 2, -1, known(data)).astype(np.int8)

    monkeypatch.setattr(CardData, "labels", property(without_the_third))
    found = run(tmp_path)
    assert not [name for name in found.tables if "reports" in name]
    third = found.tables["Zero-shot findings"][2]
    assert (third["cases"], format_cell(third["auroc"]), format_cell(third["prevalence"])) == (0, "undefined", "undefined")
    assert cell(found, "Zero-shot findings", MEAN, "auroc")["value"] == 1.0
    write_result(tmp_path / "result.json", found)
    back = read_result(tmp_path / "result.json")
    assert back.tables["Zero-shot findings"][2]["auroc"] == {"value": None, "low": None, "high": None}
    assert len(compare_results(back, back, n_bootstrap=9)["AUROC by finding, first minus second"]) == 18


def test_a_cell_is_the_value_with_its_interval():
    few = Bootstrap(200, 0).mean(np.array([0.0, 1.0, 1.0, 0.0, np.nan, np.nan]), np.arange(6))
    assert format_cell(few) == "0.500 [too few patients (4)]"
    found = Bootstrap(200, 0).mean(np.array([0.0, 1.0, 1.0, 0.0, 1.0, 0.0]), np.arange(6))
    assert found["value"] == 0.5
    assert 0 <= found["low"] < 0.5 < found["high"] <= 1
    assert format_cell({"value": 0.5, "low": 0.25, "high": float("nan")}) == "0.500 [0.250, undefined]"
