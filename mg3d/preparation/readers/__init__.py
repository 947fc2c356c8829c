"""One reader per kind of file: from the files of a volume record to upright voxels in HU or grey values."""
