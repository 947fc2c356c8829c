"""mg3d: multi-grained 3D medical vision-language pre-training on chest CT and radiology reports."""

__version__ = "0.1.0"
