import numpy as np
import pandas as pd
import pytest
import torch
from downstream.folders import load
from finetune.small_rate import SHAPE, batch_of, network_of, save_model, task_and_cases, voxels, write_rate
from sklearn.linear_model import LogisticRegression

from mg3d.checkpoints.pretrained import from_pretrained
from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.studies import Studies
from mg3d.datasets.windowing import sample_intensities
from mg3d.evaluation.baselines import fit_logistic
from mg3d.evaluation.encoder import MG3DEncoder
from mg3d.evaluation.zero_shot import embed_prompts, zero_shot_scores
from mg3d.finetune.cases import ArrowRow, RawScan, split_fold
from mg3d.finetune.encoder import load_encoder
from mg3d.finetune.images import read_image
from mg3d.finetune.loop import fit_closed_form, load_network, read_finetuned
from mg3d.finetune.pretrained_model import can_compare, load_pretrained_model
from mg3d.finetune.results import read_summary
from mg3d.finetune.run import run
from mg3d.finetune.settings import FinetuneSettings
from mg3d.finetune.tasks.probe import INVERSE_PENALTIES, ProbeNetwork
from mg3d.finetune.tasks.prompts import pair_loss
from mg3d.glossary import LABELS


@pytest.fixture(scope="module")
def arrows(tmp_path_factory):
    return write_rate(tmp_path_factory.mktemp("rate"))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("pretrained") / "model")


def test_the_public_layout_and_its_arrow_files_give_equal_batches(tiny_set):
    raw = tiny_set("CT-RATE")
    task_type, of_raw = task_and_cases(raw, image_size=32)
    folder = raw / "finetune_arrows_32"
    _, of_arrows = task_and_cases(folder)
    assert len(of_raw) == 9
    one, other = batch_of(task_type, of_raw), batch_of(task_type, of_arrows)
    assert torch.equal(one["image"], other["image"])
    assert torch.equal(one["target"], other["target"])
    assert one["case_id"] == other["case_id"]
    assert [(case.split, case.fold) for case in of_raw] == [(case.split, case.fold) for case in of_arrows]
    scan = next(raw.glob("valid_fixed/*/*/*.nii.gz"))
    stored = next(case for case in of_raw if case.case_id.endswith(scan.name.removesuffix(".nii.gz")))
    assert torch.equal(read_image(RawScan(scan, SHAPE)).as_tensor(), read_image(stored.image).as_tensor())


def test_the_official_validation_set_is_the_test_split_and_patients_are_not_shared(tiny_set):
    _, cases = task_and_cases(tiny_set("CT-RATE"), image_size=32)
    assert {case.case_id.split("/")[1].split("_")[0] for case in cases if case.split == "test"} == {"valid"}
    parts = [{case.patient_id for case in cases if (case.split, case.fold) == key} for key in (("train", 1), ("train", 0))]
    assert all(parts)
    assert not parts[0] & parts[1]


def test_a_volume_reaches_the_network_as_in_pretraining(arrows):
    task_type, cases = task_and_cases(arrows)
    expected = (np.clip(voxels(0, SHAPE), -1000, 1000) + 1000) / 2000
    assert np.allclose(batch_of(task_type, cases[:1])["image"][0, 0], expected, atol=1e-6)


def test_eight_bit_volumes_are_converted_to_hounsfield_units(tmp_path):
    from small_arrow import write_split

    stored = np.arange(32 * 24 * 32).reshape(SHAPE).astype(np.uint8)
    write_split(tmp_path, "ct_rate", "test", patients=1, shape=SHAPE, unit="hu8", voxels=lambda *_: stored, window=(-500, 780))
    image = read_image(ArrowRow(tmp_path / "clm_ct_rate_test.arrow", 0, "prepared"))
    assert torch.allclose(image[0, 0, 0, :3].as_tensor(), torch.tensor([-500.0, -500 + 1280 / 255, -500 + 2560 / 255]))
    assert image.pixdim.tolist() == [1.0, 2.0, 3.0]


