"""Training on a quantized base, with bitsandbytes' kernels for the CPU: every model of a run is the quantized one."""

import contextlib
import json
from pathlib import Path

import pytest
import torch

from pipelines.api import predict
from pipelines.config.job import load_job
from pipelines.errors import ConfigError
from pipelines.forgetting import continual, interpolation
from pipelines.modeling import hardware, loading
from pipelines.modeling.quantization import num_parameters
from pipelines.storage.run_folder import Run
from tests.forgetting.continual_jobs import run_second_job, write_second_job
from tests.jobs import run

pytestmark = [pytest.mark.ludwig, pytest.mark.filterwarnings("ignore:MatMul8bitLt. inputs will be cast")]
pytest.importorskip("bitsandbytes")

FOUR_BITS = "quantization={bits: 4}"


def training(run_folder):
    return json.loads(run_folder.path("model", "training.json").read_text())


@pytest.fixture
def loads(monkeypatch):
    """The folder and the bits of every model that is loaded; None for a model that is not quantized."""
    loaded = []
    original = loading.load_causal_lm

    def record(folder, *, quantization=None, **arguments):
        loaded.append((Path(folder).name, quantization and quantization["bits"]))
        return original(folder, quantization=quantization, **arguments)

    for module in ("modeling.loading", "modeling.reference_model", "forgetting.interpolation", "training.ludwig_model"):
        monkeypatch.setattr(f"pipelines.{module}.load_causal_lm", record)
    return loaded


@pytest.mark.parametrize("strategy", ["none", "replay", "distill", "ewc", "l2sp", "interpolate"])
@pytest.mark.parametrize("bits", [4, 8])
def test_every_strategy_trains_on_the_quantized_base(project_with_evals, loads, strategy, bits):
    one = run("one", f"quantization={{bits: {bits}}}", f"pipeline.forgetting.strategy={strategy}")
    history = training(one)
    losses = [record["loss"] for record in history["train_loss"]]
    assert all(torch.isfinite(torch.tensor(losses))) and history["steps"] == len(losses)
    assert {loaded for _, loaded in loads} == {bits}
    assert history["parameters"] > history["trainable_parameters"] > 0
    Path("rows.jsonl").write_text('{"task": "odd", "q": "is 3 odd"}\n')
    loads.clear()
    assert len(list(predict(one.folder, "rows.jsonl"))) == 1
    assert [loaded for _, loaded in loads] == [bits]


def test_parameters_are_counted_as_without_quantization(project):
    plain, quantized = training(run("plain")), training(run("one", FOUR_BITS))
    for key in ("parameters", "trainable_parameters"):
        assert quantized[key] == plain[key] > 0


def test_the_interpolated_model_is_the_quantized_base_with_a_scaled_adapter(project, loads):
    one = run(
        "one", FOUR_BITS, "pipeline.forgetting.strategy=interpolate", "pipeline.forgetting.interpolate={scale: 0.5}"
    )
    model = interpolation.InterpolatedModel(Path("base"), one.path("model"), {"bits": 4})
    assert model.probe_losses(1.0) == pytest.approx(training(one)["probe_losses"], abs=1e-4)
    assert num_parameters(model.model.parameters()) == training(one)["parameters"]


def test_a_run_continues_from_the_adapter_merged_into_the_unquantized_base(project_with_evals, loads):
    run("one", FOUR_BITS)
    write_second_job()
    loads.clear()
    two = run_second_job("two", FOUR_BITS, "pipeline.forgetting.strategy=replay")
    assert {name for name, bits in loads if bits is None} == {"base", "start.partial"}, loads
    start = [bits for name, bits in loads if name == "start"]
    assert start and set(start) == {4}
    assert training(two)["trainable_parameters"] > 0


def test_the_merge_for_a_quantized_job_is_done_in_main_memory(project, monkeypatch):
    run("one", FOUR_BITS)
    write_second_job()
    blocks = []

    @contextlib.contextmanager
    def record():
        blocks.append("begin")
        yield
        blocks.append("end")

    monkeypatch.setattr(hardware, "main_memory", record)
    original = continual._merge_adapter
    monkeypatch.setattr(continual, "_merge_adapter", lambda *folders: blocks.append("merge") or original(*folders))
    for overrides, expected in (([FOUR_BITS], ["begin", "merge", "end"]), ([], ["merge"])):
        job = load_job(Path("second.yaml"), overrides)
        second = Run(Path("runs") / f"two{len(overrides)}")
        second.folder.mkdir(parents=True)
        blocks.clear()
        continual.prepare_starting_model(job, second)
        assert blocks == expected


def test_si_is_refused(project):
    with pytest.raises(ConfigError, match="with quantization; use ewc, or no quantization"):
        run("one", FOUR_BITS, "pipeline.forgetting.strategy=si")
