"""Reports: from words to scores, and the folder CTRG."""

import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from downstream.folders import load

import mg3d.finetune.fit as fit
from mg3d.finetune.cases import Case, divide
from mg3d.finetune.encoder import TINY, build_encoder
from mg3d.finetune.kinds.report import ReportGeneration
from mg3d.finetune.prepared import Order, prepared
from mg3d.finetune.run import run
from mg3d.finetune.settings import FinetuneSettings
from mg3d.finetune.task import Preprocess, Task
from mg3d.glossary import LABELS

SMALL = ["epochs=2", "batch_size=1", "learning_rate=3e-3", "num_workers=0", "n_bootstrap=20", "accelerator=cpu", "width=32",
         "heads=4", "layers=1", "most_tokens=24", "beams=2"]  # fmt: skip


def words_of(root, results, *more):
    return [f"data_root={root}", f"log_dir={results}", "run_name=first", *SMALL, *more]


@pytest.fixture(scope="module")
def trained(tiny_set, tmp_path_factory):
    """A run on the small CTRG, judged by its last epoch, for the first writes nothing: (data root, results, its words)."""
    root, results = tiny_set("CTRG"), tmp_path_factory.mktemp("results")
    assert run(load("CTRG").TASK, words_of(root, results)) == 0
    folder = results / "CTRG" / "first" / "fold0"
    words = words_of(root, results, f"checkpoint={folder / 'checkpoints' / 'last.ckpt'}")
    assert run(load("CTRG").TASK, [*words, "mode=evaluate"]) == 0
    return root, folder / "of-last", words


def kind_of(options=(), *, outputs=("Effusion", "No Finding"), **settings):
    task = Task(folder="f", title="t", kind="report", read_cases=lambda *_: [], outputs=outputs, metric="bleu4",
                preprocess=Preprocess(window=(0, 255), size=(20, 16, 24)),
                options={"width": 8, "heads": 2, "layers": 1, "most_tokens": 8, **dict(options)})  # fmt: skip
    return ReportGeneration(task, FinetuneSettings(**settings))


def case(report, *, name="1", target=(), image=None):
    return Case(case_id=name, patient_id=name, image=image, target=target, report=report)


TRAINING = [
    *(case("No effusion. Clear lung.", target=(0, 1)) for _ in range(2)),
    case("The lung is clear.", target=(0, 1)),
    *(case("Small effusion. No clear lung.", target=(1, 0)) for _ in range(3)),
]


def table_of(kind, reports, generated):
    rows = [
        {"case_id": str(place), "patient_id": str(place), "words": kind.style, "reference": report, "template": "",
         "target": kind._speakable(report), "constant": kind.constant, "generated": made}
        for place, (report, made) in enumerate(zip(reports, generated, strict=True))
    ]  # fmt: skip
    return kind.finish(pd.DataFrame(rows))


def test_bleu_of_a_table_by_hand():
    # The words are those that come three times: ".", "clear", "effusion", "lung", "no". Targets "no <unk> effusion ." (4 words)
    # and "clear lung ." (3). Written: "no effusion ." (3 of 3 words, pair "effusion ." of 2, no triple) and "clear lung ."
    # (3, 2, 1).
    # 6 words against 7: brevity exp(1 - 7 / 6).
    kind = kind_of()
    kind.fit(TRAINING)
    found = kind.statistics(table_of(kind, ["No large effusion.", "Clear lung."], ["no effusion .", "clear lung ."]))
    brevity = math.exp(1 - 7 / 6)
    assert found["bleu1"] == pytest.approx(brevity)
    assert found["bleu2"] == pytest.approx(brevity * math.sqrt(3 / 4))
    assert found["bleu3"] == pytest.approx(brevity * (3 / 4 * 1 / 2) ** (1 / 3))
    assert found["bleu4"] == 0
    # The raw reference has no points and no <unk>: "no large effusion", "clear lung" against "no effusion", "clear lung".
    assert found["raw/bleu1"] == pytest.approx(math.exp(1 - 5 / 4))
    assert found["raw/bleu2"] == pytest.approx(math.exp(1 - 5 / 4) * math.sqrt(1 / 2))


def test_the_constant_report_is_the_commonest_of_normal_scans():
    kind = kind_of()
    kind.fit(TRAINING)
    assert kind.constant == "no effusion . clear lung ."
    kind.fit([case(one.report) for one in TRAINING])  # without labels, of all
    assert kind.constant == "small effusion . no clear lung"  # as far as there is room
    assert kind._template((1, 0)) == "There is effusion."
    assert kind._template((0, 1)) == "There is no effusion."


