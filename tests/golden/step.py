"""One training step of the three patients, with everything that passes between the parts kept."""

import torch
from golden.harness import Replay, build, one_patient

from mg3d.settings.schema import objective_weights
from mg3d.training.objectives import build_losses

WATCHED = (
    "text",
    "fusion_report",
    "fusion_volume",
    "mlm_head.transform",
    "aggregation",
    "contrast.multimodal_head",
    "contrast.unimodal_head",
    "dcl_aggregate_head",
)
MIM = frozenset({"mim"})


class Step:
    """What a preset computes: `features` and `losses` by their names, and what went into and came out of the watched parts.

    Volumes are reconstructed patient by patient, which keeps memory low; every patient has equally many hidden voxels.
    """

    @torch.no_grad()
    def __init__(self, preset, encoded):
        self.preset, self.dtype, self.batch = preset, encoded.dtype, encoded.batch
        self.kind = preset.removeprefix("mg3d_")
        self.settings, self.model = build(preset, encoded.dtype, Replay(encoded))
        self.weights = objective_weights(self.settings.loss)
        self.masked, self.clean = {}, {}
        alone = [self._run(one_patient(self.batch, patient), MIM, self.masked) for patient in range(len(self.batch.volume))]
        features = self._run(self.batch, frozenset(self.weights) - MIM, self.clean)
        self.features = features._replace(
            mim_prediction=torch.cat([one.mim_prediction for one in alone]),
            mim_target=torch.cat([one.mim_target for one in alone]),
            patch_mask=torch.cat([one.patch_mask for one in alone]),
        )
        losses = build_losses(self.settings.model, list(self.weights))
        self.losses = {
            name: loss(**{field: getattr(self.features, field) for field in loss.inputs}) for name, loss in losses.items()
        }

    @torch.no_grad()
    def image_tokens(self):
        """[B, N, d] of the clean volumes."""
        return self.model.encode_volume(self.batch.volume)

    def fused_report(self):
        """(report tokens, image tokens) after masked report modelling's fusion."""
        return self.clean["fusion_report"][0][1]

    def total_of(self, *names):
        """The weighted sum of these losses."""
        return sum(self.weights[name] * self.losses[name] for name in names)

    def _run(self, batch, objectives, seen):
        watched = {name: self.model.get_submodule(name) for name in WATCHED}
        hooks = [
            part.register_forward_hook(lambda part, given, out, name=name: seen.setdefault(name, []).append((given, out)))
            for name, part in watched.items()
        ]
        features = self.model(batch, objectives)
        for hook in hooks:
            hook.remove()
        return features
