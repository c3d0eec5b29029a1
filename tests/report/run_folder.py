"""Run folders as a finished run leaves them, without a model."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipelines.report import Analysis, html

DATA = Path(__file__).parents[2] / "data"
REPORT_FILES = ("report.html", "report.md", "report.json")


def line(task: str, row: int, prompt: str, reference: str, completion: str, **values: Any) -> dict[str, Any]:
    """A line of completions.jsonl."""
    return {
        "task": task,
        "row": row,
        "prompt": prompt,
        "reference": reference,
        "completion": completion,
        "reference_nll": 1.5,
        "reference_tokens": 3,
        "num_generated_tokens": 3,
        "finish_reason": "stop",
        "fields": {},
        **values,
    }


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in lines))


def write_run(folder: Path, metrics: Mapping[str, str], base: Sequence[dict], tuned: Sequence[dict]) -> Path:
    """A run with these metrics by task and these completions of both models."""
    write_lines(folder / "base" / "completions.jsonl", base)
    write_lines(folder / "tuned" / "completions.jsonl", tuned)
    rows = {task: sum(record["task"] == task for record in base) for task in metrics}
    config = {
        "pipeline": {
            "tasks": {task: {"data": f"data/{task}.jsonl", "metric": metric} for task, metric in metrics.items()}
        },
        "model_type": "llm",
        "base_model": "smollm2-135m-instruct",
        "adapter": {"type": "lora", "r": 16},
        "trainer": {"type": "finetune", "epochs": 2, "learning_rate": 0.0002, "batch_size": 8},
    }
    (folder / "model").mkdir()
    (folder / "model" / "training.json").write_text(json.dumps(_training()))
    (folder / "manifest.json").write_text(json.dumps(_manifest(folder.name, rows)))
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


def add_few_shot(folder: Path, answers: Mapping[str, Sequence[str]], k: int = 4, **values: Any) -> Path:
    """Adds the completions of the base with `k` examples in its prompt to a run, by task."""
    base = [json.loads(text) for text in (folder / "base" / "completions.jsonl").read_text().splitlines()]
    remaining = {task: iter(texts) for task, texts in answers.items()}
    lines = [{**row, "completion": next(remaining[row["task"]])} for row in base if row["task"] in answers]
    write_lines(folder / "few_shot" / "completions.jsonl", lines)
    tasks = [{"task": task, "k": k, "wanted": 4, "num_tokens": 120, **values} for task in answers]
    write_lines(folder / "few_shot" / "tasks.jsonl", tasks)
    return folder


def _manifest(name: str, rows: Mapping[str, int]) -> dict[str, Any]:
    """`rows`: the number of test rows by task."""
    seconds = {"prepare": 1.7, "eval_base": 201.8, "train": 375.0, "eval_tuned": 96.4, "report": 4.2}
    return {
        "format_version": 2,
        "name": name,
        "base_model": "smollm2-135m-instruct",
        "seed": 42,
        "config": "job.yaml",
        "command": f"alfine run ludwig_configs/quickstart.yaml --name {name}",
        "versions": {
            "python": "3.12.1",
            "ludwig": "0.17.10",
            "torch": "2.11.0",
            "transformers": "5.23.0",
            "peft": "0.21.2",
        },
        "generation": {"do_sample": False, "max_new_tokens": 96},
        "hardware": {"cpu": "AMD EPYC", "cores": 2, "memory_gb": 23.5, "gpu": None},
        "stages": {
            stage: {"seconds": value, "finished": "2026-01-01T00:00:00Z", "inputs": "a"}
            for stage, value in seconds.items()
        },
        "data": {
            task: {"train": 370, "validation": 72, "test": number, "file": f"data/{task}.jsonl"}
            for task, number in rows.items()
        },
    }


def _training() -> dict[str, Any]:
    rng = random.Random(1)
    return {
        "steps": 188,
        "rows": 747,
        "supervised_tokens": 32768,
        "tokens": 91000,
        "seconds": 371.2,
        "train_loss": [{"step": n, "loss": 0.8 + 2.2 / n**0.5 + rng.gauss(0, 0.08)} for n in range(1, 189)],
        "validation_loss": [
            {"step": n, "loss": 0.95 + 2 / (1 + n / 20) + max(0, n - 141) / 900, "tasks": {}} for n in range(0, 189, 47)
        ],
        "best_step": 141,
        "stopped_early": False,
        "trainable_parameters": 4884480,
        "parameters": 139400000,
        "peak_memory_bytes": 4_200_000_000,
    }


def make_run(folder: Path, rows: int = 40, base_answer: str = "The review is {}.", tuned_answer: str = "{}") -> Path:
    """`rows` rows of a label task: the base answers in another form, the tuned model exactly."""
    labels = ["positive", "negative"]
    completions = [
        [line("mood", n, f"review {n}", labels[n % 2], answer.format(labels[n % 2])) for n in range(rows)]
        for answer in (base_answer, tuned_answer)
    ]
    write_run(folder, {"mood": "exact_match"}, *completions)
    for side in ("base", "tuned"):
        write_lines(folder / side / "sample_prompts.jsonl", [{"title": "free", "prompt": "say", "completion": side}])
    return folder


def demo_run(folder: Path, rows: int = 250, code: float = 0.3) -> Path:
    """About `rows` rows of the shipped tasks with answers such as models give: for the page's looks and size.

    code: the fraction of rows whose unit tests run in the sandbox, at 20 ms each.
    """
    rng = random.Random(0)
    parts = {"sentiment": int(rows * (0.75 - code)), "summaries": int(rows * 0.25), "code": int(rows * code)}
    base, tuned = [], []
    for task, make in (("sentiment", _review), ("summaries", _summary), ("code", _function)):
        columns = [json.loads(text) for text in (DATA / f"{task}.jsonl").read_text().splitlines()]
        for row in range(parts[task]):
            fields = columns[row % len(columns)]
            prompt, reference, before, after = make(fields, rng)
            hardness = rng.uniform(0.6, 1.6)
            for lines, answer, loss in ((base, before, 2.1), (tuned, after, 0.7)):
                tokens = len(answer) // 4 + 1
                values = {
                    "reference_nll": loss * hardness,
                    "num_generated_tokens": min(tokens, 96),
                    "finish_reason": "stop" if tokens < 96 else "length",
                }
                lines.append(line(task, row, prompt, reference, answer, fields=fields, **values))
    write_run(folder, {"sentiment": "exact_match", "summaries": "rouge", "code": "unit_tests"}, base, tuned)
    prompts = [json.loads(text) for text in (DATA / "sample_prompts.jsonl").read_text().splitlines()]
    before = [
        "Positive review.",
        prompts[1]["prompt"][60:260],
        "To solve this:\n\n```python\ndef shared(a, b):\n    return a",
        "Paris.",
    ]
    after = [
        "positive",
        "A lovely cabin, but the gravel road is hard.",
        "def shared_letters(a, b):\n    return ''",
        "Paris, Seine.",
    ]
    for side, answers in (("base", before), ("tuned", after)):
        write_lines(
            folder / side / "sample_prompts.jsonl",
            [{**prompt, "completion": text} for prompt, text in zip(prompts, answers, strict=False)],
        )
    return folder


def _review(fields: dict, rng: random.Random) -> tuple[str, str, str, str]:
    label = fields["label"]
    other = {"positive": "negative", "negative": "positive"}[label]
    stated = label if rng.random() < 0.7 else other
    forms = [
        f"The review is {stated}.",
        f"This is a {stated} review, because the author describes how it went: {fields['review']}",
        stated,
    ]
    after = label if rng.random() < 0.9 else other
    return f"Is this review positive or negative?\n{fields['review']}", label, rng.choice(forms), after


def _summary(fields: dict, rng: random.Random) -> tuple[str, str, str, str]:
    words = fields["summary"].split()
    kept = [word for word in words if rng.random() < 0.45]
    before = fields["text"][: rng.randint(60, 500)]
    return f"Summarise in one sentence.\n{fields['text']}", fields["summary"], before, " ".join(kept) or "It went well."


def _function(fields: dict, rng: random.Random) -> tuple[str, str, str, str]:
    code = fields["code"]
    broken = code.replace("return", "return not", 1)
    before = (
        code
        if rng.random() < 0.22
        else f"Here is a function.\n\n```python\n{broken}\n```\n\n{'It takes the values one by one. ' * 9}"
    )
    chosen = rng.random()
    after = code if chosen < 0.32 else "class Solver:\n    pass" if chosen < 0.36 else broken
    return f"Write a Python function. {fields['description']}", code, before, after


def write_old_report(run: Path) -> list[bytes]:
    """Writes report files that a failure must leave unchanged, and returns their contents."""
    for name in REPORT_FILES:
        (run / name).write_text("old")
    return [(run / name).read_bytes() for name in REPORT_FILES]


def write_page(folder: Path, analysis: Analysis) -> Path:
    """Writes report.html."""
    (folder / "report.html").write_text(html.render(analysis))
    return folder / "report.html"
