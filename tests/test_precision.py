"""Library versions that compute mixed precision wrongly or slowly."""

import pytest

from mg3d.precision import convolution_defect


@pytest.mark.parametrize(
    ("torch_version", "cudnn_version", "precision", "expected"),
    [
        ("2.9.0", 91002, "bf16-mixed", "four times slower"),
        ("2.9.0+cu128", 91900, "16-mixed", "four times slower"),
        ("2.9.0", 91900, "32-true", None),
        ("2.9.1", 91002, "16-mixed", None),
        ("2.9.1", 91900, "bf16-mixed", None),
        ("2.9.1+cu130", 91300, "bf16-mixed", "cuDNN 9.13 may compute wrong"),
        ("2.8.0", 90705, "bf16-mixed", None),
        ("2.8.0", 90800, "bf16-mixed", "cuDNN 9.8 may compute wrong"),
        ("2.12.0", 91499, "bf16-mixed", "cuDNN 9.14 may compute wrong"),
        ("2.12.0", 91500, "bf16-mixed", None),
        ("2.12.0", None, "bf16-mixed", None),
    ],
)
def test_known_defects_of_3d_convolutions_are_named(torch_version, cudnn_version, precision, expected):
    found = convolution_defect(torch_version, cudnn_version, precision)
    assert expected in found if expected else found is None
