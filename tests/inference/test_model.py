"""Outputs of a loaded model against the same computed from its parts."""

import numpy as np
import pytest
import torch
from released_files import key_list, synthetic
from small_inference import REPORTS, save, save_run
from small_raw import chest
from torch.nn import functional as F

import mg3d
from mg3d.checkpoints.info import inspect_checkpoint
from mg3d.checkpoints.pretrained import export_run, from_pretrained
from mg3d.datasets.tokenizer import encode_report, train_wordpiece
from mg3d.glossary import LABELS
from mg3d.inference.scan_model import IMAGE_ONLY, JOINT
from mg3d.preparation.recipe import Recipe
from mg3d.sentence_spans import split_clauses


def by_hand(folder, text, units):
    """Embedding [E] of one text, straight from the model's parts."""
    loaded = from_pretrained(folder)
    row = encode_report(loaded.tokenizer, text, units, 40)
    ids, index = torch.from_numpy(row.ids)[None], torch.from_numpy(row.sentence_index)[None]
    with torch.no_grad():
        return loaded.model.embed_report(ids, torch.ones_like(ids, dtype=torch.bool), index)[0].numpy()


def test_probabilities_are_the_softmax_over_each_prompt_pair(folder, model, scans):
    names = ["Lung nodule", "effusion"]
    found = model.classify(scans, names)
    scale = from_pretrained(folder).model.logit_scale.item()
    for scan, findings in zip(scans, found, strict=True):
        for name, row in zip(names, findings, strict=True):
            lower = name[0].lower() + name[1:]
            assert (row.name, row.present, row.absent) == (name, f"There is {lower}.", f"There is no {lower}.")
            near = [scale * float(model.embed(scan) @ by_hand(folder, text, ((0, len(text)),))) for text in row[2:]]
            assert row.probability == pytest.approx(1 / (1 + np.exp(near[1] - near[0])), abs=1e-4)
            assert findings[name] == row.probability
    assert len(model.classify(scans[0])) == len(LABELS)
    assert model.classify(scans[0], names, wording="ct_clip")[0].present == "Lung nodule is present."


def test_batches_give_the_embeddings_of_single_scans(model, scans):
    together = model.embed(scans)
    assert together.shape == (3, 16)
    for row, scan in zip(together, scans, strict=True):
        np.testing.assert_allclose(model.embed(scan), row, atol=1e-5)
        assert np.linalg.norm(row) == pytest.approx(1, abs=1e-5)
    assert not np.allclose(together[0], together[1], atol=1e-4)


def test_a_report_is_embedded_by_the_clauses_of_training(folder, model):
    assert model.sentences(REPORTS[1]) == ["A small effusion on the left,", "a nodule on the right."]
    expected = by_hand(folder, REPORTS[1], split_clauses(REPORTS[1]))
    np.testing.assert_allclose(model.embed_report(REPORTS[1]), expected, atol=1e-5)
    np.testing.assert_allclose(model.embed_report(REPORTS)[1], expected, atol=1e-5)


@pytest.mark.parametrize("by", ["contrast", "attention"])
def test_a_map_has_one_value_per_token_with_mean_1(model, scans, by):
    sentence = "A small effusion on the left."
    region = model.ground(scans[1], sentence, by=by)
    assert region.cells.shape == model.model.grid
    assert region.cells.mean() == pytest.approx(1, abs=1e-4)
    assert region.cells.min() >= 0
    assert region.similarity == pytest.approx(float(model.embed(scans[1]) @ model.embed_report(sentence)), abs=1e-4)
    assert region.in_file().shape == chest(1).shape[::-1]
    assert "cosine" in str(region)


def test_the_attention_map_is_that_of_the_encoder(model, scans):
    text = "A nodule on the right."
    expected = model.encoder.ground(torch.from_numpy(scans[1].volume)[None, None], [(text, "Clear.")])["attention"][0, 0]
    found = model.ground(scans[1], text, by="attention").cells
    np.testing.assert_allclose(found, expected.numpy() * expected.numel(), atol=1e-4)


