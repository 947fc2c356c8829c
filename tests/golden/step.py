"""One training step of the three patients, with the inputs and outputs of some modules."""

import torch
from golden.harness import Replay, build, one_patient

from mg3d.settings.schema import objective_weights

WATCHED = (
    "text",
    "fusion_report",
    "fusion_volume",
    "branches.report.mlm_head.transform",
    "branches.disentangled.aggregation",
    "fused_contrast.multimodal_head",
    "fused_contrast.unimodal_head",
    "branches.disentangled.aggregate_head",
)


class Step:
    """Features and losses of a preset, and calls of the watched modules: name (its last parts) -> [(inputs, output)].

    Volumes are reconstructed patient by patient, which keeps memory low; all patients have the same number of masked voxels.
    """

    @torch.no_grad()
    def __init__(self, preset, encoded):
        self.preset, self.dtype, self.batch = preset, encoded.dtype, encoded.batch
        self.kind = preset.removeprefix("mg3d_")
        self.settings, self.model = build(preset, encoded.dtype, Replay(encoded))
        self.weights = objective_weights(self.settings.loss)
        self.masked, self.clean = {}, {}
        patients = range(len(self.batch.volume))
        alone = [self._run(one_patient(self.batch, patient), ["volume"], self.masked) for patient in patients]
        self.features = self._run(self.batch, ["report", "contrast", "disentangled"], self.clean)
        for name in ("mim_prediction", "mim_target", "patch_mask"):
            self.features[name] = torch.cat([one[name] for one in alone])
        self.losses = self.model.losses(self.features)

    @torch.no_grad()
    def image_tokens(self):
        """[B, N, d] of the clean volumes."""
        return self.model.encode_volume(self.batch.volume)

    def fused_report(self):
        """(report tokens, image tokens) after the fusion of masked report modelling."""
        return self.clean["fusion_report"][0][1]

    def total_of(self, *names):
        """Weighted sum of these losses."""
        return sum(self.weights[name] * self.losses[name] for name in names)

    def _run(self, batch, branches, calls):
        watched = {name: self.model.get_submodule(name) for name in WATCHED}
        hooks = [
            part.register_forward_hook(lambda part, inputs, out, name=name: calls.setdefault(name, []).append((inputs, out)))
            for name, part in watched.items()
        ]
        features = self.model(batch, branches)
        for hook in hooks:
            hook.remove()
        return features