def sample_of(kind, tmp_path, report, name="1"):
    np.save(tmp_path / "scan.npy", np.random.default_rng(0).integers(0, 255, (20, 16, 24)))
    return kind.fixed(masks=False)(case(report, name=name, image=tmp_path / "scan.npy"))


def test_long_reports_are_cut_with_their_end_and_unknown_words_are_one(tmp_path):
    kind = kind_of()
    kind.fit(TRAINING)
    sample = sample_of(kind, tmp_path, "Clear effusion " * 9)
    assert (sample["count"], len(sample["ids"]), int(sample["ids"][-1])) == (8, 8, 0)
    sample = sample_of(kind, tmp_path, "No pneumothorax")
    assert sample["count"] == 5
    assert kind.words.decode(sample["ids"].tolist()) == "no <unk> ."
    assert sample["ids"].tolist()[4:] == [0, 0, 0, 0]


def test_the_loss_is_of_every_word_and_its_end_and_of_no_padding(tmp_path):
    """Against one report at a time without padding, by hand."""
    kind = kind_of()
    kind.fit(TRAINING)
    torch.manual_seed(0)
    network = kind.network(build_encoder(TINY)).eval()
    reports = ("Clear.", "No effusion. Clear")  # 2 words and 5, for points are words
    samples = [sample_of(kind, tmp_path, report, name=report[0]) for report in reports]
    batch = fit.list_data_collate(samples)
    found = kind.loss(network, batch).item()
    losses = []
    for sample in samples:
        ids = sample["ids"][: sample["count"]][None]
        scores = network(sample["image"][None], ids[:, :-1], torch.ones_like(ids[:, :-1], dtype=torch.bool)).log_softmax(-1)
        losses += [-scores[0, place, word].item() for place, word in enumerate(ids[0, 1:].tolist())]
    assert len(losses) == (2 + 1) + (5 + 1)
    assert found == pytest.approx(np.mean(losses), rel=1e-5)


def test_two_scans_are_told_apart_after_a_few_steps(tmp_path):
    kind = kind_of({"width": 32})
    kind.fit(TRAINING)
    reports = {"bright": "No effusion.", "dark": "Clear lung. No effusion."}
    scans = np.zeros((2, 20, 16, 24))
    scans[0, 4:12, 3:9] = 200
    samples = []
    for (name, report), scan in zip(reports.items(), scans, strict=True):
        np.save(tmp_path / f"{name}.npy", scan)
        samples.append(kind.fixed(masks=False)(case(report, name=name, image=tmp_path / f"{name}.npy")))
    batch = fit.list_data_collate(samples)
    torch.manual_seed(0)
    network = kind.network(build_encoder(TINY))
    optimizer = torch.optim.Adam(network.parameters(), lr=6e-3)
    for _ in range(70):
        optimizer.zero_grad()
        kind.loss(network, batch).backward()
        optimizer.step()
    assert [row["generated"] for row in kind.rows(network.eval(), batch)] == ["no effusion .", "clear lung . no effusion ."]


def test_what_a_checkpoint_holds_makes_the_same_words_whatever_the_options_say():
    kind, other = kind_of(), kind_of({"words": "faithful", "width": 16, "most_tokens": 9})
    kind.fit(TRAINING)
    other.restore(json.loads(json.dumps(kind.state())))
    assert other.state() == kind.state()
    assert other.words.encode("No effusion.", 9).tolist() == kind.words.encode("No effusion.", 9).tolist()


class FakeLabeller:
    """Knows one finding by one word; counts what it is asked."""

    def __init__(self):
        self.asked = 0

    def labels(self, reports):
        self.asked += len(reports)
        found = np.zeros((len(reports), len(LABELS)), np.int8)
        found[:, LABELS.index("Pleural effusion")] = ["effusion" in report.lower() for report in reports]
        return found


def test_a_labeller_compares_what_is_found_by_hand_and_sees_a_text_once():
    kind = kind_of()
    kind.labeller, kind.label_names = FakeLabeller(), LABELS
    kind.fit(TRAINING)
    table = table_of(kind, ["Effusion.", "Large effusion.", "Clear."], ["effusion .", "clear .", "effusion ."])
    found = kind.statistics(table)
    assert found["clinical/micro_precision"] == found["clinical/micro_recall"] == found["clinical/micro_f1"] == 0.5
    assert found["constant/clinical/micro_precision"] == pytest.approx(2 / 3)  # "no effusion" holds the word, thrice
    assert found["constant/clinical/micro_recall"] == 1
    assert kind.labeller.asked == len({*table["reference"], *table["generated"], kind.constant})


