import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from downstream.folders import load, script

from mg3d.finetune import arrows
from mg3d.finetune.cases import ArrowRow, Candidate, FinetuneCase, ReferenceNodule
from mg3d.finetune.images import read_image
from mg3d.finetune.run import run
from mg3d.finetune.settings import parse_settings

VISION = ("ACDC", "cc-ccii", "Covid19_20", "Luna16", "MSD", "stoic2021")
FACTS = {"folder": "stoic2021", "settings": {}, "synthetic": True, "cases": 3}


@pytest.fixture(scope="module")
def prepared(tiny_set, tmp_path_factory):
    """Name of a folder -> (raw root, prepared file)."""
    out, made = tmp_path_factory.mktemp("arrows"), {}

    def make(name):
        if name not in made:
            root = tiny_set(name)
            prepare = script("prepro_finetuning_vision_data")["prepare"]
            made[name] = root, prepare(name, {"data_root": str(root), "out": str(out / f"{name}.arrow")})
        return made[name]

    return make


def batches(name, data_root):
    """First training and evaluation samples, and the cases."""
    task = load(name).TASK
    file = arrows.find_prepared(str(data_root), name)
    fixed = arrows.read_metadata(file, name)["settings"] if file else {}
    overrides = {"data_root": str(data_root), "num_workers": 0}
    settings = task.resolve(parse_settings(task.settings, overrides, {**task.defaults(fixed, True), **fixed}))
    cases = arrows.read_cases(file) if file else task.read_cases(Path(data_root), settings)
    task_type = task.build(settings)
    training, draw = task_type.training_data([case for case in cases if case.split == "train"])
    indices = draw(torch.Generator().manual_seed(0))
    return cases, [training[int(index)] for index in indices[:3]] + [task_type.evaluation_data(cases)[2]]


def flat(samples):
    return [part for sample in samples for part in (sample if isinstance(sample, list) else [sample])]


@pytest.mark.parametrize("name", VISION)
def test_batches_from_the_raw_folder_and_from_its_arrow_file_are_equal(prepared, name):
    root, file = prepared(name)
    raw_cases, raw = batches(name, root)
    cases, second = batches(name, file)
    bare = [dataclasses.replace(case, image=Path(), mask=case.mask and Path()) for case in raw_cases]
    assert [dataclasses.replace(case, image=Path(), mask=case.mask and Path()) for case in cases] == bare
    for first, two in zip(flat(raw), flat(second), strict=True):
        assert first.keys() == two.keys()
        for key, value in first.items():
            np.testing.assert_array_equal(np.asarray(value), np.asarray(two[key]), key)


def test_a_folder_of_prepared_files_is_a_data_root_too(prepared, tmp_path):
    _, file = prepared("stoic2021")
    assert arrows.find_prepared(str(file.parent), "stoic2021") == file
    assert arrows.find_prepared(str(tmp_path), "stoic2021") is None
    for task in ("Task06_Lung", "Task10_Colon"):
        (tmp_path / f"MSD-{task}.arrow").touch()
    with pytest.raises(ValueError, match=r"MSD-Task06_Lung.arrow, MSD-Task10_Colon.arrow; name one"):
        arrows.find_prepared(str(tmp_path), "MSD")


def test_a_run_on_a_prepared_file_gives_the_scores_of_the_raw_folder(prepared, tmp_path):
    tables = []
    for number, data_root in enumerate(prepared("stoic2021")):
        arguments = [f"data_root={data_root}", f"log_dir={tmp_path}", f"run_name=r{number}"]
        arguments += ["epochs=1", "accelerator=cpu", "n_bootstrap=2"]
        assert run(load("stoic2021").TASK, arguments) == 0
        tables.append((tmp_path / "stoic2021" / f"r{number}" / "fold0" / "predictions_val.csv").read_text())
    assert tables[0] == tables[1]


@pytest.mark.parametrize("kind", ["int16", "uint8", "float64", ">i2", "bool"])
def test_voxels_are_stored_in_the_type_of_their_file(tmp_path, kind):
    array = (np.arange(24) % 7).reshape(2, 3, 4).astype(kind)
    np.save(tmp_path / "a.npy", array)
    case = FinetuneCase(case_id="a", patient_id="p", image=tmp_path / "a.npy", mask=tmp_path / "a.npy")
    arrows.write_cases(tmp_path / "a.arrow", [case], FACTS)
    (back,) = arrows.read_cases(tmp_path / "a.arrow")
    batch = pa.ipc.open_file(str(tmp_path / "a.arrow")).get_batch(0)
    assert len(batch.column("image")[0].as_py()) == array.nbytes
    for source in (back.image, back.mask):
        assert torch.equal(read_image(source).as_tensor(), read_image(case.image).as_tensor())
        assert torch.equal(read_image(source).affine, read_image(case.image).affine)


