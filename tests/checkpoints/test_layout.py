import pytest
from released_files import LISTS, key_list, small_key_list

from mg3d.checkpoints.layout import UNUSED, to_ours, to_released


@pytest.mark.parametrize("name", LISTS)
def test_every_released_name_comes_back_from_ours(name):
    keys = key_list(name)
    assert len(keys) > 50
    assert [to_released(to_ours(key)) for key in keys] == list(keys)
    assert len({to_ours(key) for key in keys}) == len(keys)


@pytest.fixture(scope="module")
def shapes_of_released_preset(released_model):
    return {name: tuple(tensor.shape) for name, tensor in released_model.state_dict().items()}


def test_every_name_of_ours_comes_back_from_the_released_one(shapes_of_released_preset):
    for name in shapes_of_released_preset:
        assert to_ours(to_released(name)) == name


def test_the_released_preset_has_exactly_the_released_tensors_that_are_read(shapes_of_released_preset):
    released = {to_ours(key): shape for key, shape in small_key_list().items()}
    read = {name: shape for name, shape in released.items() if not name.startswith(UNUSED)}
    assert read == shapes_of_released_preset


def test_a_tensor_that_the_released_code_lacks_is_refused():
    with pytest.raises(ValueError, match="no counterpart"):
        to_released("contrast.image_pool.queries")
