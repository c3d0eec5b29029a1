"""Small files of rows for each kind of retention eval, and the settings that read them."""

import json

from pipelines.config.forgetting import Forgetting
from pipelines.data.prompt_format import PromptFormat
from pipelines.evaluation.completions import LoadedModel
from pipelines.evaluation.retention import PreparationContext, prepare_retention_evals
from tests.forgetting.tiny_lora import lora

ROWS = {
    "multiple_choice": [
        {"question": f"The inn {n}?", "choices": ["tea", "a gate", "thin ice"], "answer": n % 3, "topic": "x"}
        for n in range(9)
    ],
    "text_nll": [{"text": f"In the inn at nine, {n} gates."} for n in range(4)],
    "kl": [{"instruction": f"Say {n}."} for n in range(3)],
    "task": [{"q": "tea", "a": "yes"}, {"q": "ice", "a": "no"}],
}
TASK = {
    "kind": "task",
    "data": "task.jsonl",
    "prompt": "{q}?",
    "completion": "{a}",
    "metric": "exact_match",
    "max_new_tokens": 4,
}


def write_rows(folder):
    for kind, rows in ROWS.items():
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def settings(**evals):
    """One eval of each kind, named after it, and `evals`."""
    each_kind = {kind: {"kind": kind, "data": f"{kind}.jsonl"} for kind in ROWS}
    return Forgetting.model_validate({"evals": each_kind | {"task": TASK} | evals})


def load(folder, moved=True):
    """A tiny model with an adapter."""
    return LoadedModel(lora(folder, moved=moved).eval(), PromptFormat.from_folder(folder))


def prepare(loaded, forgetting=None, load_model=None):
    """The prepared evals by name."""
    context = PreparationContext(loaded.prompt_format, load_model or (lambda: loaded), "id", None)
    return {prepared.name: prepared for prepared in prepare_retention_evals(forgetting or settings(), context)}
