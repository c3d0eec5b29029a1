"""A strategy is one file: its settings, validation, hints, sweep and training follow from the file's own entry."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines.config.strategy_registry import STRATEGIES, SearchSpace, StrategySettings, StrategySpec
from pipelines.forgetting.build import build_strategies
from pipelines.forgetting.strategy import Strategy
from tests.bad_configs import pipeline

NOISE = '''
from pydantic import Field

from pipelines.config.base import NotNegative, Text
from pipelines.config.strategy_registry import STRATEGIES, SearchSpace, StrategySettings, StrategySpec
from pipelines.forgetting.strategy import Strategy


class NoiseSettings(StrategySettings):
    """Noise on the gradients."""

    row_files = {"rows": ("prompt",)}

    sigma: NotNegative = Field(default=0.5, description="The standard deviation.")
    rows: Text | None = None

    def unused_keys(self, job):
        if self.rows is not None and job.adapter is not None:
            yield "rows", "under an adapter; remove it"


class Noise(Strategy):
    name = "noise"

    def __init__(self, sigma):
        self.sigma = sigma

    def setup(self, model, optimizer):
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]

    def add_gradients(self):
        for weight in self.weights:
            weight.grad += self.sigma

    def metrics(self):
        return {"noise": self.sigma}


STRATEGIES.register(
    "noise",
    StrategySpec(
        title="gradient noise",
        settings=NoiseSettings,
        search_space=SearchSpace("sigma", (0.5, 1.0)),
        build=lambda context, settings: [Noise(settings.sigma)],
        conflict=lambda job: "noise needs no quantization" if job.is_quantized else None,
    ),
)
'''

PREAMBLE = """
import sys
from pathlib import Path

import pipelines.forgetting.strategies
pipelines.forgetting.strategies.__path__.append("more")

from pipelines.config.job import PipelineSettings, load_job
from pipelines.errors import ConfigError

def messages(file):
    try:
        load_job(Path(file))
    except ConfigError as error:
        return [problem.message for problem in error.problems]
    return []
"""


@pytest.fixture
def run_with_noise(tmp_path):
    """Runs Python code in a process in which the directory of one additional file belongs to the strategies."""
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "noise.py").write_text(NOISE, encoding="utf-8")

    def run(code):
        path = {"PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, "-c", PREAMBLE + code]
        process = subprocess.run(command, cwd=tmp_path, env=path, capture_output=True, text=True)
        assert process.returncode == 0, process.stderr
        return process.stdout

    return run


def test_one_file_adds_the_section_its_validation_and_its_hints(tmp_path, run_with_noise):
    configs = {
        "good": pipeline("forgetting: {strategy: replay+noise, noise: {sigma: 2}}"),
        "key": pipeline("forgetting: {strategy: noise, noise: {sgima: 2}}"),
        "value": pipeline("forgetting: {strategy: noise, noise: {sigma: -1}}"),
        "name": pipeline("forgetting: nosie"),
        "unused": pipeline("forgetting: {strategy: noise, noise: {rows: a.jsonl}}"),
        "not used": pipeline("forgetting: {strategy: ewc, noise: {sigma: 2}}"),
        "conflict": pipeline("forgetting: noise") + "quantization: {bits: 4}\n",
    }
    for name, config in configs.items():
        (tmp_path / name).write_text(config, encoding="utf-8")
    output = run_with_noise("""
for name in sorted(path.name for path in Path().iterdir() if path.is_file()):
    print(name, "->", *messages(name), sep="\\n")
