"""References to the base model in a tuned model's folder, in a form that is valid on other machines."""

from __future__ import annotations

import json
from pathlib import Path

from pipelines.config.job import Job
from pipelines.modeling.base_reference import BaseModelReference, base_model_reference
from pipelines.storage.files import write_text


def write_model_card(folder: Path, job: Job, starting_model_folder: Path, content_fingerprint: str) -> None:
    """Rewrites README.md and adapter_config.json of the tuned model in `folder`, which name a local path of the base.

    A base from the Hub is named by its id and commit, a packaged model by the Hub id of its original, any other by
    the name of its folder. `starting_model_folder` is the folder of the model that training started from,
    `content_fingerprint` the fingerprint of its content.
    """
    base = base_model_reference(job, starting_model_folder, content_fingerprint)
    adapter_config = folder / "adapter_config.json"
    has_adapter = adapter_config.is_file()
    if has_adapter:
        config = json.loads(adapter_config.read_text(encoding="utf-8"))
        config |= {"base_model_name_or_path": base.name, "revision": base.revision}
        write_text(adapter_config, json.dumps(config, indent=2, sort_keys=True) + "\n")
    write_text(folder / "README.md", _model_card(base, list(job.pipeline.tasks), has_adapter))


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
