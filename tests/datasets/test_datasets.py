import pickle

import numpy as np
import pytest
import torch
from small_arrow import SHAPE, small_tokenizer, write_split

from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.collate import Collator
from mg3d.datasets.masking import WholeWordMasker, draw_patch_mask, draw_view
from mg3d.datasets.studies import Studies
from mg3d.datasets.tokenizer import encode_report, load_tokenizer, lower
from mg3d.datasets.windowing import sample_intensities
from mg3d.sentence_spans import polarity, text_key

READING = {"text_unit": "clause", "window_hu": (-1000.0, 1000.0)}
OPTIONS = {
    "max_text_len": 64, "mim_patch_size": 4, "mim_mask_ratio": 0.5, "mlm_probability": 0.3,
    "sentence_views": 3, "negated_view_fraction": 0.25,
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer") / "words")


@pytest.fixture(scope="module")
def index_file(tmp_path_factory):
    return write_split(tmp_path_factory.mktemp("arrow"), "ct_rate", "train", patients=5, scans=2, reconstructions=3)


def test_an_index_gives_the_volume_of_a_row_in_any_process(index_file):
    index = VolumeIndex(index_file)
    assert len(index) == 30
    assert index.shape == SHAPE
    for again in (index, pickle.loads(pickle.dumps(index))):
        assert all((again.volume(row) == -1000 + row).all() for row in (29, 0, 7))


def test_missing_cut_and_foreign_files_are_told_apart(index_file, tmp_path):
    with pytest.raises(FileNotFoundError, match="prepro_pretraining_data"):
        VolumeIndex(tmp_path / "clm_ct_rate_train.arrow")
    cut = tmp_path / "cut.arrow"
    cut.write_bytes(index_file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a complete Arrow file"):
        len(VolumeIndex(cut))


def test_one_reconstruction_is_drawn_per_study(index_file):
    studies = Studies(VolumeIndex(index_file), **READING)
    assert len(studies) == 10
    drawn = [studies.sample(4, (0, epoch, 4)).volume[0, 0, 0, 0] for epoch in range(40)]
    assert set(drawn) == {-988, -987, -986}
    assert studies.sample(4).volume[0, 0, 0, 0] == -988
    assert sample_intensities(studies.sample(4))[0, 0, 0, 0] == pytest.approx(12 / 2000)
    assert studies.sample(4, (0, 3, 4)).volume[0, 0, 0, 0] == drawn[3]


def test_shuffled_pairs_never_keep_the_patient(index_file):
    true = Studies(VolumeIndex(index_file), **READING)
    shuffled = Studies(VolumeIndex(index_file), shuffle_seed=3, **READING)
    strangers = shuffled._shuffled
    assert sorted(strangers) == list(range(10))
    assert all(true.patients[study] != true.patients[strangers[study]] for study in range(10))
    assert shuffled.sample(2).report == true.report(int(strangers[2])).report
    assert (shuffled.sample(2).volume == true.sample(2).volume).all()


def test_tokens_know_their_sentence(tokenizer):
    report = "The heart is enlarged, measuring 3 mm. No lesion of the liver."
    units = ((0, 22), (23, 38), (39, 62))
    encoded = encode_report(tokenizer, report, units, 64)
    words = tokenizer.convert_ids_to_tokens(encoded.ids.tolist())
    assert (words[0], words[-1]) == ("[CLS]", "[SEP]")
    assert encoded.sentence_index[[0, -1]].tolist() == [-1, -1]
    for sentence, (start, end) in enumerate(units):
        members = [word for word, index in zip(words, encoded.sentence_index, strict=True) if index == sentence]
        assert tokenizer.convert_tokens_to_string(members).replace(" ", "").replace("##", "") == report[
            start:end
        ].lower().replace(" ", "")


def test_a_cut_report_keeps_its_end_token_and_loses_whole_sentences(tokenizer):
    report = "The heart is enlarged. The liver is normal. The aorta is normal."
    units = ((0, 22), (23, 43), (44, 64))
    encoded = encode_report(tokenizer, report, units, 8)
    assert len(encoded.ids) == 8
    assert encoded.ids[-1] == tokenizer.sep_token_id
    assert encoded.sentence_spans == units[:2]
    assert encoded.sentence_index.max() == 1


def test_lower_case_keeps_every_place():
    assert lower("İstanbul ÇÖ") == "İstanbul çö"


def test_no_network_and_no_folder_is_one_sentence():
    with pytest.raises(FileNotFoundError, match="text_encoder=<local directory>"):
        load_tokenizer("nobody/has-this-model")


def test_half_of_the_cubes_are_hidden():
    hidden = draw_patch_mask((4, 3, 2), 0.5, np.random.default_rng(0))
    assert hidden.shape == (4, 3, 2)
    assert hidden.sum() == 12
    assert (hidden != draw_patch_mask((4, 3, 2), 0.5, np.random.default_rng(1))).any()


def test_words_are_masked_whole_in_the_usual_shares(tokenizer):
    masker, generator = WholeWordMasker(tokenizer, 0.3), np.random.default_rng(0)
    pieces = tokenizer("enlarged tracheal lesions measuring abnormalities of the heart")["input_ids"]
    ids = np.array([tokenizer.cls_token_id, *pieces[1:-1] * 1500, tokenizer.sep_token_id])
    masked, labels = masker(ids, generator)
    asked = labels != -100
    assert (labels[asked] == ids[asked]).all()
    assert (masked[~asked] == ids[~asked]).all()
    assert not asked[[0, -1]].any()
    inside = masker.is_continuation[ids]
    assert inside.any()
    assert (asked[inside] == asked[np.flatnonzero(inside) - 1]).all()
    words = ~inside & ~np.isin(ids, tokenizer.all_special_ids)
    assert asked[words].mean() == pytest.approx(0.3, abs=0.03)
    assert (masked[asked] == tokenizer.mask_token_id).mean() == pytest.approx(0.8, abs=0.03)
    assert (masked[asked] == ids[asked]).mean() == pytest.approx(0.1, abs=0.03)


def test_at_least_one_word_is_asked(tokenizer):
    ids = np.array(tokenizer("the heart")["input_ids"])
    assert all((WholeWordMasker(tokenizer, 0.0)(ids, np.random.default_rng(seed))[1] != -100).sum() >= 1 for seed in range(5))


def test_a_view_has_one_to_three_sentences_and_begins_with_the_wanted_kind():
    polarities = [-1, -1, 1, -1, 1, -1]
    for share, kind in ((0.0, 1), (1.0, -1)):
        chosen = [draw_view(polarities, share, np.random.default_rng(seed)) for seed in range(300)]
        assert {len(view) for view in chosen} == {1, 2, 3}
        assert all(len(set(view)) == len(view) and (np.diff(view) > 0).all() for view in chosen)
        assert all(any(polarities[index] == kind for index in view) for view in chosen)
        assert {int(index) for view in chosen for index in view} == set(range(6))


def test_a_quarter_of_single_sentence_views_deny():
    chosen = [draw_view([-1, 1, -1], 0.25, np.random.default_rng(seed)) for seed in range(3000)]
    single = [int(view[0]) for view in chosen if len(view) == 1]
    assert abs(np.mean([place != 1 for place in single]) - 0.25) < 0.05


def test_a_view_takes_what_a_report_has():
    generator = np.random.default_rng(0)
    assert draw_view([], 0.5, generator).tolist() == []
    assert draw_view([-1], 0.0, generator).tolist() == [0]
    assert draw_view([1], 1.0, generator).tolist() == [0]


def test_views_hold_the_tokens_of_their_sentences(tokenizer, index_file):
    studies = Studies(VolumeIndex(index_file), **READING)
    samples = [studies.sample(study, (7, 0, study)) for study in (0, 3, 9)]
    batch = Collator(tokenizer, **OPTIONS)(samples)
    assert batch.view_ids.shape == batch.view_attention_mask.shape == batch.view_sentence_index.shape
    assert batch.view_ids.shape[:2] == (3, 3)
    for row in range(3):
        report, index = batch.report_ids[row], batch.sentence_index[row]
        sentences = [report[index == place].tolist() for place in range(int(index.max()) + 1)]
        for view in range(3):
            ids, index = batch.view_ids[row, view], batch.view_sentence_index[row, view]
            real = batch.view_attention_mask[row, view]
            assert (ids[real][0], ids[real][-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
            parts = [ids[index == place].tolist() for place in range(int(index.max()) + 1)]
            assert 1 <= len(parts) <= 3
            assert all(part in sentences for part in parts)
            assert (ids[~real] == tokenizer.pad_token_id).all()
            assert (index[~real] == -1).all()


def test_without_views_a_batch_has_none(tokenizer, index_file):
    studies = Studies(VolumeIndex(index_file), **READING)
    batch = Collator(tokenizer, **(OPTIONS | {"sentence_views": 0}))([studies.sample(0), studies.sample(1)])
    assert batch.view_ids.shape[:2] == batch.view_key.shape == (2, 0)


def test_a_batch_holds_what_its_types_say(tokenizer, index_file):
    studies = Studies(VolumeIndex(index_file), **READING)
    samples = [studies.sample(study, (0, 0, study)) for study in (0, 3, 9)]
    batch = Collator(tokenizer, **OPTIONS)(samples)
    assert batch.volume.voxels.shape == (3, 1, *SHAPE)
    assert batch.volume.voxels.dtype == torch.int16
    assert batch.volume.window.tolist() == [[-1000, 1000]] * 3
    assert batch.patch_mask.shape == (3, 4, 3, 2)
    assert (batch.patch_mask.flatten(1).sum(1) == 12).all()
    assert batch.attention_mask.shape == batch.report_ids.shape == batch.mlm_ids.shape == batch.sentence_index.shape
    assert batch.sentence_mask.sum(1).tolist() == [len(studies.report(study).sentence_spans) for study in (0, 3, 9)]
    for row, sample in enumerate(samples):
        texts = [polarity(sample.report[start:end]) for start, end in sample.sentence_spans]
        assert batch.sentence_polarity[row, : len(texts)].tolist() == texts
    asked = batch.mlm_labels != -100
    assert (batch.mlm_labels[asked] == batch.report_ids[asked]).all()
    assert (batch.report_ids[~batch.attention_mask] == tokenizer.pad_token_id).all()


def test_in_every_epoch_the_words_that_are_hidden_are_the_ones_asked(tokenizer, index_file):
    """Nothing of an earlier epoch stays in the input: else most words asked now would stand there to be read."""
    studies, collate = Studies(VolumeIndex(index_file), **READING), Collator(tokenizer, **OPTIONS)
    asked_before = None
    for epoch in range(4):
        batch = collate([studies.sample(study, (0, epoch, study)) for study in range(10)])
        asked = batch.mlm_labels != -100
        assert torch.equal(batch.mlm_ids[~asked], batch.report_ids[~asked])
        assert (batch.mlm_ids[asked] == tokenizer.mask_token_id).float().mean() > 0.65  # 8 of 10, the others are other words
        assert not torch.equal(asked, asked_before) if epoch else True
        asked_before = asked


def test_reports_are_padded_to_the_longest_or_to_the_most_with_nothing_else_changed(tokenizer, index_file):
    studies = Studies(VolumeIndex(index_file), **READING)
    samples = [studies.sample(study, (0, 0, study)) for study in (0, 3)]
    short, full = (Collator(tokenizer, **OPTIONS, pad_to_max_length=flag)(samples) for flag in (False, True))
    longest = int(short.attention_mask.sum(1).max())
    assert longest < OPTIONS["max_text_len"]
    for name in ("report_ids", "attention_mask", "sentence_index", "mlm_ids", "mlm_labels"):
        assert getattr(short, name).shape == (2, longest)
        assert getattr(full, name).shape == (2, OPTIONS["max_text_len"])
        assert (getattr(full, name)[:, :longest] == getattr(short, name)).all()
    paddings = {"report_ids": tokenizer.pad_token_id, "attention_mask": 0, "sentence_index": -1, "mlm_labels": -100}
    for name, padding in paddings.items():
        assert (getattr(full, name)[:, longest:] == padding).all()
    for name in ("view_ids", "view_attention_mask", "view_sentence_index", "view_key"):
        assert getattr(full, name).shape[:2] == (2, OPTIONS["sentence_views"])
        assert torch.equal(getattr(full, name), getattr(short, name))


def test_a_sample_is_masked_alike_in_any_batch(tokenizer, index_file):
    studies = Studies(VolumeIndex(index_file), **READING)
    collate = Collator(tokenizer, **OPTIONS)
    together = collate([studies.sample(study, (5, 1, study)) for study in (8, 2, 6)])
    alone = collate([studies.sample(2, (5, 1, 2))])
    length = alone.report_ids.shape[1]
    assert (together.patch_mask[1] == alone.patch_mask[0]).all()
    assert (together.mlm_ids[1, :length] == alone.mlm_ids[0]).all()
    assert together.report_key[1] == alone.report_key[0]
    other = collate([studies.sample(2, (5, 2, 2))])
    assert (other.patch_mask != alone.patch_mask).any()


def test_equal_reports_have_one_report_key_whatever_the_contrast_sees(tokenizer, index_file):
    studies = Studies(VolumeIndex(index_file), **READING)
    collate = Collator(tokenizer, **OPTIONS)
    sample = studies.sample(2)
    twins = collate([sample._replace(patient_id=str(place), seed=(5, 1, place)) for place in range(6)])
    assert len(set(twins.report_key.tolist())) == 1
    assert len(set(twins.view_key.flatten().tolist())) > 1
    assert len(set(twins.patient_key.tolist())) == 6


def test_equal_texts_have_equal_keys_everywhere():
    assert text_key("heart") == text_key("heart") != text_key("Heart")
    assert 0 <= text_key("aorta") < 2**63


def test_equal_texts_give_equal_vocabularies(tmp_path):
    first, second = (small_tokenizer(tmp_path / name).get_vocab() for name in ("one", "two"))
    assert first == second
    assert len(first) <= 120
    assert {"heart", "##h", "[MASK]"} <= set(first)
