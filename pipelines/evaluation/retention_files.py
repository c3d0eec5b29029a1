"""The files that guards and general text come from: read and checked without a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipelines.config.forgetting import BUNDLED, HUB, Forgetting, RetentionEvalSettings
from pipelines.config.strategy_registry import STRATEGIES
from pipelines.data.readers import RowErrors, numbered_rows, text_column
from pipelines.data.templates import check_system_is_constant, describe_columns, fill_nonempty, to_text
from pipelines.errors import DataError, Problem
from pipelines.modeling.base_models import download_from_hub
from pipelines.scoring.custom_metrics import try_metric
from pipelines.scoring.python_tests import row_tests

Visible = Annotated[str, Field(pattern=r"\S")]


class Choice(BaseModel):
    """An item of multiple choice; `answer` is the right choice's number from 0."""

    model_config = ConfigDict(strict=True, frozen=True)

    question: Visible
    choices: Annotated[list[Visible], Field(min_length=2)]
    answer: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _answer_is_a_choice(self) -> Self:
        if self.answer >= len(self.choices):
            raise ValueError("answer is no choice's number")
        return self


@dataclass(frozen=True)
class Question:
    """A row of a task: what is asked, and what its metric needs to score the answer."""

    prompt: str
    system: str | None
    reference: str
    fields: Mapping[str, Any]
    max_new_tokens: int


def bundled_file(name: str) -> Path:
    """A file of data/, in the checkout or, installed, inside the package."""
    package = Path(__file__).parents[1]
    checkout = package.parent / "data" / name
    return checkout if checkout.exists() else package / "bundled" / name


def read_text_column(file: Path, name: str) -> list[str]:
    """One column of a file, every row a text. Raises DataError with file and row."""
    texts, errors = [], RowErrors()
    for number, row in numbered_rows(file):
        text = text_column(row, name)
        if text is None:
            errors.add(
                str(file), number, f"a row here needs a text in `{name}`; {describe_columns(row, name, is_fixed=True)}"
            )
            continue
        try:
            texts.append(to_text(name, text))
        except DataError as error:
            errors.add(str(file), number, str(error))
    errors.raise_if_any()
    return texts


def retention_eval_configs(forgetting: Forgetting) -> dict[str, RetentionEvalSettings]:
    """The guards that a config asks for, by name."""
    if forgetting.evals == "none":
        return {}
    if forgetting.evals == "bundled":
        return {
            name: RetentionEvalSettings(kind=kind, data=str(bundled_file(file)))
            for name, (kind, file) in BUNDLED.items()
        }
    return dict(forgetting.evals)


def resolve_data_file(guard: RetentionEvalSettings) -> Path:
    """Where the guard's rows lie; what is on the hub is fetched once. Raises DataError."""
    if not guard.data.startswith(HUB):
        return Path(guard.data)
    owner, name, file = [*guard.data.removeprefix(HUB).split("/", 2), "", ""][:3]
    if not file:
        example = "hub:allenai/ai2_arc/ARC-Easy/test-00000-of-00001.parquet"
        raise DataError(Problem(f"write hub:OWNER/NAME/FILE, as in {example}", guard.data))
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    try:
        return download_from_hub(hf_hub_download, f"{owner}/{name}", file, repo_type="dataset")
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = next(iter(str(error).splitlines()), "no reason given")[:120]
        message = f"cannot be had from the hub ({reason}); download the file and name it here"
        raise DataError(Problem(message, guard.data)) from None


def _as_choice(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a public benchmark (ARC, OpenBookQA, CommonsenseQA; PIQA; HellaSwag) in our form; any other as it is."""
    match row:
        case {"choices": {"text": list(texts), "label": list(labels)}, "answerKey": key}:
            question = row.get("question", row.get("question_stem"))
            return {"question": question, "choices": texts, "answer": labels.index(key) if key in labels else None}
        case {"goal": question, "sol1": one, "sol2": two, "label": label}:
            return {"question": question, "choices": [one, two], "answer": label}
        case {"ctx": question, "endings": list(endings), "label": label}:
            return {"question": question, "choices": endings, "answer": int(label) if str(label).isdecimal() else label}
    return row


def read_multiple_choice(file: Path) -> list[Choice]:
    """Rows with `question`, `choices` and `answer`, the number of the right one from 0, or in the form of a public benchmark.
    Raises DataError."""
    items = []
    for number, given in numbered_rows(file):
        row = _as_choice(given)
        try:
            items.append(Choice.model_validate(row))
        except ValidationError as error:
            raise DataError(Problem(_what_is_wrong(row, error), str(file), number)) from None
    return items


def _what_is_wrong(row: Mapping[str, Any], error: ValidationError) -> str:
    first = error.errors()[0]
    choices, key = row.get("choices"), first["loc"][0] if first["loc"] else "answer"
    if first["type"] == "missing":
        return f"{key} is missing; a row has question, choices and answer, this one: {', '.join(row)}"
    if key == "answer" and not first["loc"]:
        return f"answer is {row['answer']}, choices has {len(row['choices'])} entries; the first is 0"
    if key == "answer":
        return "answer is the number of the right entry of choices, counted from 0, as in 0"
    if key == "choices" and isinstance(choices, list) and len(choices) < 2:
        return f"choices needs two texts or more, found {len(choices)}"
    return "choices is a list of texts, none of them empty" if key == "choices" else f"{key} is a text, not empty"


def check_retention_evals(forgetting: Forgetting) -> None:
    """Raises DataError for a guard, or a replay file, that is missing, empty or of another form, or for a guard whose metric of
    the user's fails on its first row. Loads no model."""
    for strategy, key, file in forgetting.row_files():
        for column in STRATEGIES[strategy].settings.row_files[key]:
            read_text_column(Path(file), column)
    for name, guard in retention_eval_configs(forgetting).items():
        if guard.kind == "multiple_choice":
            read_multiple_choice(resolve_data_file(guard))
        elif guard.kind == "task":
            first = read_task_examples(guard)[0]
            if ":" in guard.metric and (wrong := try_metric(guard.metric, first.reference, first.fields)):
                raise DataError(Problem(f"retention eval {name}: {wrong}", guard.data, 1))
        else:
            read_text_column(resolve_data_file(guard), "text" if guard.kind == "text_nll" else "instruction")


def read_task_examples(guard: RetentionEvalSettings) -> list[Question]:
    """The rows of a guard of kind task, its templates filled. Raises DataError."""
    assert guard.prompt is not None and guard.completion is not None
    questions, errors = [], RowErrors()
    for number, row in numbered_rows(resolve_data_file(guard)):
        try:
            check_system_is_constant(guard.system, row)
            prompt, reference = (
                fill_nonempty(guard.prompt, row, "prompt"),
                fill_nonempty(guard.completion, row, "completion"),
            )
            if guard.metric == "unit_tests":
                row_tests(row)
            questions.append(Question(prompt, guard.system, reference, row, guard.max_new_tokens))
        except DataError as error:
            errors.add(guard.data, number, str(error))
    errors.raise_if_any()
    return questions