def test_training_uses_one_reconstruction_per_study_and_the_test_split_all(arrows):
    _, cases = task_and_cases(arrows, reconstructions="first")
    counts = [sum((case.split, case.fold) == key for case in cases) for key in (("train", 1), ("train", 0), ("test", -0))]
    assert counts == [6, 4, 10]


# --- losses and prompts


def test_pair_losses_by_hand():
    similarity = torch.tensor([[[2.0, 1.0], [0.0, 0.0], [5.0, -5.0]]])
    target = torch.tensor([[1, 0, -1]])
    softplus = [np.log1p(np.exp(-1.0)), np.log(2)]
    assert pair_loss(similarity, target, form="bce").item() == pytest.approx(np.mean(softplus))
    first = 1 / (1 + np.exp(-1.0))
    assert pair_loss(similarity, target, form="softmax_mse").item() == pytest.approx(((1 - first) ** 2 + 0.25) / 2)


def test_each_volume_and_the_prompts_are_encoded_once_per_step(arrows, pretrained):
    task_type, cases = task_and_cases(arrows, task="prompts", pretrained=pretrained, train="all")
    network = network_of(task_type, cases)
    calls = []
    original = (network.model.vision.encode, network.model.text.forward)
    network.model.vision.encode = lambda volume, *more: calls.append(("volume", len(volume))) or original[0](volume, *more)
    network.model.text.forward = lambda ids, mask: calls.append(("text", len(ids))) or original[1](ids, mask)
    network.train()
    task_type.loss(network, batch_of(task_type, cases[:3])).backward()
    assert sorted(calls) == [("text", 36), ("volume", 3)]


def test_only_the_selected_submodules_are_trained(arrows, pretrained):
    joining = {"project_image", "position", "project_report", "type_embedding", "branches"}
    for names, learned in (("projections", joining), ("vision+text", {"vision", "text"})):
        task_type, cases = task_and_cases(arrows, task="prompts", pretrained=pretrained, train=names)
        network = network_of(task_type, cases).train()
        task_type.loss(network, batch_of(task_type, cases[:2])).backward()
        moved = {name.split(".")[0] for name, tensor in network.model.named_parameters() if tensor.grad is not None}
        assert moved == learned


def test_zero_shot_is_the_scorer_of_pretraining(arrows, pretrained, capsys):
    task_type, cases = task_and_cases(arrows, task="zero_shot", pretrained=pretrained)
    network = network_of(task_type, cases).eval()
    assert f"model: {pretrained}" in capsys.readouterr().out
    test = [case for case in cases if case.split == "test"][::2]
    rows = pd.DataFrame(task_type.rows(network, batch_of(task_type, test)))
    result = from_pretrained(pretrained)
    studies = Studies(VolumeIndex(arrows / "clm_ct_rate_test.arrow"), text_unit="clause", window_hu=(-1000.0, 1000.0))
    encoder = MG3DEncoder(result.model, result.tokenizer, max_text_len=60)
    volumes = [torch.from_numpy(sample_intensities(studies.sample(study))) for study in range(len(studies))]
    prompts = embed_prompts(encoder)
    expected = zero_shot_scores(encoder.embed_volumes(torch.stack(volumes)), prompts, encoder.logit_scale)
    assert np.allclose(rows[[f"score/{name}" for name in LABELS]], expected, atol=1e-5)


def test_a_checkpoint_restores_the_network_with_its_tokenizer(arrows, pretrained, tmp_path):
    arguments = [f"data_root={arrows}", f"pretrained={pretrained}", f"log_dir={tmp_path}", "run_name=run", "task=prompts",
                 "epochs=1", "n_bootstrap=0", "accelerator=cpu", "num_workers=0", "learning_rate=1e-3"]  # fmt: skip
    assert run(load("CT-RATE").TASK, arguments) == 0
    table = tmp_path / "CT-RATE" / "prompts" / "run" / "fold0" / "predictions_test.csv"
    before = pd.read_csv(table)
    assert len(before) == 10
    task_type, cases = task_and_cases(arrows, task="prompts", pretrained=pretrained)
    network = load_network(task_type, read_finetuned(table.parent / "checkpoints" / "best.ckpt"))
    test = [case for case in cases if case.split == "test"]
    again = pd.DataFrame(task_type.rows(network, batch_of(task_type, test)))
    assert np.allclose(again[f"score/{LABELS[4]}"], before[f"score/{LABELS[4]}"], atol=1e-6)


