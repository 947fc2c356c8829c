import pickle

import numpy as np
import pytest
import torch
from small_arrow import COLLATOR, SHAPE, small_tokenizer, write_split

from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.collate import Collator
from mg3d.datasets.masking import WholeWordMasker, draw_patch_mask, draw_view
from mg3d.datasets.studies import Studies
from mg3d.datasets.tokenizer import encode_report, load_tokenizer, lower
from mg3d.datasets.windowing import sample_intensities
from mg3d.polarity import span_polarities
from mg3d.sentence_spans import text_key

READING = {"text_unit": "clause", "window_hu": (-1000.0, 1000.0)}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer") / "words")


@pytest.fixture(scope="module")
def index_file(tmp_path_factory):
    return write_split(tmp_path_factory.mktemp("arrow"), "ct_rate", "train", patients=5, scans=2, reconstructions=3)


@pytest.fixture(scope="module")
def studies(index_file):
    return Studies(VolumeIndex(index_file), **READING)


@pytest.fixture(scope="module")
def collate(tokenizer):
    return Collator(tokenizer, **COLLATOR)


def test_an_index_reads_the_volume_of_a_row_also_after_pickling(index_file):
    index = VolumeIndex(index_file)
    assert len(index) == 30
    assert index.shape == SHAPE
    for copy in (index, pickle.loads(pickle.dumps(index))):
        assert all((copy.volume(row) == -1000 + row).all() for row in (29, 0, 7))