job = load_job(Path("good"))
print(job.pipeline.forgetting.settings("noise"), job.resolved()["pipeline"]["forgetting"]["noise"])
print("NoiseSettings" in PipelineSettings.model_json_schema()["$defs"], [name for name in ("torch", "numpy") if name in sys.modules])
""")
    assert output.split("\n")[:-1] == [
        "conflict",
        "->",
        "pipeline.forgetting.strategy: noise needs no quantization",
        "good",
        "->",
        "key",
        "->",
        "pipeline.forgetting.noise.sgima: unknown key; did you mean sigma?",
        "name",
        "->",
        "pipeline.forgetting.strategy: unknown strategy 'nosie'; did you mean noise?",
        "not used",
        "->",
        "pipeline.forgetting: noise has settings, but strategy is ewc; remove noise, or write strategy: ewc+noise",
        "unused",
        "->",
        "pipeline.forgetting: noise.rows has no effect under an adapter; remove it",
        "value",
        "->",
        "pipeline.forgetting.noise.sigma must be at least 0, found -1",
        "sigma=2.0 rows=None {'sigma': 2.0, 'rows': None}",
        "True []",
    ]


def test_one_file_adds_a_title_its_files_and_a_default_variant(tmp_path, run_with_noise):
    config = pipeline("forgetting: {strategy: noise, noise: {rows: a.jsonl}}").replace(
        "adapter: {", "adapter: null # {"
    )
    (tmp_path / "job.yaml").write_text(config, encoding="utf-8")
    output = run_with_noise("""
from pipelines.checks.files import referenced_files
from pipelines.config.strategy_registry import default_sweep_variants, strategy_title

print(strategy_title("noise"), "noise" in default_sweep_variants())
print([".".join(key) for key, file in referenced_files(load_job(Path("job.yaml"))) if file == "a.jsonl"])
""")
    assert output.split("\n")[:-1] == [
        "noise (gradient noise) True",
        "['pipeline.forgetting.noise.rows']",
    ]


def test_one_file_adds_trials_and_a_strategy_that_trains(tmp_path, run_with_noise):
    (tmp_path / "job.yaml").write_text(pipeline("forgetting: {strategy: noise, noise: {sigma: 2}}"), encoding="utf-8")
    output = run_with_noise("""
from pipelines.forgetting.build import build_strategies
from pipelines.forgetting.context import ForgettingContext
from pipelines.storage.run_folder import Run
from pipelines.sweep import make_trials, parse_variants
from tests.forgetting.tiny_lora import lora, rows, sgd

job = load_job(Path("job.yaml"))
(noise,) = build_strategies(ForgettingContext(job, Run(Path("run")), Path("model")))
model = lora(Path("model"))
noise.setup(model, sgd(model))
for weight in noise.weights:
    weight.grad = weight.new_zeros(weight.shape)
noise.begin_step(rows())
noise.add_gradients()
print(noise.metrics(), {float(weight.grad.mean()) for weight in noise.weights})
print(parse_variants("noise"), [trial.hyperparameter for trial in make_trials(job, "noise", 2)])
""")
    assert output.split("\n")[:-1] == [
        "{'noise': 2.0} {2.0}",
        "['none', 'noise'] ['noise.sigma: 0.5', 'noise.sigma: 1']",
    ]


def test_strategies_act_in_their_order(monkeypatch):
    def spec(name, order):
        strategy = type(name, (Strategy,), {"name": name})
        return StrategySpec(
            title=name,
            settings=StrategySettings,
            search_space=SearchSpace("weight", ()),
            build=lambda context, settings: [strategy()],
            order=order,
        )

    specs = {name: spec(name, order) for name, order in (("last", 90), ("a", 50), ("b", 50), ("first", 10))}
    monkeypatch.setattr(STRATEGIES, "_entries", specs)
    forgetting = SimpleNamespace(settings=lambda name: specs[name].settings())
    job = SimpleNamespace(pipeline=SimpleNamespace(forgetting=forgetting))
    context = SimpleNamespace(strategies=["peft", "b", "last", "a", "first"], job=job, strategies_by_name={})
    assert [strategy.name for strategy in build_strategies(context)] == ["first", "a", "b", "last"]
    assert list(context.strategies_by_name) == ["first", "a", "b", "last"]
