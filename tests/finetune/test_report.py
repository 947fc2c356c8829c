"""Report generation, and the folder CTRG."""

import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from downstream.folders import load

from mg3d.finetune import transforms as t
from mg3d.finetune.cases import FinetuneCase, Split, split_fold
from mg3d.finetune.dataset import collate
from mg3d.finetune.encoder import TINY, build_encoder
from mg3d.finetune.prepared import prepare_dataset
from mg3d.finetune.run import run
from mg3d.finetune.settings import FinetuneSettings
from mg3d.finetune.tasks.report import ReportGeneration
from mg3d.glossary import LABELS

SMALL = ["epochs=2", "batch_size=1", "learning_rate=3e-3", "num_workers=0", "n_bootstrap=20", "accelerator=cpu",
         "decoder_width=32", "decoder_heads=4", "decoder_layers=1", "max_tokens=24", "num_beams=2"]  # fmt: skip


def arguments_of(root, results, *more):
    return [f"data_root={root}", f"log_dir={results}", "run_name=first", *SMALL, *more]


@pytest.fixture(scope="module")
def trained(tiny_set, tmp_path_factory):
    """A run on the small CTRG, evaluated at its last epoch: (data root, results, its arguments)."""
    root, results = tiny_set("CTRG"), tmp_path_factory.mktemp("results")
    assert run(load("CTRG").TASK, arguments_of(root, results)) == 0
    folder = results / "CTRG" / "first" / "fold0"
    arguments = arguments_of(root, results, f"checkpoint={folder / 'checkpoints' / 'last.ckpt'}")
    assert run(load("CTRG").TASK, [*arguments, "mode=evaluate"]) == 0
    return root, folder / "of-last", arguments


def writer(**overrides):
    small = {"decoder_width": 8, "decoder_heads": 2, "decoder_layers": 1, "max_tokens": 8, **overrides}
    return ReportGeneration(FinetuneSettings(), preprocess=[t.window(0, 255), t.resize((20, 16, 24))], **small)


def case(report, *, name="1", image=None):
    return FinetuneCase(case_id=name, patient_id=name, image=image, report=report)


TRAINING = [
    *(case("No effusion. Clear lung.") for _ in range(2)),
    case("The lung is clear."),
    *(case("Small effusion. No clear lung.") for _ in range(3)),
]


def fitted(**overrides):
    task_type = writer(**overrides)
    task_type.setup(Split(TRAINING, [], []), {})
    return task_type


def table_of(task_type, reports, generated):
    rows = [
        {"case_id": str(index), "patient_id": str(index), "reference": report, "target": task_type._expressible(report),
         "constant": task_type.constant, "generated": text}
        for index, (report, text) in enumerate(zip(reports, generated, strict=True))
    ]  # fmt: skip
    return task_type.finish(pd.DataFrame(rows))


def test_bleu_of_a_table_by_hand():
    # The vocabulary has the words that occur three times: ".", "clear", "effusion", "lung", "no". Targets: "no <unk> effusion ."
    # (4 words) and "clear lung ." (3). Generated: "no effusion ." (3 of 3 words, 1 of 2 pairs, no triple) and "clear lung ."
    # (3, 2, 1). 6 words against 7: brevity exp(1 - 7 / 6).
    task_type = fitted()
    result = task_type.statistics(table_of(task_type, ["No large effusion.", "Clear lung."], ["no effusion .", "clear lung ."]))
    brevity = math.exp(1 - 7 / 6)
    assert result["bleu1"] == pytest.approx(brevity)
    assert result["bleu2"] == pytest.approx(brevity * math.sqrt(3 / 4))
    assert result["bleu3"] == pytest.approx(brevity * (3 / 4 * 1 / 2) ** (1 / 3))
    assert result["bleu4"] == 0
    # The raw reference has no points and no <unk>: "no large effusion", "clear lung" against "no effusion", "clear lung".
    assert result["raw/bleu1"] == pytest.approx(math.exp(1 - 5 / 4))
    assert result["raw/bleu2"] == pytest.approx(math.exp(1 - 5 / 4) * math.sqrt(1 / 2))


def test_the_constant_report_is_the_most_frequent_training_report():
    assert fitted().constant == "small effusion . no clear lung"  # as far as max_tokens allows


def sample_of(task_type, tmp_path, report, name="1"):
    np.save(tmp_path / "scan.npy", np.random.default_rng(0).integers(0, 255, (20, 16, 24)))
    return task_type.read(with_masks=False)(case(report, name=name, image=tmp_path / "scan.npy"))