@pytest.mark.parametrize("against", [None, "There is no nodule."])
def test_the_contrast_map_is_the_drop_of_the_cosine_without_each_token(model, scans, against):
    sentence, mg = "There is a nodule.", model.model
    with torch.no_grad():
        tokens = mg.encode_volume(torch.from_numpy(scans[1].volume)[None, None])
    direction = model.embed_report(sentence) - (model.embed_report(against) if against else 0)

    def towards(image):
        with torch.no_grad():
            return float((mg.contrast.embed_image(image)[0].numpy() * direction).sum())

    slow = []
    for index in range(tokens.shape[1]):
        without = torch.cat([tokens[:, :index], tokens.mean(1, keepdim=True), tokens[:, index + 1 :]], 1)
        slow.append(max(0.0, towards(tokens) - towards(without)))
    expected = np.array(slow).reshape(mg.grid) / sum(slow) * len(slow)
    assert expected.max() > 1.01
    np.testing.assert_allclose(model.ground(scans[1], sentence, against=against).cells, expected, atol=2e-2)


def test_missing_grounding_methods_are_refused(model, scans, tmp_path):
    with pytest.raises(ValueError, match="by='eye' must be 'contrast', or 'attention'"):
        model.ground(scans[0], "A nodule.", by="eye")
    with pytest.raises(ValueError, match="or 'attention' without `against`"):
        model.ground(scans[0], "A nodule.", against="No nodule.", by="attention")
    plain = mg3d.load(save(tmp_path / "model", weight_dcl=0.0, weight_ssm=0.0), device="cpu")
    with pytest.raises(ValueError, match="has no attention from sentences to the image"):
        plain.ground(scans[0], "A nodule.", by="attention")


BODY = Recipe(shape=(32, 24, 32), crop="body").provenance("ct_rate")


@pytest.mark.parametrize("name", ["", "last", "checkpoints/last.ckpt"])
def test_a_run_equals_its_saved_folder(tmp_path, model, scans, name):
    loaded = mg3d.load(save_run(tmp_path / "run") / name, device="cpu")
    assert loaded.space == JOINT
    np.testing.assert_array_equal(loaded.embed(scans[0]), model.embed(scans[0]))
    np.testing.assert_array_equal(loaded.embed_report(REPORTS[0]), model.embed_report(REPORTS[0]))
    assert loaded.fingerprint == model.fingerprint


def test_a_checkpoint_and_its_exports_record_the_recipe(tmp_path, capsys):
    run = save_run(tmp_path / "run", recipes={"ctrg": {"crop": "of grey"}, "ct_rate": BODY, "custom": {"crop": "x"}})
    once = export_run(run / "checkpoints" / "last.ckpt", tmp_path / "once")
    twice = export_run(once, tmp_path / "twice")
    for folder in (run, once, twice):
        assert mg3d.load(folder, device="cpu").preprocessing.recipe == Recipe(shape=(32, 24, 32), crop="body")
        assert (
            inspect_checkpoint(folder / "checkpoints" / "last.ckpt" if folder == run else folder).preprocessing["recipe"] == BODY
        )
    assert capsys.readouterr().err.splitlines() == [f"mg3d: using {run}/checkpoints/last.ckpt of the run {run}"]
    assert "crop_fraction" not in from_pretrained(once).config["preprocessing"]
    assert '"kind": "body"' in (once / "README.md").read_text()


def test_a_model_without_a_recipe_warns_in_one_line(tmp_path, capsys):
    mg3d.load(save_run(tmp_path / "run") / "checkpoints" / "last.ckpt", device="cpu")
    printed = capsys.readouterr().err
    assert printed.startswith("mg3d: warning: the checkpoint does not record how its training volumes were prepared")
    assert printed.count("\n") == 1


def test_a_fine_tuned_checkpoint_is_refused_with_what_to_use(tmp_path):
    torch.save({"state_dict": {"encoder.weight": torch.zeros(2, 3)}, "mg3d_finetune": {}}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="is a fine-tuned checkpoint"):
        mg3d.load(tmp_path / "last.ckpt", device="cpu")


