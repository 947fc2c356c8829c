"""The epoch is chosen, and the network evaluated, in the precision of the training."""

import pytest
import torch
from downstream.folders import load
from torch import nn

from mg3d.finetune import loop
from mg3d.finetune.cases import Split
from mg3d.finetune.module import FinetuneModule
from mg3d.finetune.results import read_table
from mg3d.finetune.run import run
from mg3d.finetune.settings import FinetuneSettings
from mg3d.finetune.tasks.classification import Classification


def test_validation_and_evaluation_of_a_checkpoint_compute_as_the_training(tiny_set, tmp_path, monkeypatch):
    validated, validation_step = {}, FinetuneModule.validation_step

    def record(module, *batch):
        validation_step(module, *batch)
        validated.update({row["case_id"]: row["score/probSevere"] for row in module.validation_rows})

    monkeypatch.setattr(FinetuneModule, "validation_step", record)
    arguments = [f"data_root={tiny_set('stoic2021')}", f"log_dir={tmp_path}", "run_name=r", "epochs=1", "batch_size=3",
                 "num_workers=0", "n_bootstrap=5", "accelerator=cpu"]  # fmt: skip
    task, folder = load("stoic2021").TASK, tmp_path / "stoic2021" / "r" / "fold0"
    assert run(task, [*arguments, "precision=bf16-mixed"]) == 0
    trained = read_table(folder / "predictions_val.csv").set_index("case_id")["score/probSevere"]
    assert trained.to_dict() == pytest.approx(validated, abs=1e-6)
    for precision, is_same in (([], True), (["precision=32-true"], False)):
        assert run(task, [*arguments, *precision, "mode=evaluate"]) == 0
        again = read_table(folder / "predictions_val.csv").set_index("case_id")["score/probSevere"]
        assert again.equals(trained) is is_same
        assert again.to_dict() == pytest.approx(trained.to_dict(), abs=0.02)


@pytest.mark.parametrize(("precision", "kind"), [("auto", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_a_closed_form_fit_computes_as_its_predictions(tmp_path, precision, kind):
    class Fitted(Classification):
        def fit_closed_form(self, network, split, folder):
            self.dtype = network(torch.rand(2, 3)).dtype

    task_type = Fitted(FinetuneSettings(precision=precision, accelerator="cpu"), outputs=("a",), metric="auroc")
    loop.fit_closed_form(task_type, nn.Linear(3, 1), Split([], [], []), tmp_path, {})
    assert task_type.dtype == kind