def test_encoder_checkpoint_gives_the_whole_architecture_with_random_weights(pretrained):
    options = {"text_encoder": "", "shape": SHAPE}
    loaded, scratch = (
        load_pretrained_model(FinetuneSettings(**{name: str(pretrained)}), **options) for name in ("pretrained", "encoder")
    )
    assert scratch.untrained == ("everything",)
    assert not can_compare(scratch)
    one, other = loaded.model.state_dict(), scratch.model.state_dict()
    assert {name: tensor.shape for name, tensor in one.items()} == {name: tensor.shape for name, tensor in other.items()}
    assert not any(torch.equal(one[name], other[name]) for name in one if name.endswith("proj.weight"))
    assert scratch.tokenizer.get_vocab() == loaded.tokenizer.get_vocab()


def test_volumes_have_the_size_that_the_checkpoint_expects(pretrained):
    module = load("CT-RATE")
    for name in ("encoder", "pretrained"):
        assert module.resolve(module.TASK.settings(**{"data_root": "phantom", name: str(pretrained)})).volume_size == SHAPE


# --- retrieval


def test_ranks_by_hand(arrows, pretrained):
    task_type, _ = task_and_cases(arrows, task="retrieval", pretrained=pretrained)
    angles = np.deg2rad([0, 10, 90, 200])
    volumes = np.stack([np.cos(angles), np.sin(angles)], 1)
    reports = volumes[[0, 0, 3, 2]]  # the last two are exchanged
    labels = [np.array([1, 1, 0]), np.array([1, 0, 0]), np.array([0, 0, 1]), np.array([0, 0, 0])]
    rows = [
        {"case_id": str(index), "patient_id": str(index), "volume": volumes[index], "report": reports[index],
         "text": ["a", "a", "b", "c"][index], "target": labels[index]}
        for index in range(4)
    ]  # fmt: skip
    table = task_type.finish(pd.DataFrame(rows))
    assert table["rank/report_to_volume"].tolist()[::2] == [1, 2]
    assert table["rank/report_to_volume"][3] == 4
    assert np.isnan(table["rank/report_to_volume"][1])  # its report is the same query as that of volume 0
    assert table["rank/volume_to_report"].tolist() == [1, 1, 3, 2]
    assert table["relevant/report_to_volume"][0] == 2
    assert table["jaccard@1"].tolist() == [0.5, 0.5, 0.0, 0.0]  # volume 3 has no finding and is in no gallery
    result = task_type.statistics(table)
    assert result["report_to_volume/recall@1"] == pytest.approx(1 / 3)
    assert result["report_to_volume/chance@1"] == pytest.approx((2 / 4 + 1 / 4 + 1 / 4) / 3)
    assert result["volume_to_volume/jaccard@1"] == 0.25
    without_query = task_type.statistics(table.iloc[[1]])  # a bootstrap resample without a query
    assert without_query.keys() == result.keys()
    assert np.isnan(without_query["report_to_volume/recall@1"])
    assert np.isnan(without_query["report_to_volume/median_rank"])
    names = ("report_to_volume/recall@1", "volume_to_report/recall@1", "volume_to_volume/jaccard@1")
    assert [int(task_type.support_mask(table, name).sum()) for name in names] == [3, 4, 4]


def test_retrieval_runs_from_the_command_line(arrows, pretrained, tmp_path):
    arguments = [f"data_root={arrows}", f"pretrained={pretrained}", f"log_dir={tmp_path}", "run_name=run", "task=retrieval",
                 "n_bootstrap=10", "accelerator=cpu", "num_workers=0"]  # fmt: skip
    assert run(load("CT-RATE").TASK, arguments) == 0
    scores = read_summary(tmp_path / "CT-RATE" / "retrieval" / "run" / "fold0")["scores"]["test"]
    recall = next(score for score in scores if score["name"] == "report_to_volume/recall@1")
    assert 0 <= recall["value"] <= 1
    assert recall["no_interval"].startswith("too few patients")


