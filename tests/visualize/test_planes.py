import numpy as np
import pytest

from mg3d.visualize.page import png
from mg3d.visualize.planes import case_figure, orthogonal_planes

Z, Y, X = np.meshgrid(np.arange(5), np.arange(7), np.arange(9), indexing="ij")


@pytest.mark.parametrize("centre", [None, (1, 5, 3)])
def test_planes_follow_the_radiological_convention(centre):
    planes = orthogonal_planes(100 * Z + 10 * Y + X, centre=centre)
    z, y, x = centre or (2, 3, 4)
    for down in range(7):
        for right in range(9):  # rows go to posterior, columns to the patient's left
            assert planes["axial"][down, right] == 100 * z + 10 * down + right
    for down in range(5):  # rows go to inferior
        assert planes["coronal"][down].tolist() == [100 * (4 - down) + 10 * y + right for right in range(9)]
        assert planes["sagittal"][down].tolist() == [100 * (4 - down) + 10 * back + x for back in range(7)]


def test_pixels_have_the_aspect_ratio_of_the_voxels():
    figure = case_figure(Z.astype(float), spacing_mm=(6.0, 3.0, 2.0))
    assert [axes.get_aspect() for axes in figure.axes] == pytest.approx([3 / 2, 6 / 2, 6 / 3])


def test_edges_are_labelled_with_the_patients_directions():
    letters = {}
    for axes in case_figure(Z.astype(float)).axes:
        places = {text.get_text(): text.get_position() for text in axes.texts}
        across = sorted((name for name, (_, y) in places.items() if y == 0.5), key=lambda name: places[name][0])
        letters[axes.get_title()] = (across, sorted(places.keys() - set(across), key=lambda name: -places[name][1]))
    assert letters == {
        "axial": (["R", "L"], ["A", "P"]),
        "coronal": (["R", "L"], ["S", "I"]),
        "sagittal": (["A", "P"], ["S", "I"]),
    }


def test_an_overlay_covers_its_voxels():
    marked = (Z >= 3) & (Y < 4)
    figure = case_figure(Z.astype(float), overlay=marked, centre=(3, 2, 4))
    for axes, plane in zip(figure.axes, orthogonal_planes(marked, centre=(3, 2, 4)).values()):
        volume, overlay = axes.images
        assert (~np.ma.getmaskarray(overlay.get_array()) == plane).all()
        assert volume.get_extent() == overlay.get_extent()


def test_a_long_report_is_complete_and_dollar_signs_are_not_math():
    report = "\n".join(f"{number}. Costs $5 and x_{{ more $ than before." for number in range(80))
    figure = case_figure(Z.astype(float), report=report, title="a $_{ title")
    assert figure.axes[3].texts[0].get_text() == report
    assert figure.get_figheight() > 2 * case_figure(Z.astype(float), report="Short.").get_figheight()
    assert png(figure).startswith(b"\x89PNG")