def test_a_run_leaves_texts_counts_and_scores_that_follow_from_its_table(trained):
    _, folder, _ = trained
    facts = json.loads((folder / "scores.json").read_text())
    table = pd.read_csv(folder / "predictions_test.csv", dtype={"case_id": str})
    assert {"reference", "target", "generated", "constant", "template"} <= set(table)
    told = {score["name"]: score["value"] for score in facts["scores"]["test"]}
    for name, value in kind_of().statistics(table).items():
        assert told[name] == pytest.approx(value), name
    assert {"bleu4", "rouge_l", "cider", "raw/bleu4", "constant/bleu4", "template/bleu4"} <= set(told)
    assert table["target"].str.split().str.len().max() <= 24 - 2


def test_no_report_is_logged(trained, capsys):
    _, folder, words = trained
    assert run(load("CTRG").TASK, [*words, "mode=evaluate"]) == 0
    told = capsys.readouterr()
    table = pd.read_csv(folder / "predictions_test.csv")
    pieces = [report[:30] for name in ("reference", "target", "generated") for report in table[name].dropna()]
    page = (folder / "results.html").read_text()
    assert pieces
    assert not [piece for piece in pieces if piece in told.out + told.err + page]


def test_evaluation_again_and_prediction_of_either_form_write_the_same_reports(trained, tmp_path):
    root, folder, words = trained
    before = pd.read_csv(folder / "predictions_test.csv", dtype={"case_id": str})
    assert before["generated"].notna().all()
    assert run(load("CTRG").TASK, [*words, "mode=evaluate"]) == 0
    pd.testing.assert_frame_equal(before, pd.read_csv(folder / "predictions_test.csv", dtype={"case_id": str}))
    names = before["case_id"].tolist()
    shutil.copytree(root / "Chest_New_nitfy_2", tmp_path / "nifti")
    pictures = {str(item["id"]): item["image_path"] for item in json.loads((root / "chest_ctrg_jpg.json").read_text())}
    for name in names:
        shutil.copytree((root / pictures[name][0]).parent, tmp_path / "jpeg" / name)
    for form in ("nifti", "jpeg"):
        asked = [
            *words,
            "mode=predict",
            f"input={tmp_path / form}",
            f"output={tmp_path / form}_out",
            "width=16",
            "words=faithful",
        ]
        assert run(load("CTRG").TASK, asked) == 0
        mine = pd.read_csv(tmp_path / f"{form}_out" / "predictions.csv", dtype={"case_id": str}).set_index("case_id")
        assert mine.loc[names, "generated"].tolist() == before["generated"].tolist(), form


@pytest.mark.slow
def test_training_goes_on_where_it_was_cut_off(trained, tmp_path, monkeypatch):
    root, folder, _ = trained
    kept = fit.build_trainer

    def stops_early(*arguments, **named):
        trainer = kept(*arguments, **named)
        trainer.fit_loop.max_epochs = 1
        return trainer

    with monkeypatch.context() as patched:
        patched.setattr(fit, "build_trainer", stops_early)
        assert run(load("CTRG").TASK, words_of(root, tmp_path)) == 0
    again = tmp_path / "CTRG" / "first" / "fold0"
    (again / "scores.json").unlink()
    assert run(load("CTRG").TASK, words_of(root, tmp_path)) == 0
    files = (path / "checkpoints" / "last.ckpt" for path in (folder.parent, again))
    one, other = (torch.load(file, weights_only=True)["state_dict"] for file in files)
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def parts_of(root, **settings):
    chosen = FinetuneSettings(**settings)
    return divide(load("CTRG").read_cases(root, chosen), fold=chosen.fold, folds=10)


def test_validation_is_a_seeded_part_of_training_and_the_test_part_only_with_the_original_split(trained, capsys):
    root, *_ = trained
    names = {split: [{one.case_id for one in part} for part in parts_of(root, split=split)] for split in ("ours", "original")}
    train, val, test = names["ours"]
    assert len(train) == 6
    assert len(val) == 1
    assert len(test) == 2
    assert not train & val
    assert not (train | val) & test
    assert names["original"] == [train | val, test, set()]
    assert "scores are too high" in capsys.readouterr().out
    assert [one.case_id for one in parts_of(root).val] == [one.case_id for one in parts_of(root).val]
    assert len({parts_of(root, seed=seed).val[0].case_id for seed in range(6)}) > 1


