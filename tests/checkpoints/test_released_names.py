import pytest
import torch
from released_files import LISTS, key_list, small_key_list

from mg3d.checkpoints.pretrained import outline
from mg3d.checkpoints.released_names import UNUSED, part_of, to_ours, to_released
from mg3d.config import resolve


@pytest.mark.parametrize("name", LISTS)
def test_released_names_round_trip(name):
    keys = key_list(name)
    assert len(keys) > 50
    assert [to_released(to_ours(key)) for key in keys] == list(keys)
    assert len({to_ours(key) for key in keys}) == len(keys)


@pytest.fixture(scope="module")
def shapes_of_released_preset(released_model):
    return {name: tuple(tensor.shape) for name, tensor in released_model.state_dict().items()}


def test_mg3d_names_round_trip(shapes_of_released_preset):
    for name in shapes_of_released_preset:
        assert to_ours(to_released(name)) == name


def test_the_released_preset_has_exactly_the_used_released_tensors(shapes_of_released_preset):
    released = {to_ours(key): shape for key, shape in small_key_list().items()}
    read = {name: shape for name, shape in released.items() if not name.startswith(UNUSED)}
    assert read == shapes_of_released_preset


def released_parameters(*words):
    """Share of parameters that a released file of full size holds, and parts of which it holds something and nothing."""
    released = {to_ours(key): shape for key, shape in key_list("keys_swinb").items()}
    model = outline(resolve(["swin_b", "text_radbert", *words], {}), {"vocab_size": 28996}, torch.float32)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    held = {name for name, parameter in model.named_parameters() if released.get(name) == tuple(parameter.shape)}
    some = {part_of(name) for name in held}
    none = {part_of(name) for name in sizes} - some
    return sum(sizes[name] for name in held) / sum(sizes.values()), some, none


def test_coverage_of_released_weights_matches_the_documentation():
    share, some, none = released_parameters()
    assert share == pytest.approx(0.780, abs=5e-4)
    assert some == {
        "vision", "text", "project_image", "project_report", "type_embedding", "branches.report", "branches.volume",
        "branches.disentangled",
    }  # fmt: skip
    assert none == {
        "position", "branches.contrast",
    }  # fmt: skip
    for words in ("mg3d_intended", "mg3d_released"):
        share, _, none = released_parameters(words)
        assert (share, none) == (1.0, set())


def test_a_tensor_without_released_counterpart_is_refused():
    with pytest.raises(ValueError, match="no counterpart"):
        to_released("branches.contrast.image_pool.queries")
