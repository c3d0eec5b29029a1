"""The model folder of a finished training."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from pipelines.forgetting.context import ForgettingContext
from pipelines.modeling.content_hash import fingerprint
from pipelines.storage.records import TrainingHistory
from pipelines.storage.run_folder import Run
from pipelines.training import export


@pytest.mark.parametrize("quantization", [None, {"bits": 4}])
def test_the_model_card_names_the_content_of_the_base_folder(tmp_path, monkeypatch, quantization):
    base, folder, run = tmp_path / "base", tmp_path / "model", Run(tmp_path / "run")
    for weights in (base, run.path("training", "model", "model_weights")):
        weights.mkdir(parents=True)
        save_file({"weight": torch.ones(2)}, weights / "model.safetensors")
    job = SimpleNamespace(
        base_model=str(base),
        adapter={"type": "lora"},
        quantization=quantization,
        template_source=None,
        pipeline=SimpleNamespace(continue_from=None, tasks={"reviews": None}),
    )
    model = torch.nn.Linear(2, 1)
    model.config = SimpleNamespace()
    llm = SimpleNamespace(model=model, starts_at_base=False, probe_losses=None)
    tokenizer = SimpleNamespace(save_pretrained=lambda folder: None)
    monkeypatch.setattr(export, "load_tokenizer", lambda folder: tokenizer)
    context = ForgettingContext(job, run, base)
    export.export_model(llm, context, [], {}, folder)
    assert set(json.loads((folder / "training.json").read_text())) <= set(TrainingHistory.model_fields)
    assert f"content {fingerprint(base)}" in (folder / "README.md").read_text()
    assert (context.model_fingerprint == fingerprint(base)) == (quantization is None)