def test_cases_carry_findings_and_labels_and_those_without_findings_are_left_out(trained, tmp_path, capsys):
    root, *_ = trained
    listed = json.loads((root / "chest_ctrg_nitfy_ori_split.json").read_text())
    cases = {one.case_id: one for one in load("CTRG").read_cases(root, FinetuneSettings())}
    first = listed["train"][0]
    found = cases[first["id"].removesuffix(".nii.gz")]
    assert found.report == first["report"]
    row = pd.read_csv(root / "CTRG_finding_labels.csv").set_index("id").loc[first["id"]]
    assert found.target == tuple(int(value == 1) for value in row)
    shutil.copytree(root, tmp_path / "set")
    listed["train"][0]["report"] = " . "
    (tmp_path / "set" / "chest_ctrg_nitfy_ori_split.json").write_text(json.dumps(listed))
    fewer = load("CTRG").read_cases(tmp_path / "set", FinetuneSettings())
    assert {one.case_id for one in fewer} == set(cases) - {found.case_id}
    assert "left out: 1 of 9 cases" in capsys.readouterr().out


def test_pictures_files_and_arrows_show_the_same_scan_the_same_way_up(trained, tmp_path):
    root, *_ = trained
    folder = load("CTRG")
    (tmp_path / "pictures").mkdir()
    for name in ("Chest_New", "chest_ctrg_jpg.json"):
        (tmp_path / "pictures" / name).symlink_to(root / name)
    arrows = prepared(
        root, Order(dataset="ctrg", out=tmp_path / "arrows", shape=(40, 24, 32), val_patients=2), say=lambda _: None
    )
    kind = kind_of()
    kind.fit(TRAINING)
    kind.task = folder.TASK
    forms = [
        {one.report: one for one in folder.read_cases(place, FinetuneSettings())}
        for place in (root, tmp_path / "pictures", arrows)
    ]
    report = next(text for text in forms[2] if text in forms[0])
    nifti, pictures, arrow = (kind.fixed(masks=False)(form[report])["image"] for form in forms)
    assert torch.equal(nifti, pictures)
    assert arrow.shape == nifti.shape == (1, 128, 96, 128)
    likeness = [float(torch.corrcoef(torch.stack([nifti.flatten(), arrow.flip(axes).flatten()]))[0, 1])
                for axes in ([], [1], [2], [3])]  # fmt: skip
    assert max(likeness[1:]) < likeness[0] > 0.8
    assert all(divide(list(forms[2].values()), fold=0, folds=10))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["words=english"], "expected one of m2kt, faithful"),
        (["beams=0"], "beams=0: expected a whole number of at least 1"),
        (["heads=5"], "heads=5 does not divide width=32"),
        (["most_tokens=1"], "most_tokens=1: expected"),
        (["flips=true"], "reports on mirror images"),
        (["split=original", "folds=all"], "leave folds=all out"),
        (["beam=2"], "did you mean beams"),
    ],
)
def test_mistakes_are_one_sentence(trained, tmp_path, capsys, words, told):
    root, *_ = trained
    assert run(load("CTRG").TASK, [*words_of(root, tmp_path), *words]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_another_option_under_the_same_name_is_refused(trained, capsys):
    *_, words = trained
    assert run(load("CTRG").TASK, [*words, "no_repeat=2"]) == 2
    assert "no_repeat=3 (now 2)" in capsys.readouterr().err


def test_a_folder_that_is_no_ctrg_and_a_table_without_labels_are_named(trained, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run(load("CTRG").TASK, words_of(tmp_path / "empty", tmp_path)) == 2
    assert "give CTRG-Chest's folder" in capsys.readouterr().err
    root, *_ = trained
    shutil.copytree(root, tmp_path / "set")
    (tmp_path / "set" / "CTRG_finding_labels.csv").write_text("id,Edema\n1.nii.gz,1\n")
    assert run(load("CTRG").TASK, words_of(tmp_path / "set", tmp_path)) == 2
    assert "CTRG_finding_labels.csv lacks the columns" in capsys.readouterr().err
