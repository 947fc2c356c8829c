"""Conversion between the names of METER, PTUnifier, MG-3D and mg3d."""

import importlib.util
from pathlib import Path

import pytest
import torch
from released_files import small_key_list, synthetic

from mg3d.checkpoints.convert import convert, program_of
from mg3d.checkpoints.read import CheckpointFile, read_checkpoint
from mg3d.checkpoints.released_names import UNUSED, to_ours
from mg3d.models.vision.swin import SwinEncoder

SPEC = importlib.util.spec_from_file_location("convert_tool", Path(__file__).parents[2] / "tools/convert_meter_weights.py")
TOOL = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(TOOL)
METER = {
    "vit_model.visual.class_embedding": (8,),
    "text_transformer.embeddings.word_embeddings.weight": (11, 8),
    "text_transformer.encoder.layer.0.output.dense.bias": (8,),
    "cross_modal_text_transform.weight": (8, 8),
    "cross_modal_image_transform.weight": (8, 6),
    "cross_modal_image_transform.bias": (8,),
    "token_type_embeddings.weight": (2, 8),
    "cross_modal_image_layers.0.crossattention.self.query.weight": (8, 8),
    "cross_modal_text_layers.1.output.dense.bias": (8,),
    "cross_modal_image_pooler.dense.weight": (8, 8),
    "cross_modal_text_pooler.dense.weight": (8, 8),
    "mlm_score.bias": (11,),
    "mlm_score.decoder.weight": (11, 8),
    "itm_score.fc.weight": (2, 16),
}
AS_RELEASED = {
    "text_transformer.embeddings.word_embeddings.weight": "language_encoder.embeddings.word_embeddings.weight",
    "text_transformer.encoder.layer.0.output.dense.bias": "language_encoder.encoder.layer.0.output.dense.bias",
    "cross_modal_text_transform.weight": "multi_modal_language_proj.weight",
    "cross_modal_image_transform.weight": "multi_modal_vision_proj.weight",
    "cross_modal_image_transform.bias": "multi_modal_vision_proj.bias",
    "token_type_embeddings.weight": "modality_type_embeddings.weight",
    "cross_modal_image_layers.0.crossattention.self.query.weight": "multi_modal_vision_layers.0.crossattention.self.query.weight",
    "cross_modal_text_layers.1.output.dense.bias": "multi_modal_language_layers.1.output.dense.bias",
    "cross_modal_text_pooler.dense.weight": "multi_modal_language_pooler.dense.weight",
    "mlm_score.bias": "mlm_head.bias",
    "mlm_score.decoder.weight": "mlm_head.decoder.weight",
}
"""Written out from the two programs' modules, not from the code under test."""


def as_file(state):
    return CheckpointFile(Path("w.pt"), "torch", "", state, {})


@pytest.fixture(scope="module")
def meter():
    return synthetic(METER)


def test_meter_names_become_released_names(meter):
    done = convert(as_file(meter), "released")
    assert done.program == "meter"
    assert {row.source: row.target for row in done.rows if row.target} == AS_RELEASED
    assert all(torch.equal(done.tensors[target], meter[source]) for source, target in AS_RELEASED.items())
    left = {row.source: row.reason for row in done.rows if not row.target}
    names = ("vit_model.visual.class_embedding", "cross_modal_image_pooler.dense.weight", "itm_score.fc.weight")
    assert left == dict.fromkeys(names, "no counterpart")


@pytest.mark.parametrize("between", ["released", "ptunifier"])
def test_meter_round_trip(meter, between):
    there = convert(as_file(meter), between)
    back = convert(as_file(there.tensors), "meter")
    assert set(back.tensors) == set(AS_RELEASED)
    assert all(torch.equal(back.tensors[name], meter[name]) for name in AS_RELEASED)


def test_meter_to_mg3d_converts_only_tensors_that_are_used(meter):
    done = convert(as_file(meter), "mg3d")
    assert set(done.tensors) == {
        "text.bert.embeddings.word_embeddings.weight", "text.bert.encoder.layer.0.output.dense.bias", "project_report.weight",
        "project_image.weight", "project_image.bias", "type_embedding.weight", "branches.report.mlm_head.bias",
        "branches.report.mlm_head.decoder.weight",
    }  # fmt: skip
    assert "converted 8 of 14 tensors from meter names" in done.table()
    assert "vit_model.visual.class_embedding -> (no counterpart)" in done.table()


@pytest.fixture(scope="module")
def released():
    return {name: tensor[:1] if tensor.ndim > 2 and tensor.numel() > 1e5 else tensor
            for name, tensor in synthetic(small_key_list(), torch.bfloat16).items()}  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "module."])