def test_a_run_without_its_tokenizer_embeds_scans_only(tmp_path, model, scans):
    run = save_run(tmp_path / "run", with_tokenizer=False)
    loaded = mg3d.load(run, device="cpu")
    np.testing.assert_array_equal(loaded.embed(scans[0]), model.embed(scans[0]))
    with pytest.raises(ValueError, match="this model has no tokenizer"):
        loaded.classify(scans[0], ["effusion"])
    words = train_wordpiece(REPORTS, vocab_size=80, out_dir=tmp_path / "words")
    assert len(words) == len(model.tokenizer)
    again = mg3d.load(run, device="cpu", tokenizer=tmp_path / "words")
    np.testing.assert_array_equal(again.embed_report(REPORTS[0]), model.embed_report(REPORTS[0]))


@pytest.mark.slow
def test_a_released_encoder_embeds_scans_only(tmp_path):
    generator = torch.Generator().manual_seed(0)
    state = {
        name: 0.05 * torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        for name, tensor in synthetic(key_list("keys_vision_swinb")).items()
    }
    torch.save(state, tmp_path / "swinb.pt")
    loaded = mg3d.load(tmp_path / "swinb.pt", device="cpu")
    scan = loaded.read(chest(0))
    assert scan.volume.shape == (128, 96, 128)
    vector = loaded.embed(scan)
    with torch.no_grad():
        last = loaded.vision.encode(torch.from_numpy(scan.volume)[None, None]).mean((2, 3, 4))
    np.testing.assert_allclose(vector, F.normalize(last, dim=-1)[0].numpy(), atol=1e-5)
    assert loaded.space == IMAGE_ONLY
    with pytest.raises(ValueError, match="an image encoder without a text encoder"):
        loaded.classify(scan)


def test_a_fused_contrast_has_no_zero_shot_scores(tmp_path):
    loaded = mg3d.load(save(tmp_path / "model", wiring="intended"), device="cpu")
    assert loaded.space == IMAGE_ONLY
    scan = loaded.read(chest(0))
    assert loaded.embed(scan).shape == (loaded.vision.channels,)
    with pytest.raises(ValueError, match="no joint embedding"):
        loaded.classify(scan, ["effusion"])


def test_only_a_model_with_a_captioning_head_generates_reports(folder, scans):
    loaded = mg3d.load(folder, device="cpu")
    with pytest.raises(ValueError, match="without a captioning head"):
        loaded.generate(scans[0])
    ids = loaded.tokenizer("small nodule")["input_ids"]
    loaded.model.branches["captioning"] = torch.nn.Identity()
    calls = []

    def generate_reports(volume, **how):
        calls.append(how)
        return torch.tensor([[*ids, loaded.tokenizer.pad_token_id]] * len(volume))

    loaded.model.generate_reports = generate_reports
    assert loaded.generate(scans[0]) == "small nodule"
    assert len(loaded.generate(scans, num_beams=2)) == 3
    words = loaded.tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]", "[PAD]"])
    assert calls[-1] == {
        "bos_token_id": words[0], "eos_token_id": words[1], "pad_token_id": words[2], "max_length": 40, "num_beams": 2,
    }  # fmt: skip


def test_every_bad_request_is_refused_in_one_line(model, scans, tmp_path):
    bad = [
        (lambda: model.classify(scans[0], "effusion"), "must be a list of names"),
        (lambda: model.classify(scans[0], []), "must be a list of names"),
        (lambda: model.classify(scans[0], ["effusion"], wording="mine"), "Choose one of there_is, ct_clip"),
        (lambda: model.embed([]), "no scan to embed"),
        (lambda: model.embed_report(" ... "), "the text is empty"),
        (lambda: model.ground(scans[0], ""), "the text is empty"),
        (lambda: mg3d.load(tmp_path), ", but neither a saved model"),
        (lambda: mg3d.load(tmp_path / "nothing.ckpt"), "does not exist"),
        (lambda: mg3d.load(tmp_path / "run" / "last"), "does not exist"),
        (lambda: mg3d.load("nobody/no-such-model-v1.0", device="cpu"), "downloading it from the hub failed"),
        (lambda: mg3d.load("nobody/no-such-model", device="tpu9"), "is not available"),
    ]
    for ask, expected in bad:
        with pytest.raises((ValueError, FileNotFoundError), match=expected) as caught:
            ask()
        assert "\n" not in str(caught.value)
