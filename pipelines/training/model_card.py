"""References to the base model in a tuned model's folder, in a form that is valid on other machines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pipelines.config.job import Job
from pipelines.storage.files import write_text

HUB_IDS = {"smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""The Hub id of the original of each packaged model."""


@dataclass(frozen=True)
class BaseModelReference:
    """A base model as a model card names it: a name without a local path, a commit on the Hub, and a sentence."""

    name: str
    revision: str | None
    description: str


def write_model_card(folder: Path, job: Job, starting_model_folder: Path, content_fingerprint: str) -> None:
    """Rewrites README.md and adapter_config.json of the tuned model in `folder`, which name a local path of the base.

    A base from the Hub is named by its id and commit, a packaged model by the Hub id of its original, any other by
    the name of its folder. `starting_model_folder` is the folder of the model that training started from,
    `content_fingerprint` the fingerprint of its content.
    """
    base = _base_model_reference(job, starting_model_folder, content_fingerprint)
    adapter_config = folder / "adapter_config.json"
    has_adapter = adapter_config.is_file()
    if has_adapter:
        config = json.loads(adapter_config.read_text(encoding="utf-8"))
        config |= {"base_model_name_or_path": base.name, "revision": base.revision}
        write_text(adapter_config, json.dumps(config, indent=2, sort_keys=True) + "\n")
    write_text(folder / "README.md", _model_card(base, list(job.pipeline.tasks), has_adapter))


def _base_model_reference(job: Job, starting_model_folder: Path, content_fingerprint: str) -> BaseModelReference:
    if job.pipeline.continue_from is not None:
        run = Path(job.pipeline.continue_from).name
        return BaseModelReference(
            f"{run}-merged", None, f"The base is the tuned model of the run `{run}`, content {content_fingerprint}."
        )
    if job.base_model in HUB_IDS:
        description = (
            f"It was trained on alfine's packaged {job.base_model}: weights dequantized from 4 bits (Q4_1), content "
            f"{content_fingerprint}. On the weights from the Hub its completions differ slightly."
        )
        return BaseModelReference(HUB_IDS[job.base_model], None, description)
    if starting_model_folder.parent.name == "snapshots":
        revision = starting_model_folder.name
        description = f"The base is `{job.base_model}` on the Hub, commit `{revision}`."
        return BaseModelReference(job.base_model, revision, description)
    name = starting_model_folder.name
    return BaseModelReference(
        name, None, f"The base is a folder `{name}` that is not on the Hub, content {content_fingerprint}."
    )


def _model_card(base: BaseModelReference, tasks: list[str], has_adapter: bool) -> str:
    if has_adapter:
        kind, library = "An adapter", "peft"
        code = (
            "from peft import PeftModel\n"
            "from transformers import AutoModelForCausalLM\n"
            "\n"
            f'base = AutoModelForCausalLM.from_pretrained("{base.name}")\n'
            'model = PeftModel.from_pretrained(base, "FOLDER")\n'
        )
    else:
        kind, library = "A model", "transformers"
        code = (
            'from transformers import AutoModelForCausalLM\n\nmodel = AutoModelForCausalLM.from_pretrained("FOLDER")\n'
        )
    return (
        f"---\nbase_model: {base.name}\nlibrary_name: {library}\npipeline_tag: text-generation\n---\n\n"
        f"{kind} fine-tuned with alfine on {', '.join(tasks)}. {base.description}\n\n"
        f"FOLDER is the folder of this file:\n\n```python\n{code}```\n\n"
        "Or, in the folder of the run, `alfine predict RUN FILE`.\n"
    )
