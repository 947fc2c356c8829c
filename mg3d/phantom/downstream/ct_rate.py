"""CT-RATE alone: images, reports, metadata and labels of both splits, one reconstruction for most scans."""

import shutil

from mg3d.phantom.downstream.order import Order
from mg3d.phantom.generate import PhantomSettings, generate


def write(order: Order) -> None:
    """Writes three in four patients into train and the others into valid, and the truth of each study beside them."""
    valid = max(1, order.cases // 4)
    settings = PhantomSettings(
        train_patients=order.cases - valid, valid_patients=valid, ctrg_cases=0, grid=order.voxels_in_plane, seed=order.seed
    )
    made = order.root / "made"
    generate(made, settings, workers=order.workers)
    for part in (made / "ct_rate" / "dataset").iterdir():
        part.rename(order.root / part.name)
    (made / "truth").rename(order.root / "truth")
    shutil.rmtree(made)
