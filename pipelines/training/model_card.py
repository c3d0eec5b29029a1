"""What a tuned model's folder says of its base, so that other tools on other machines find it: no path of this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipelines.config.job import Job
from pipelines.storage.files import write_text

HUB_IDS = {"smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""Where the hub has what an embedded model was made from."""


def write_model_card(folder: Path, job: Job, base: Path, model_id: str) -> None:
    """Rewrites adapter_config.json and README.md of the tuned model in `folder`.

    `base`: the folder that it was trained from; `model_id`: the fingerprint of that folder. A base from the hub is named by
    its id and commit, the embedded model by the hub id of its original, any other by the bare name of its folder.
    """
    name, revision, about = _named(job, base, model_id)
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        config = json.loads(adapter.read_text(encoding="utf-8"))
        config |= {"base_model_name_or_path": name, "revision": revision}
        write_text(adapter, json.dumps(config, indent=2, sort_keys=True) + "\n")
    write_text(folder / "README.md", _card(name, about, adapter.is_file(), job))


def _named(job: Job, base: Path, model_id: str) -> tuple[str, str | None, str]:
    """The base's portable name, its commit on the hub, and a sentence about it."""
    given = job.base_model
    if job.pipeline.continue_from is not None:
        name = f"{Path(job.pipeline.continue_from).name}-merged"
        return (
            name,
            None,
            f"The base is the model that the run `{Path(job.pipeline.continue_from).name}` left, content {model_id}.",
        )
    if given in HUB_IDS:
        about = f"It was trained on alfine's embedded {given}: weights unpacked from 4 bits (Q4_1), content {model_id}."
        return HUB_IDS[given], None, f"{about} Over the weights on the hub its answers differ slightly."
    if base.parent.name == "snapshots":
        return given, base.name, f"The base is `{given}` on the hub, commit `{base.name}`."
    return base.name, None, f"The base is a folder `{base.name}` that is not on the hub, content {model_id}."


def _card(name: str, about: str, adapter: bool, job: Job) -> str:
    head: dict[str, Any] = {"base_model": name, "library_name": "peft" if adapter else "transformers"}
    tasks = ", ".join(job.pipeline.tasks)
    if adapter:
        load = (
            "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
            f'base = AutoModelForCausalLM.from_pretrained("{name}")\nmodel = PeftModel.from_pretrained(base, "FOLDER")\n'
        )
    else:
        load = (
            'from transformers import AutoModelForCausalLM\n\nmodel = AutoModelForCausalLM.from_pretrained("FOLDER")\n'
        )
    what = "An adapter" if adapter else "A model"
    lines = "".join(f"{key}: {value}\n" for key, value in head.items())
    return (
        f"---\n{lines}pipeline_tag: text-generation\n---\n\n{what} fine-tuned with alfine on {tasks}. {about}\n\n"
        f"With FOLDER for the folder of this file:\n\n```python\n{load}```\n\n"
        "Or, in the run's folder, `alfine predict RUN FILE`.\n"
    )