def test_long_reports_are_truncated_with_an_end_token_and_rare_words_are_unk(tmp_path):
    task_type = fitted()
    sample = sample_of(task_type, tmp_path, "Clear effusion " * 9)
    assert (sample["count"], len(sample["ids"]), int(sample["ids"][-1])) == (8, 8, 0)
    sample = sample_of(task_type, tmp_path, "No pneumothorax")
    assert sample["count"] == 5
    assert task_type.tokenizer.decode(sample["ids"].tolist()) == "no <unk> ."
    assert sample["ids"].tolist()[4:] == [0, 0, 0, 0]


def test_the_loss_covers_every_token_and_no_padding(tmp_path):
    """Against one report at a time without padding, by hand."""
    task_type = fitted()
    torch.manual_seed(0)
    network = task_type.network(build_encoder(TINY)).eval()
    reports = ("Clear.", "No effusion. Clear")  # 2 and 5 words, with the full stops
    samples = [sample_of(task_type, tmp_path, report, name=report[0]) for report in reports]
    batch = collate(samples)
    result = task_type.loss(network, batch).item()
    losses = []
    for sample in samples:
        ids = sample["ids"][: sample["count"]][None]
        scores = network.decoder(network.image_tokens(sample["image"][None]), ids[:, :-1]).log_softmax(-1)
        losses += [-scores[0, position, token].item() for position, token in enumerate(ids[0, 1:].tolist())]
    assert len(losses) == (2 + 1) + (5 + 1)
    assert result == pytest.approx(np.mean(losses), rel=1e-5)


def test_two_scans_get_different_reports_after_a_few_steps(tmp_path):
    task_type = fitted(decoder_width=32)
    reports = {"bright": "No effusion.", "dark": "Clear lung. No effusion."}
    scans = np.zeros((2, 20, 16, 24))
    scans[0, 4:12, 3:9] = 200
    samples = []
    for (name, report), scan in zip(reports.items(), scans, strict=True):
        np.save(tmp_path / f"{name}.npy", scan)
        samples.append(task_type.read(with_masks=False)(case(report, name=name, image=tmp_path / f"{name}.npy")))
    batch = collate(samples)
    torch.manual_seed(0)
    network = task_type.network(build_encoder(TINY))
    optimizer = torch.optim.Adam(network.parameters(), lr=6e-3)
    for _ in range(70):
        optimizer.zero_grad()
        task_type.loss(network, batch).backward()
        optimizer.step()
    assert [row["generated"] for row in task_type.rows(network.eval(), batch)] == ["no effusion .", "clear lung . no effusion ."]
    singles = [task_type.rows(network, collate([sample]))[0]["generated"] for sample in samples]
    assert singles == ["no effusion .", "clear lung . no effusion ."]
    assert task_type.eval_batch_size is None  # evaluated in batches of the training size


class FakeLabeller:
    """Finds `effusion`; counts the reports it labels."""

    def __init__(self):
        self.labelled = 0

    def labels(self, reports):
        self.labelled += len(reports)
        result = np.zeros((len(reports), len(LABELS)), np.int8)
        result[:, LABELS.index("Pleural effusion")] = ["effusion" in report.lower() for report in reports]
        return result


def test_clinical_scores_by_hand_with_each_text_labelled_once():
    task_type = fitted()
    task_type.labeller, task_type.label_names = FakeLabeller(), LABELS
    table = table_of(task_type, ["Effusion.", "Large effusion.", "Clear."], ["effusion .", "clear .", "effusion ."])
    result = task_type.statistics(table)
    assert result["clinical/micro_precision"] == result["clinical/micro_recall"] == result["clinical/micro_f1"] == 0.5
    assert result["constant/clinical/micro_precision"] == pytest.approx(2 / 3)  # it says "effusion" for all three
    assert result["constant/clinical/micro_recall"] == 1
    assert task_type.labeller.labelled == len({*table["reference"], *table["generated"], task_type.constant})


def test_a_run_leaves_texts_counts_and_scores_that_follow_from_its_table(trained):
    _, folder, _ = trained
    summary = json.loads((folder / "scores.json").read_text())
    table = pd.read_csv(folder / "predictions_test.csv", dtype={"case_id": str})
    assert {"reference", "target", "generated", "constant"} <= set(table)
    message = {score["name"]: score["value"] for score in summary["scores"]["test"]}
    for name, value in writer().statistics(table).items():
        assert message[name] == pytest.approx(value), name
    assert {"bleu4", "rouge_l", "cider", "raw/bleu4", "constant/bleu4"} <= set(message)
    assert table["target"].str.split().str.len().max() <= 24 - 2


def test_no_report_is_logged(trained, capsys):
    _, folder, arguments = trained
    assert run(load("CTRG").TASK, [*arguments, "mode=evaluate"]) == 0
    message = capsys.readouterr()
    table = pd.read_csv(folder / "predictions_test.csv")
    pieces = [report[:30] for name in ("reference", "target", "generated") for report in table[name].dropna()]
    page = (folder / "results.html").read_text()
    assert pieces
    assert not [piece for piece in pieces if piece in message.out + message.err + page]


