import numpy as np
import pytest
from small_card import WINDOW, SideEmbedder, bright_side, small_card, write

from mg3d.evaluation.cases import Cases
from mg3d.evaluation.measure import MEAN, dev_part
from mg3d.evaluation.page import write_result_page
from mg3d.evaluation.parts import probes_part, stress_part
from mg3d.evaluation.results import compare, measured, read_result, same_data, shown, tables_text, write_result
from mg3d.evaluation.run_card import run_card


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("arrows"), patients=12, scans=1, reconstructions=2, voxels=bright_side)


def run(folder, *, embedder=None, partial=False, **changes):
    card = small_card(**{"volumes": 24, "studies": 12, "patients": 12, "n_bootstrap": 4, "recall_ks": (1, 5), **changes})
    cases = Cases(folder, card, window_hu=WINDOW)
    parts = [probes_part, stress_part]
    return run_card(card, cases, embedder or SideEmbedder(), model={"name": "by hand"}, partial=partial, batch=5, parts=parts)


@pytest.fixture(scope="module")
def result(folder):
    return run(folder)


def cell(result, heading, row, column):
    (rows,) = [rows for name, rows in result.tables.items() if name.startswith(heading)]
    key = next(iter(rows[0]))
    return next(line for line in rows if line[key] == row)[column]


def test_a_model_that_is_always_right_scores_one(result):
    assert cell(result, "Zero-shot findings", MEAN, "auroc") == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert cell(result, "Zero-shot findings", MEAN, "auprc")["value"] == 1.0
    assert cell(result, "Negation", "mean", "here, nearer to X")["value"] == 1.0


def test_an_orientation_mistake_is_seen_at_once(result):
    assert cell(result, "Stress", "as it is", "auroc")["value"] == 1.0
    assert "volume to report, R@10" not in result.tables["Stress, 12 volumes"][0]  # 7 texts: all are among the first 10
    assert cell(result, "Stress", "left and right exchanged", "lost") == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert cell(result, "Stress", "half turn in the axial plane", "lost")["value"] == 1.0
    for harmless in ("head and feet exchanged (slices reversed)", "front and back exchanged", "+30 HU"):
        assert cell(result, "Stress", harmless, "lost")["value"] == 0.0


def test_a_model_that_does_not_look_loses_nothing(folder):
    class Blind(SideEmbedder):
        def volumes(self, volumes):
            return super().volumes(volumes * 0 + 1)

    lost = [row["lost"]["value"] for row in run(folder, embedder=Blind()).tables["Stress, 12 volumes"][1:]]
    assert lost == [0.0] * len(lost)


def test_two_runs_write_equal_files(folder, result, tmp_path):
    write_result(tmp_path / "first.json", result)
    write_result(tmp_path / "second.json", run(folder))
    assert (tmp_path / "first.json").read_bytes() == (tmp_path / "second.json").read_bytes()
    assert read_result(tmp_path / "first.json").title == "card phantom v1"


def test_partial_stands_in_every_table_on_screen_in_the_file_and_on_the_page(folder, tmp_path):
    partial = run(folder, partial=True, volumes=99)
    screen = tables_text(partial.title, partial.tables)
    headings = [name for name, rows in partial.tables.items() if rows]
    assert len(headings) >= 6
    assert screen.count("· card phantom v1 · PARTIAL 24/99") == len(headings)
    write_result(tmp_path / "result.json", partial)
    assert (tmp_path / "result.json").read_text().count('"card": "card phantom v1 · PARTIAL 24/99"') == len(partial.tables)
    write_result_page(tmp_path / "page.html", partial, same_above=0.9, differ_below=0.6)
    page = (tmp_path / "page.html").read_text()
    assert page.count("PARTIAL 24/99</h2>") == page.count("</h2>") == len(partial.tables) + 1


def test_data_that_are_not_the_card_s_are_refused_before_anything_is_computed(folder):
    class Never(SideEmbedder):
        def volumes(self, volumes):
            raise AssertionError

    with pytest.raises(ValueError, match="24 volumes instead of 99"):
        run(folder, embedder=Never(), volumes=99)


def test_a_better_model_differs_from_a_worse_one_and_none_from_itself(folder, result):
    class Turned(SideEmbedder):
        def volumes(self, volumes):
            return super().volumes(volumes.flip(-1))

    worse = run(folder, embedder=Turned())
    main, findings = compare(result, worse, n_bootstrap=99).values()
    assert main[0]["difference"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert main[0]["p"] == 2 / 100  # the least that 99 draws can show; the turned signs of twelve patients alone show 1 / 2**11
    assert "volume to report, R@5" in {row["number"] for row in main}
    assert len(findings) == 18
    assert all(row["q"] >= row["p"] for row in findings)
    same = compare(result, result, n_bootstrap=99)["Main numbers, first minus second"]
    assert all(row["difference"]["value"] == 0 and row["p"] == 1 for row in same)


def test_results_of_other_data_or_another_card_are_not_compared(folder, result, tmp_path):
    other = result._replace(data=result.data | {"labels_sha256": "f" * 64})
    with pytest.raises(ValueError, match="differ in labels_sha256"):
        same_data(result, other)
    with pytest.raises(ValueError, match="card's bins"):
        same_data(result, result._replace(card=result.card | {"bins": 3}))
    (tmp_path / "no.json").write_text("{}")
    with pytest.raises(ValueError, match="is no result"):
        read_result(tmp_path / "no.json")


def test_volumes_without_reports_have_no_text_retrieval_and_unknown_labels_no_number(tmp_path, monkeypatch):
    write(tmp_path, patients=12, scans=1, reconstructions=2, voxels=bright_side, reported=lambda number: False)
    known = Cases.labels.func

    def without_the_third(cases):
        return np.where(np.arange(18) == 2, -1, known(cases)).astype(np.int8)

    monkeypatch.setattr(Cases, "labels", property(without_the_third))
    found = run(tmp_path)
    assert not [name for name in found.tables if "reports" in name]
    third = found.tables["Zero-shot findings"][2]
    assert (third["cases"], shown(third["auroc"]), shown(third["prevalence"])) == (0, "- [-, -]", "-")
    assert cell(found, "Zero-shot findings", MEAN, "auroc")["value"] == 1.0
    write_result(tmp_path / "result.json", found)
    back = read_result(tmp_path / "result.json")
    assert back.tables["Zero-shot findings"][2]["auroc"] == {"value": None, "low": None, "high": None}
    assert len(compare(back, back, n_bootstrap=9)["AUROC by finding, first minus second"]) == 18


def test_the_dev_part_is_of_whole_patients_and_the_same_whoever_else_is_there():
    patients = np.array([f"ct_rate/valid_{number // 2}" for number in range(2000)])
    dev = dev_part(patients, 0.2)
    assert (dev[::2] == dev[1::2]).all()
    assert dev.mean() == pytest.approx(0.2, abs=0.04)
    assert (dev_part(patients[::-1][:500], 0.2) == dev[::-1][:500]).all()


def test_a_cell_is_the_value_with_its_interval():
    found = measured(lambda rows: float(np.mean(np.array([0.0, 1.0, 1.0, 0.0])[rows])), np.arange(4), n_bootstrap=200, seed=0)
    assert found["value"] == 0.5
    assert 0 <= found["low"] < 0.5 < found["high"] <= 1
    assert shown({"value": 0.5, "low": 0.25, "high": float("nan")}) == "0.500 [0.250, -]"