# --- probe


def test_the_probe_computes_features_once_and_takes_the_best_penalty(arrows, tmp_path, capsys):
    task_type, cases = task_and_cases(arrows, task="probe", encoder="tiny")
    torch.manual_seed(0)
    network = task_type.network(load_encoder(task_type.settings, synthetic=True).encoder).eval()
    split = split_fold(cases, fold=0, folds=1)
    task_type.fit_closed_form(network, split, tmp_path)
    (stored,) = tmp_path.glob("features-*.npz")
    assert len(np.load(stored)) == len(split.train) + len(split.val)
    message = capsys.readouterr().out
    chosen = next(c for c in INVERSE_PENALTIES if f"C={c} " in message)
    with torch.no_grad():
        features = network.features(batch_of(task_type, split.train)["image"]).double().numpy()
    scaled = (features - features.mean(0)) / features.std(0)
    targets = np.array([case.target for case in split.train])
    expected = LogisticRegression(C=chosen, max_iter=1000).fit(scaled, targets[:, 3])
    assert np.allclose(network.head.weight[3].detach(), expected.coef_[0], atol=1e-3)
    network.features = None  # stored features are not computed again
    task_type.fit_closed_form(network, split, tmp_path)
    assert capsys.readouterr().out == message


def test_a_closed_form_fit_refuses_several_processes(arrows, tmp_path, monkeypatch):
    task_type, _ = task_and_cases(arrows)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="fitted by one process"):
        fit_closed_form(task_type, torch.nn.Identity(), None, tmp_path, {})


def test_stored_features_depend_on_the_preprocessing(arrows, tmp_path):
    network, task = ProbeNetwork(load_encoder(FinetuneSettings(encoder="tiny")).encoder, 18).eval(), load("CT-RATE").TASK
    split = split_fold(task_and_cases(arrows)[1], fold=0, folds=1)
    for window in ((-1000.0, 1000.0), (-200.0, 300.0)):
        task.build(task.settings(window_hu=window, volume_size=SHAPE, num_workers=0)).fit_closed_form(network, split, tmp_path)
    first, second = (dict(np.load(path)) for path in tmp_path.glob("features-*.npz"))
    assert first.keys() == second.keys()
    assert not any(np.allclose(first[name], second[name]) for name in first)


def test_unknown_labels_are_excluded_from_logistic_regression():
    features = np.array([[-2.0], [-1.0], [1.0], [50.0]])
    targets = np.array([[0, 1], [0, 1], [1, 1], [-1, 1]])
    weights, intercepts = fit_logistic(features, targets, c=1.0)
    assert np.allclose(weights[0], LogisticRegression().fit(features[:3], [0, 0, 1]).coef_[0], atol=1e-3)
    assert weights[1] == intercepts[1] == 0  # one class only


# --- what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["task=prob"], "task='prob' should be 'probe', 'full'"),
        (["image_size=64"], "image_size=64: the volumes in"),
        (["image_size=16"], "image_size=16: expected at least 32, or 0"),
        (["task=prompts", "train=head"], "train='head': expected all, or some of vision"),
        (["task=zero_shot", "encoder=tiny"], "this task needs pretrained=..., a model"),
        (["task=prompts"], "this task needs pretrained=..., a model"),
    ],
)
def test_user_errors_are_one_sentence(arrows, tmp_path, capsys, arguments, message):
    command = [f"data_root={arrows}", f"log_dir={tmp_path}", "accelerator=cpu", "num_workers=0", *arguments]
    assert run(load("CT-RATE").TASK, command) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_folder_without_a_split_is_named(arrows, tmp_path, capsys):
    for name in ("clm_ct_rate_train.arrow", "clm_ct_rate_test.arrow"):
        (tmp_path / name).write_bytes((arrows / name).read_bytes())
    assert run(load("CT-RATE").TASK, [f"data_root={tmp_path}", f"log_dir={tmp_path}"]) == 2
    assert "lacks clm_ct_rate_val.arrow; prepare CT-RATE again" in capsys.readouterr().err