def test_missing_and_truncated_files_are_refused(index_file, tmp_path):
    with pytest.raises(FileNotFoundError, match="prepro_pretraining_data"):
        VolumeIndex(tmp_path / "clm_ct_rate_train.arrow")
    truncated = tmp_path / "truncated.arrow"
    truncated.write_bytes(index_file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a complete Arrow file"):
        len(VolumeIndex(truncated))


def test_one_reconstruction_is_drawn_per_study(studies):
    assert len(studies) == 10
    drawn = [studies.sample(4, (0, epoch, 4)).volume[0, 0, 0, 0] for epoch in range(40)]
    assert set(drawn) == {-988, -987, -986}
    assert studies.sample(4).volume[0, 0, 0, 0] == -988
    assert sample_intensities(studies.sample(4))[0, 0, 0, 0] == pytest.approx(12 / 2000)
    assert studies.sample(4, (0, 3, 4)).volume[0, 0, 0, 0] == drawn[3]


def test_shuffled_reports_are_always_of_another_patient(studies, index_file):
    shuffled = Studies(VolumeIndex(index_file), shuffle_seed=3, **READING)
    reports = {studies.report(study).report: study for study in range(10)}
    source = [reports[shuffled.sample(study).report] for study in range(10)]
    assert sorted(source) == list(range(10))
    assert all(studies.patient(study) != studies.patient(source[study]) for study in range(10))
    assert (shuffled.sample(2).volume == studies.sample(2).volume).all()


def test_tokens_are_assigned_to_their_sentence(tokenizer):
    report = "The heart is enlarged, measuring 3 mm. No lesion of the liver."
    spans = ((0, 22), (23, 38), (39, 62))
    encoded = encode_report(tokenizer, report, spans, 64)
    tokens = tokenizer.convert_ids_to_tokens(encoded.ids.tolist())
    assert (tokens[0], tokens[-1]) == ("[CLS]", "[SEP]")
    assert encoded.sentence_index[[0, -1]].tolist() == [-1, -1]
    for sentence, (start, end) in enumerate(spans):
        members = [token for token, index in zip(tokens, encoded.sentence_index, strict=True) if index == sentence]
        text = tokenizer.convert_tokens_to_string(members).replace(" ", "").replace("##", "")
        assert text == report[start:end].lower().replace(" ", "")


def test_a_truncated_report_keeps_its_end_token_and_loses_whole_sentences(tokenizer):
    report = "The heart is enlarged. The liver is normal. The aorta is normal."
    spans = ((0, 22), (23, 43), (44, 64))
    encoded = encode_report(tokenizer, report, spans, 8)
    assert len(encoded.ids) == 8
    assert encoded.ids[-1] == tokenizer.sep_token_id
    assert encoded.sentence_spans == spans[:2]
    assert encoded.sentence_index.max() == 1


def test_lower_case_keeps_character_offsets():
    assert lower("İstanbul ÇÖ") == "İstanbul çö"


def test_a_missing_tokenizer_names_the_setting():
    with pytest.raises(FileNotFoundError, match="text_encoder=<local directory>"):
        load_tokenizer("nobody/has-this-model")


def test_half_of_the_patches_are_masked():
    mask = draw_patch_mask((4, 3, 2), 0.5, np.random.default_rng(0))
    assert mask.shape == (4, 3, 2)
    assert mask.sum() == 12
    assert (mask != draw_patch_mask((4, 3, 2), 0.5, np.random.default_rng(1))).any()


def test_whole_words_are_masked_in_the_proportions_of_bert(tokenizer):
    masker, generator = WholeWordMasker(tokenizer, 0.3), np.random.default_rng(0)
    pieces = tokenizer("enlarged tracheal lesions measuring abnormalities of the heart")["input_ids"]
    ids = np.array([tokenizer.cls_token_id, *pieces[1:-1] * 1500, tokenizer.sep_token_id])
    masked, labels = masker(ids, generator)
    selected = labels != -100
    assert (labels[selected] == ids[selected]).all()
    assert (masked[~selected] == ids[~selected]).all()
    assert not selected[[0, -1]].any()
    inside = masker.is_continuation[ids]
    assert inside.any()
    assert (selected[inside] == selected[np.flatnonzero(inside) - 1]).all()
    first = ~inside & ~np.isin(ids, tokenizer.all_special_ids)
    assert selected[first].mean() == pytest.approx(0.3, abs=0.03)
    assert (masked[selected] == tokenizer.mask_token_id).mean() == pytest.approx(0.8, abs=0.03)
    assert (masked[selected] == ids[selected]).mean() == pytest.approx(0.1, abs=0.03)


def test_at_least_one_word_is_masked(tokenizer):
    ids = np.array(tokenizer("the heart")["input_ids"])
    assert all((WholeWordMasker(tokenizer, 0.0)(ids, np.random.default_rng(seed))[1] != -100).any() for seed in range(5))


def test_a_view_has_one_to_three_sentences_with_the_requested_polarity():
    polarities = [-1, -1, 1, -1, 1, -1]
    for fraction, preferred in ((0.0, 1), (1.0, -1)):
        views = [draw_view(polarities, fraction, np.random.default_rng(seed)) for seed in range(300)]
        assert {len(view) for view in views} == {1, 2, 3}
        assert all(len(set(view)) == len(view) and (np.diff(view) > 0).all() for view in views)
        assert all(any(polarities[index] == preferred for index in view) for view in views)
        assert {int(index) for view in views for index in view} == set(range(6))
    quarter = [draw_view([-1, 1, -1], 0.25, np.random.default_rng(seed)) for seed in range(3000)]
    assert np.mean([view[0] != 1 for view in quarter if len(view) == 1]) == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize(("polarities", "fraction", "view"), [([], 0.5, []), ([-1], 0.0, [0]), ([1], 1.0, [0])])
def test_a_view_falls_back_to_the_sentences_there_are(polarities, fraction, view):
    assert draw_view(polarities, fraction, np.random.default_rng(0)).tolist() == view


def sentences_of(ids, index):
    return [ids[index == sentence].tolist() for sentence in range(int(index.max()) + 1)]


def test_views_contain_the_tokens_of_their_sentences(tokenizer, studies, collate):
    batch = collate([studies.sample(study, (7, 0, study)) for study in (0, 3, 9)])
    assert batch.view_ids.shape == batch.view_attention_mask.shape == batch.view_sentence_index.shape
    assert batch.view_ids.shape[:2] == (3, 3)
    for row in range(3):
        report = sentences_of(batch.report_ids[row], batch.sentence_index[row])
        for view in range(3):
            ids, index = batch.view_ids[row, view], batch.view_sentence_index[row, view]
            real = batch.view_attention_mask[row, view]
            assert (ids[real][0], ids[real][-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
            assert 1 <= len(sentences_of(ids, index)) <= 3
            assert all(sentence in report for sentence in sentences_of(ids, index))
            assert (ids[~real] == tokenizer.pad_token_id).all()
            assert (index[~real] == -1).all()


def test_a_batch_without_views_has_empty_view_fields(tokenizer, studies):
    batch = Collator(tokenizer, **(COLLATOR | {"sentence_views": 0}))([studies.sample(0), studies.sample(1)])
    assert batch.view_ids.shape[:2] == batch.view_key.shape == (2, 0)


def test_a_batch_matches_its_documented_types(tokenizer, studies, collate):
    samples = [studies.sample(study, (0, 0, study)) for study in (0, 3, 9)]
    batch = collate(samples)
    assert batch.volume.voxels.shape == (3, 1, *SHAPE)
    assert batch.volume.voxels.dtype == torch.int16
    assert batch.volume.window.tolist() == [[-1000, 1000]] * 3
    assert batch.patch_mask.shape == (3, 4, 3, 2)
    assert (batch.patch_mask.flatten(1).sum(1) == 12).all()
    assert batch.attention_mask.shape == batch.report_ids.shape == batch.mlm_ids.shape == batch.sentence_index.shape
    assert batch.sentence_mask.sum(1).tolist() == [len(sample.sentence_spans) for sample in samples]
    for row, sample in enumerate(samples):
        polarities = span_polarities(sample.report, sample.sentence_spans)
        assert batch.sentence_polarity[row, : len(polarities)].tolist() == polarities
    labelled = batch.mlm_labels != -100
    assert (batch.mlm_labels[labelled] == batch.report_ids[labelled]).all()
    assert (batch.report_ids[~batch.attention_mask] == tokenizer.pad_token_id).all()


def test_every_epoch_masks_exactly_the_words_it_predicts(tokenizer, studies, collate):
    """No mask of an earlier epoch remains: otherwise most words to predict would be readable."""
    previous = None
    for epoch in range(4):
        batch = collate([studies.sample(study, (0, epoch, study)) for study in range(10)])
        labelled = batch.mlm_labels != -100
        assert torch.equal(batch.mlm_ids[~labelled], batch.report_ids[~labelled])
        assert (batch.mlm_ids[labelled] == tokenizer.mask_token_id).float().mean() > 0.65  # 80 %; the others are replaced or kept
        assert previous is None or not torch.equal(labelled, previous)
        previous = labelled


def test_padding_to_the_longest_or_to_the_maximum_changes_nothing_else(tokenizer, studies):
    samples = [studies.sample(study, (0, 0, study)) for study in (0, 3)]
    short, full = (Collator(tokenizer, **COLLATOR, pad_to_max_length=flag)(samples) for flag in (False, True))
    longest = int(short.attention_mask.sum(1).max())
    assert longest < COLLATOR["max_text_len"]
    padding = {"report_ids": tokenizer.pad_token_id, "attention_mask": 0, "sentence_index": -1, "mlm_labels": -100,
               "mlm_ids": tokenizer.pad_token_id}  # fmt: skip
    for name, value in padding.items():
        assert getattr(short, name).shape == (2, longest)
        assert getattr(full, name).shape == (2, COLLATOR["max_text_len"])
        assert (getattr(full, name)[:, :longest] == getattr(short, name)).all()
        assert (getattr(full, name)[:, longest:] == value).all()
    for name in ("view_ids", "view_attention_mask", "view_sentence_index", "view_key"):
        assert torch.equal(getattr(full, name), getattr(short, name))


def test_masks_do_not_depend_on_the_batch(studies, collate):
    together = collate([studies.sample(study, (5, 1, study)) for study in (8, 2, 6)])
    alone = collate([studies.sample(2, (5, 1, 2))])
    length = alone.report_ids.shape[1]
    assert (together.patch_mask[1] == alone.patch_mask[0]).all()
    assert (together.mlm_ids[1, :length] == alone.mlm_ids[0]).all()
    assert together.report_key[1] == alone.report_key[0]
    later = collate([studies.sample(2, (5, 2, 2))])
    assert (later.patch_mask != alone.patch_mask).any()


def test_equal_reports_share_a_key_and_their_views_do_not(studies, collate):
    sample = studies.sample(2)
    batch = collate([sample._replace(patient_id=str(row), seed=(5, 1, row)) for row in range(6)])
    assert len(set(batch.report_key.tolist())) == 1
    assert len(set(batch.view_key.flatten().tolist())) > 1
    assert len(set(batch.patient_key.tolist())) == 6
    assert text_key("heart") == text_key("heart") != text_key("Heart")
    assert 0 <= text_key("aorta") < 2**63


def test_equal_texts_give_equal_vocabularies(tmp_path):
    first, second = (small_tokenizer(tmp_path / name).get_vocab() for name in ("one", "two"))
    assert first == second
    assert len(first) <= 120
    assert {"heart", "##h", "[MASK]"} <= set(first)