def test_every_field_of_a_case_is_stored(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 3, 4), np.int16))
    case = FinetuneCase(
        case_id="a", patient_id="p", image=tmp_path / "a.npy", target=(1, -1), report="Müller", split="test", fold=3,
        candidates=(Candidate((1.5, -2.0, 3.0), 1),), nodules=(ReferenceNodule((0.0, 0.0, 0.25), 6.5, True),),
    )  # fmt: skip
    arrows.write_cases(tmp_path / "a.arrow", [case], FACTS)
    (back,) = arrows.read_cases(tmp_path / "a.arrow")
    assert back == dataclasses.replace(case, image=ArrowRow(tmp_path / "a.arrow", 0))


def three(tmp_path):
    for name in "abc":
        np.save(tmp_path / f"{name}.npy", np.full((2, 3, 4), ord(name), np.int16))
    return [FinetuneCase(case_id=name, patient_id=name, image=tmp_path / f"{name}.npy") for name in "abc"]


@pytest.mark.parametrize("lost", [1, 60, 900])
def test_a_killed_run_continues_after_its_last_complete_case(tmp_path, monkeypatch, lost):
    cases, out = three(tmp_path), tmp_path / "s.arrow"
    whole = tmp_path / "whole.arrow"
    arrows.write_cases(whole, cases, FACTS)
    read_array, stems = arrows.read_array, []

    def dies(source):
        if source.stem == "c":
            raise KeyboardInterrupt
        return read_array(source)

    monkeypatch.setattr(arrows, "read_array", dies)
    with pytest.raises(KeyboardInterrupt):
        arrows.write_cases(out, cases, FACTS)
    partial = tmp_path / ".s.arrow.partial"
    assert not out.exists()
    partial.write_bytes(partial.read_bytes()[:-lost])
    monkeypatch.setattr(arrows, "read_array", lambda source: stems.append(source.stem) or read_array(source))
    with pytest.raises(ValueError, match="started with other settings"):
        arrows.write_cases(out, cases, {**FACTS, "settings": {"candidates": "V1"}})
    assert arrows.write_cases(out, cases, FACTS) == []
    assert "c" in stems
    assert stems != ["a", "b", "c"]
    assert out.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob(".s.*"))


def test_unreadable_cases_are_excluded_with_a_reason(tmp_path):
    cases, out = three(tmp_path), tmp_path / "s.arrow"
    cases[1].image.write_bytes(b"no array")
    excluded = arrows.write_cases(out, cases, FACTS)
    assert [row["case_id"] for row in excluded] == ["b"]
    assert "b.npy cannot be read as a scan" in (tmp_path / "s.arrow.excluded.csv").read_text()
    assert [case.case_id for case in arrows.read_cases(out)] == ["a", "c"]
    for case in cases:
        case.image.unlink()
    with pytest.raises(ValueError, match="none of the 3 cases could be read; the first: there is no file"):
        arrows.write_cases(tmp_path / "t.arrow", cases, FACTS)


def test_contradictions_and_truncated_files_are_refused(prepared, tmp_path, capsys):
    _, file = prepared("Luna16")
    cut, second = tmp_path / "cut.arrow", tmp_path / "other.arrow"
    cut.write_bytes(file.read_bytes()[:-40])
    second.write_bytes(prepared("stoic2021")[1].read_bytes())
    for arguments, message in (
        ([f"data_root={file}", "candidates=V1"], "was prepared with other settings: candidates='V1' (was 'V2')"),
        ([f"data_root={cut}"], "truncated"),
        ([f"data_root={second}"], "was made for downstream/stoic2021, not for Luna16"),
        ([f"data_root={tmp_path / 'none.arrow'}"], "no such folder"),
    ):
        assert run(load("Luna16").TASK, arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_the_script_refuses_mistakes_in_one_sentence(prepared, tmp_path, capsys):
    main = script("prepro_finetuning_vision_data")["main"]
    root, file = prepared("stoic2021")
    for arguments, message in (
        (["stoic", "data_root=phantom"], "'stoic': expected one of"),
        (["stoic2021"], "data_root=... is missing"),
        (["stoic2021", f"data_root={root}", f"out={file}"], "exists"),
        (["stoic2021", f"data_root={file}"], "is prepared already"),
        (["stoic2021", f"data_root={tmp_path}"], "metadata/reference.csv"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert main(["--help"]) == 0
