"""Files of bundled text, of retention evals and of replay: located, downloaded and read without a model."""

from __future__ import annotations

from pathlib import Path

from pipelines.config.retention_registry import HUB
from pipelines.data.readers import RowErrors, numbered_rows, text_column
from pipelines.data.templates import describe_columns, to_text
from pipelines.errors import DataError, Problem
from pipelines.modeling.base_models import download_from_hub

HUB_EXAMPLE = "hub:allenai/ai2_arc/ARC-Easy/test-00000-of-00001.parquet"


def bundled_file(name: str) -> Path:
    """The path of a file of data/: in the checkout or, if installed, in the package."""
    package = Path(__file__).parents[1]
    checkout = package.parent / "data" / name
    return checkout if checkout.exists() else package / "bundled" / name


def read_text_column(file: Path, name: str) -> list[str]:
    """Reads one column of a file. Raises DataError with file and row for every row without a text in it."""
    texts, errors = [], RowErrors()
    for number, row in numbered_rows(file):
        text = text_column(row, name)
        if text is None:
            columns = describe_columns(row, name, is_fixed=True)
            errors.add(str(file), number, f"a row here needs a text in `{name}`; {columns}")
            continue
        try:
            texts.append(to_text(name, text))
        except DataError as error:
            errors.add(str(file), number, str(error))
    errors.raise_if_any()
    return texts


def resolve_data_file(data: str) -> Path:
    """The local path of a retention eval's `data`. A file on the Hub is downloaded once.

    Raises DataError if it is not of the form hub:OWNER/NAME/FILE, or cannot be downloaded.
    """
    if not data.startswith(HUB):
        return Path(data)
    owner, name, file = [*data.removeprefix(HUB).split("/", 2), "", ""][:3]
    if not file:
        raise DataError(Problem(f"write hub:OWNER/NAME/FILE, as in {HUB_EXAMPLE}", data))
    # huggingface_hub: 0.4 s that a job with local files does not need.
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    try:
        return download_from_hub(hf_hub_download, f"{owner}/{name}", file, repo_type="dataset")
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = next(iter(str(error).splitlines()), "no reason given")[:120]
        message = f"could not be downloaded from the Hub ({reason}); download the file and write its path here"
        raise DataError(Problem(message, data)) from None