def test_released_round_trip_with_unused_tensors(released, prefix):
    there = convert(as_file({prefix + name: tensor for name, tensor in released.items()}), "mg3d", keep_unused=True)
    assert set(there.tensors) == {to_ours(name) for name in released}
    assert there.merging == "legacy"
    back = convert(as_file(there.tensors), "released", merging="legacy")
    assert set(back.tensors) == set(released)
    assert all(torch.equal(back.tensors[name], released[name]) for name in released)


def test_unused_tensors_are_dropped_by_default(released):
    done = convert(as_file(released), "mg3d")
    assert not any(name.startswith(UNUSED) for name in done.tensors)
    assert sum(row.reason == "unused" for row in done.rows) == 197


def test_a_3d_encoder_is_not_converted_to_2d_programs(released):
    done = convert(as_file(released), "ptunifier")
    assert not any(name.startswith("vision_encoder.") for name in done.tensors)
    assert "language_encoder.embeddings.word_embeddings.weight" in done.tensors


def test_the_program_is_recognised_by_its_names(released, meter):
    assert program_of({"model." + name: tensor for name, tensor in released.items()}) == ("released", "model.")
    flat = convert(as_file(meter), "ptunifier").tensors
    assert program_of(flat) == ("ptunifier", "")
    alone = {name: tensor for name, tensor in released.items() if name.startswith("vision_encoder.")}
    assert program_of(alone) == ("released", "")
    with pytest.raises(ValueError, match=r"not names of METER, PTUnifier, MG-3D or mg3d .unknown"):
        program_of({"a.weight": torch.ones(2)})


def test_an_unknown_prefix_can_be_passed(released, meter, tmp_path, capsys):
    theirs = {"their.net." + name: tensor for name, tensor in released.items()} | {"their.optimizer": torch.ones(1)}
    with pytest.raises(ValueError, match="unknown prefix"):
        convert(as_file(theirs), "mg3d")
    done = convert(as_file(theirs), "mg3d", prefix="their")
    assert done.tensors.keys() == convert(as_file(released), "mg3d").tensors.keys()
    assert (done.program, done.merging) == ("released", "legacy")
    assert [row.source for row in done.rows] == list(theirs)
    assert next(row.target for row in done.rows if row.source == "their.optimizer") is None
    with pytest.raises(ValueError, match=r"no name starts with prefix='mine.'; names: their.net"):
        convert(as_file(theirs), "mg3d", prefix="mine")
    torch.save({"their.net." + name: tensor for name, tensor in meter.items()}, tmp_path / "in.pt")
    words = [str(tmp_path / "in.pt"), str(tmp_path / "out.pt"), "--to", "mg3d", "--prefix"]
    assert TOOL.main([*words, "their.net"]) == 0
    assert "converted 8 of 14 tensors from meter names" in capsys.readouterr().out


@pytest.mark.parametrize("out", ["out.safetensors", "out.ckpt"])
def test_the_tool_writes_names_and_patch_merging(released, out, tmp_path, capsys):
    torch.save({"state_dict": released}, tmp_path / "in.ckpt")
    assert TOOL.main([str(tmp_path / "in.ckpt"), str(tmp_path / out), "--to", "mg3d"]) == 0
    assert "vision_encoder.patch_embed.proj.bias -> vision.patch_embed.proj.bias" in capsys.readouterr().out
    file = read_checkpoint(tmp_path / out)
    assert file.metadata["mg3d"] == {"settings": {"patch_merging": "legacy"}}
    assert torch.equal(file.tensors["vision.patch_embed.proj.bias"], released["vision_encoder.patch_embed.proj.bias"])


def test_an_unknown_patch_merging_must_be_passed(tmp_path, capsys):
    swin = SwinEncoder(embed_dim=12, depths=(1,), num_heads=(2,)).state_dict()
    ours = {"vision." + name: tensor for name, tensor in swin.items()}
    ours |= {"project_image.weight": torch.ones(2, 3), "type_embedding.weight": torch.ones(2, 3)}
    torch.save({"state_dict": ours}, tmp_path / "ours.ckpt")
    words = [str(tmp_path / "ours.ckpt"), str(tmp_path / "out.ckpt"), "--to", "released"]
    for more, sentence in (
        ([], "the patch merging is unknown"), (["--merging", "monai"], "the published MG-3D code does not compute"),
    ):  # fmt: skip
        assert TOOL.main([*words, *more]) == 2
        assert sentence in capsys.readouterr().err
        assert not (tmp_path / "out.ckpt").exists()
    flat = convert(as_file(ours), "meter")
    assert (set(flat.tensors), flat.merging) == ({"cross_modal_image_transform.weight", "token_type_embeddings.weight"}, "none")
    assert TOOL.main([*words, "--merging", "legacy"]) == 0
    assert "vision_encoder.layers1.0.downsample.reduction.weight" in read_checkpoint(tmp_path / "out.ckpt").tensors
    assert TOOL.main([words[0], str(tmp_path / "out.bin"), "--to", "released"]) == 2
    assert "must end in" in capsys.readouterr().err
