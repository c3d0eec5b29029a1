"""Completions on the pretend device, for `test_pretend_completions.py`.

    python -m tests.evaluation.pretend_completions FOLDER

Writes FOLDER/counts.json: by way of decoding and number of rows, the launches and the times the host waited. Prints
them.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import peft
import torch

from pipelines.evaluation.completions import InferenceSettings, LoadedModel, complete
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


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    install_in_alfine()
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
    (folder / "counts.json").write_text(json.dumps(results))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