def test_evaluation_and_prediction_of_nifti_and_slices_write_the_same_reports(trained, tmp_path):
    root, folder, arguments = trained
    before = pd.read_csv(folder / "predictions_test.csv", dtype={"case_id": str})
    assert before["generated"].notna().all()
    assert run(load("CTRG").TASK, [*arguments, "mode=evaluate"]) == 0
    pd.testing.assert_frame_equal(before, pd.read_csv(folder / "predictions_test.csv", dtype={"case_id": str}))
    names = before["case_id"].tolist()
    shutil.copytree(root / "Chest_New_nitfy_2", tmp_path / "nifti")
    pictures = {str(item["id"]): item["image_path"] for item in json.loads((root / "chest_ctrg_jpg.json").read_text())}
    for name in names:
        shutil.copytree((root / pictures[name][0]).parent, tmp_path / "jpeg" / name)
    for form in ("nifti", "jpeg"):
        command = [*arguments, "mode=predict", f"input={tmp_path / form}", f"output={tmp_path / form}_out"]
        assert run(load("CTRG").TASK, command) == 0
        predicted = pd.read_csv(tmp_path / f"{form}_out" / "predictions.csv", dtype={"case_id": str}).set_index("case_id")
        assert predicted.loc[names, "generated"].tolist() == before["generated"].tolist(), form


def split_of(root, **overrides):
    module = load("CTRG")
    settings = module.TASK.settings(**overrides)
    return split_fold(module.read_cases(root, settings), fold=settings.fold, folds=10)


def test_validation_is_a_seeded_part_of_training(trained):
    root, *_ = trained
    train, val, test = ({one.case_id for one in part} for part in split_of(root))
    assert (len(train), len(val), len(test), len(train | val | test)) == (6, 1, 2, 9)
    assert split_of(root).val == split_of(root).val
    assert len({split_of(root, seed=seed).val[0].case_id for seed in range(6)}) > 1


def test_cases_without_findings_are_excluded(trained, tmp_path, capsys):
    root, *_ = trained
    listed = json.loads((root / "chest_ctrg_nitfy_ori_split.json").read_text())
    cases = {one.case_id: one for one in load("CTRG").read_cases(root, load("CTRG").TASK.settings())}
    first = listed["train"][0]
    result = cases[first["id"].removesuffix(".nii.gz")]
    assert result.report == first["report"]
    shutil.copytree(root, tmp_path / "set")
    listed["train"][0]["report"] = " . "
    (tmp_path / "set" / "chest_ctrg_nitfy_ori_split.json").write_text(json.dumps(listed))
    fewer = load("CTRG").read_cases(tmp_path / "set", load("CTRG").TASK.settings())
    assert {one.case_id for one in fewer} == set(cases) - {result.case_id}
    assert "excluded 1 of 9 cases" in capsys.readouterr().out


def test_slices_nifti_and_arrow_files_have_the_same_orientation(trained, tmp_path):
    root, *_ = trained
    folder = load("CTRG")
    (tmp_path / "pictures").mkdir()
    for name in ("Chest_New", "chest_ctrg_jpg.json"):
        (tmp_path / "pictures" / name).symlink_to(root / name)
    arrows = prepare_dataset(root, "ctrg", tmp_path / "arrows", shape=(40, 24, 32), val_patients=2)
    task_type = folder.build(folder.TASK.settings())
    task_type.setup(Split(TRAINING, [], []), {})
    forms = [
        {one.report: one for one in folder.read_cases(path, folder.TASK.settings())}
        for path in (root, tmp_path / "pictures", arrows)
    ]
    report = next(text for text in forms[2] if text in forms[0])
    nifti, pictures, arrow = (task_type.read(with_masks=False)(form[report])["image"] for form in forms)
    assert torch.equal(nifti, pictures)
    assert arrow.shape == nifti.shape == (1, 128, 96, 128)
    likeness = [float(torch.corrcoef(torch.stack([nifti.flatten(), arrow.flip(axes).flatten()]))[0, 1])
                for axes in ([], [1], [2], [3])]  # fmt: skip
    assert max(likeness[1:]) < likeness[0] > 0.8
    assert all(split_fold(list(forms[2].values()), fold=0, folds=10))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["decoder_heads=5"], "decoder_heads=5 does not divide decoder_width=32"),
        (["max_tokens=1"], "max_tokens=1: expected"),
        (["tta=true"], "reports of mirrored copies"),
    ],
)
def test_user_errors_are_one_sentence(trained, tmp_path, capsys, arguments, message):
    root, *_ = trained
    assert run(load("CTRG").TASK, [*arguments_of(root, tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_folder_without_ctrg_is_refused(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run(load("CTRG").TASK, arguments_of(tmp_path / "empty", tmp_path)) == 2
    assert "give CTRG-Chest's folder" in capsys.readouterr().err
