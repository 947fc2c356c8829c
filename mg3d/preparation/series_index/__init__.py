"""Index of the DICOM series below a folder: one table row per series, with reports, verdicts and a choice per study."""
