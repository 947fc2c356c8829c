"""Tables of predictions."""

import numpy as np
import pandas as pd


def prediction_table(task_type, targets, scores):
    """One case per patient; targets and scores [cases, outputs]."""
    columns = {f"target/{name}": column for name, column in zip(task_type.outputs, np.transpose(targets), strict=True)}
    columns |= {f"score/{name}": column for name, column in zip(task_type.outputs, np.transpose(scores), strict=True)}
    names = [f"{row:03d}" for row in range(len(targets))]
    return pd.DataFrame({"case_id": names, "patient_id": names, **columns})
