"""The files that guards and general text come from: read and checked without a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipelines.errors import DataError, Problem
from pipelines.forgetting_keys import BUNDLED, Forgetting, Guard
from pipelines.row_files import read_rows
from pipelines.tasks import fill


class Choice(BaseModel):
    """An item of multiple choice; `answer` is the right choice's number from 0."""

    model_config = ConfigDict(strict=True, frozen=True)

    question: Annotated[str, Field(min_length=1)]
    choices: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=2)]
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


def bundled(name: str) -> Path:
    """A file of data/, in the checkout or, installed, inside the package."""
    package = Path(__file__).parents[1]
    checkout = package.parent / "data" / name
    return checkout if checkout.exists() else package / "data" / name


def column(file: Path, name: str) -> list[str]:
    """One column of a file, every row a text. Raises DataError with file and row."""
    texts = []
    for number, row in enumerate(read_rows(file), start=1):
        text = row.get(name)
        if not isinstance(text, str) or not text.strip():
            raise DataError(Problem(f"a row here needs a text in `{name}`; it has: {', '.join(row)}", str(file), number))
        texts.append(text)
    return texts


def guards_of(forgetting: Forgetting) -> dict[str, Guard]:
    """The guards that a config asks for, by name."""
    if forgetting.guards == "none":
        return {}
    if forgetting.guards == "bundled":
        return {name: Guard(kind=kind, data=str(bundled(file))) for name, (kind, file) in BUNDLED.items()}  # type: ignore[arg-type]
    return dict(forgetting.guards)


def read_choices(file: Path) -> list[Choice]:
    """Rows with `question`, `choices` and `answer`, the number of the right one from 0. Raises DataError."""
    items = []
    for number, row in enumerate(read_rows(file), start=1):
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


def check_guards(forgetting: Forgetting) -> None:
    """Raises DataError for a guard whose file is missing, empty or of another form. Loads no model."""
    for guard in guards_of(forgetting).values():
        if guard.kind == "choices":
            read_choices(Path(guard.data))
        elif guard.kind == "task":
            read_questions(guard)
        else:
            column(Path(guard.data), "text" if guard.kind == "text" else "instruction")


def read_questions(guard: Guard) -> list[Question]:
    """The rows of a guard of kind task, its templates filled. Raises DataError."""
    assert guard.prompt is not None and guard.completion is not None
    questions = []
    for number, row in enumerate(read_rows(Path(guard.data)), start=1):
        try:
            prompt, reference = fill(guard.prompt, row), fill(guard.completion, row)
        except DataError as error:
            raise DataError(Problem(str(error), guard.data, number)) from None
        questions.append(Question(prompt, guard.system, reference, row, guard.max_new_tokens))
    return questions
