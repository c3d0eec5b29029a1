"""References to the base of a tuned model, in a form that is valid on other machines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines.config.job import Job

HUB_IDS = {"smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""The Hub id of the original of each packaged model."""


@dataclass(frozen=True)
class BaseModelReference:
    """A base model as a model card names it: a name without a local path, a commit on the Hub, and a sentence.

    Attributes:
        name: the id on the Hub, or the name of a folder or run that is not on the Hub.
        revision: the commit on the Hub, None if it is not known.
        description: a sentence for the model card.
        on_hub: whether `name` is an id on the Hub.
        fingerprint: the fingerprint of the base's content, see `content_hash.fingerprint`.
    """

    name: str
    revision: str | None
    description: str
    on_hub: bool = True
    fingerprint: str = ""


def base_model_reference(job: Job, starting_model_folder: Path, content_fingerprint: str) -> BaseModelReference:
    """The base that a job was trained from.

    A base from the Hub is named by its id and commit, a packaged model by the Hub id of its original, the model of an
    earlier run by the name of that run, any other by the name of its folder.

    Args:
        starting_model_folder: the folder of the model that training started from.
        content_fingerprint: the fingerprint of its content.
    """
    content = content_fingerprint
    if job.pipeline.continue_from is not None:
        run = Path(job.pipeline.continue_from).name
        description = f"The base is the tuned model of the run `{run}`, content {content}."
        return BaseModelReference(f"{run}-merged", None, description, False, content)
    if job.base_model in HUB_IDS:
        description = (
            f"It was trained on alfine's packaged {job.base_model}: weights dequantized from 4 bits (Q4_1), content "
            f"{content}. On the weights from the Hub its completions differ slightly."
        )
        return BaseModelReference(HUB_IDS[job.base_model], None, description, True, content)
    if starting_model_folder.parent.name == "snapshots":
        revision = starting_model_folder.name
        description = f"The base is `{job.base_model}` on the Hub, commit `{revision}`."
        return BaseModelReference(job.base_model, revision, description, True, content)
    name = starting_model_folder.name
    description = f"The base is a folder `{name}` that is not on the Hub, content {content}."
    return BaseModelReference(name, None, description, False, content)
