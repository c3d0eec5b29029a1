"""Completions on the pretend device, for `test_pretend_completions.py`.

    python -m tests.evaluation.pretend_completions FOLDER MACHINE

MACHINE is a key of `tests.pretend_run.MACHINES`. Writes FOLDER/counts.json: by way of decoding and number of rows, the
launches and the times the host waited, and the answers of the generation engine by kind of request. Prints the counts.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import peft
import torch

from pipelines.evaluation.completions import InferenceSettings, LoadedModel, complete
from pipelines.inference.engine import GenerationEngine, load_engine
from pipelines.inference.requests import GenerationRequest, GenerationStream
from pipelines.inference.run_models import MODEL_NAMES
from pipelines.storage.run_folder import Run
from tests.inference.tiny_run import load_models, make_run
from tests.pretend_device import COUNTS
from tests.pretend_run import install_in_alfine, pretend_device
from tests.tiny import make_model

NUM_TOKENS = 32
ROWS = (6, 24)


def counts(loaded: LoadedModel, inference: InferenceSettings, num_rows: int) -> dict[str, Any]:
    prompts = [[5 + (row + index) % 9 for index in range(4 + row % 7)] for row in range(num_rows)]
    loaded.inference = inference
    settings = {"do_sample": False}
    complete(loaded, prompts[:1], settings, [2])  # the trial
    COUNTS.clear()
    completions = complete(loaded, prompts, settings, [NUM_TOKENS] * num_rows, references=[[6, 7]] * num_rows)
    waits: Counter[str] = Counter()
    for (operator, place), number in COUNTS.waits.items():
        waits[f"{operator} at {place}"] += number
    return {
        "kernels": COUNTS.kernels.total(),
        "waits": dict(waits),
        "tokens": [completion.num_generated_tokens for completion in completions],
        "text": [completion.text for completion in completions],
    }


REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 1.0},
    "top_k": {"temperature": 1.0, "top_k": 5},
    "top_p": {"temperature": 1.5, "top_p": 0.9},
    "top_k, top_p": {"temperature": 1.5, "top_k": 9, "top_p": 0.9},
    "repetition_penalty": {"temperature": 1.0, "repetition_penalty": 1.3},
    "logprobs": {"temperature": 1.0, "num_logprobs": 3},
}
"""Settings of requests to the engine."""


def engine_answers(run: Run) -> dict[str, list[list[int]]]:
    """The tokens of the base's and the tuned model's answers, by kind of request."""
    run_thread = GenerationEngine._run

    def run_on_device(engine: GenerationEngine) -> None:
        with pretend_device():  # its mode is that of a thread
            run_thread(engine)

    with mock.patch.object(GenerationEngine, "_run", run_on_device), load_engine(load_models(run)) as engine:
        streams = {
            kind: [engine.submit(GenerationRequest(name, [5, 6, 7], 8, seed=3, **settings)) for name in MODEL_NAMES]
            for kind, settings in REQUESTS.items()
        }
        return {kind: [_tokens(stream) for stream in two] for kind, two in streams.items()}


def _tokens(stream: GenerationStream) -> list[int]:
    return [token for delta in stream for token in delta.token_ids]


def main() -> None:
    folder, machine = Path(sys.argv[1]).resolve(), sys.argv[2]
    (folder / "served").mkdir()
    run = make_run(folder / "served")
    install_in_alfine(machine)
    results: dict[str, Any] = {}
    with pretend_device():
        loaded = LoadedModel.from_folder(make_model(folder / "base"))
        adapter = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
        tuned = LoadedModel(peft.get_peft_model(loaded.model, adapter), loaded.prompt_format)
        for name, model, inference in (
            ("generate", tuned, InferenceSettings("generate", False)),
            ("slots", tuned, InferenceSettings("slots", False)),
            ("slots, merged", tuned, InferenceSettings("slots", True)),
        ):
            results[name] = {str(rows): counts(model, inference, rows) for rows in ROWS}
            for rows, result in results[name].items():
                waits = sum(result["waits"].values())
                print(f"{name}, {rows} prompts x {NUM_TOKENS} tokens: {result['kernels']} kernels, {waits} waits")
        results["engine"] = engine_answers(run)
    (folder / "counts.json").write_text(json.dumps(results))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
