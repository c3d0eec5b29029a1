"""Small jobs on tiny models, trained with Ludwig."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from pipelines.config.job import load_job
from pipelines.console.reporter import ConsoleReporter
from pipelines.data.examples import load_examples
from pipelines.data.prompt_format import PromptFormat
from pipelines.data.tokenize_rows import tokenize_examples, write_splits
from pipelines.run import run_job
from pipelines.storage.run_folder import Run

QUIET = ConsoleReporter(Console(file=io.StringIO()))
LORA = {"type": "lora", "r": 4, "alpha": 8, "dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}


@pytest.fixture
def make_job(tmp_path, monkeypatch):
    """make_job(adapter=…, trainer={…}) → (job, run with prepared rows, base folder)."""
    from tests.tiny import make_model  # torch: seconds that tests without a model do not need

    monkeypatch.chdir(tmp_path)
    words = ["tea", "the inn", "a gate", "nine", "thin ice", "in a net"]
    rows = [
        {
            "text": f"{words[index % 6]} {index} " * (1 + index % 3),
            "label": ["yes", "no thanks", "maybe"][index % 3],
            "split": ["train", "train", "validation", "test"][index % 4],
        }
        for index in range(36)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(
        adapter=None, kind="pad_is_eos", name="run", forgetting="none", backend=None, quantization=None, **trainer
    ):
        base = make_model(tmp_path / f"base_{kind}", kind)
        config = {
            "pipeline": {
                "seed": 3,
                "forgetting": forgetting,
                "tasks": {
                    "t": {
                        "data": "rows.jsonl",
                        "prompt": "Is it? {text}",
                        "completion": "{label}",
                        "metric": "exact_match",
                    }
                },
            },
            "base_model": str(base),
            "trainer": {
                "type": "finetune",
                "epochs": 1,
                "batch_size": 6,
                "learning_rate": 0.01,
                "early_stop": -1,
                "optimizer": {"type": "sgd"},
                "learning_rate_scheduler": {"decay": None},
                "gradient_clipping": {"clipglobalnorm": 0.5},
                **trainer,
            },
        }
        if quantization:
            config["quantization"] = quantization
        if adapter:
            config["adapter"] = adapter
        if backend:
            config["backend"] = backend
        (tmp_path / "job.yaml").write_text(json.dumps(config))
        job = load_job(tmp_path / "job.yaml")
        run = Run(tmp_path / name)
        write_splits(tokenize_examples(load_examples(job.pipeline), PromptFormat.from_folder(base)), run.path("data"))
        return job, run, base

    return make


def run_training(job, run, base):
    from pipelines.training.train import train  # Ludwig: seconds that tests without training do not need

    steps = []
    train(job, run, base, lambda done, total, loss: steps.append((done, total, loss)))
    return steps


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a tiny base model, two tasks and a YAML; returns its path."""
    from tests.tiny import make_model  # torch: seconds that tests without a model do not need

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALFINE_CACHE", str(tmp_path / "cache"))
    make_model(tmp_path / "base")
    rows = [
        {
            "q": f"is {index} odd",
            "a": ["no", "yes"][index % 2],
            "split": ["train", "train", "validation", "test"][index % 4],
        }
        for index in range(40)
    ]
    rows += [{"q": f"one {index} odd", "a": ["yes", "no"][index % 2], "split": "test"} for index in range(3)]
    Path("odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("say.csv").write_text("text,out\n" + "".join(f"the {index},a {index}\n" for index in range(20)))
    Path("probes.jsonl").write_text('{"title": "free", "prompt": "the tea"}\n')
    config = {
        "pipeline": {
            "tasks": {
                "odd": {
                    "data": "odd.jsonl",
                    "prompt": "{q}?",
                    "completion": "{a}",
                    "metric": "exact_match",
                    "max_new_tokens": 4,
                },
                "say": {
                    "data": "say.csv",
                    "prompt": "{text}",
                    "completion": "{out}",
                    "metric": "chrf",
                    "max_new_tokens": 6,
                },
            },
            "report": {"sample_prompts": "probes.jsonl"},
            "forgetting": {"strategy": "none", "evals": "none"},
        },
        "base_model": "./base",
        "adapter": {"type": "lora", "r": 4, "target_modules": ["q_proj", "v_proj"]},
        "trainer": {"epochs": 1, "batch_size": 8, "learning_rate": 0.01},
        "generation": {"max_new_tokens": 8},
    }
    Path("job.yaml").write_text(json.dumps(config))
    return tmp_path


def run(name="one", *overrides):
    job = load_job(Path("job.yaml"), overrides)
    folder = Run(Path("runs") / name)
    run_job(job, folder, f"alfine run job.yaml --name {name}", QUIET)
    return Run(Path("runs") / name)
