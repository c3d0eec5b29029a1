"""`alfine publish`: pushes a checked export with its model card to a repository on the Hub, in one commit."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from pipelines.console.reporter import ConsoleReporter
from pipelines.errors import ConfigError, MachineError, RunError
from pipelines.exporting.folder import EXPORT_FILE, file_list
from pipelines.exporting.model_card import CARD
from pipelines.exporting.records import ExportRecord
from pipelines.exporting.source import ExportSource, open_source
from pipelines.registry import lazy_import

if TYPE_CHECKING:
    import huggingface_hub
    from huggingface_hub import errors as hub_errors
else:  # 0.5 s that an error in the arguments does not need
    huggingface_hub, hub_errors = lazy_import("huggingface_hub"), lazy_import("huggingface_hub.errors")

REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
TOKEN_HINT = "create one with write access at https://huggingface.co/settings/tokens and set HF_TOKEN"
IGNORED_FILES = {".gitattributes", CARD}
"""Files of a new repository on the Hub."""


@dataclass(frozen=True)
class Publication:
    """What is pushed, and where.

    Attributes:
        repository: the id `owner/name`.
        is_public: whether everyone may read it.
        revision: the branch; None for `main`.
    """

    repository: str
    folder: Path
    record: ExportRecord
    is_public: bool
    revision: str | None

    @property
    def names(self) -> list[str]:
        """The paths of the files in the repository."""
        return [*(file.name for file in self.record.files), EXPORT_FILE]

    def lines(self) -> list[str]:
        """Where it goes, and its files with their sizes, as lines of text."""
        sizes = {name: (self.folder / name).stat().st_size for name in self.names}
        width = max(map(len, sizes))
        visibility = "public" if self.is_public else "private"
        branch = f", branch {self.revision}" if self.revision else ""
        lines = [f"{self.repository} ({visibility}{branch}): {len(sizes)} files, {_size(sum(sizes.values()))}"]
        return [*lines, *(f"  {name:<{width}}  {_size(size):>9}" for name, size in sizes.items())]


def _size(count: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"


def check_repository(name: str) -> None:
    """Raises ConfigError for a name that cannot be that of a repository."""
    invalid = not REPOSITORY.fullmatch(name) or ".." in name or "--" in name or name.endswith((".git", ".", "-"))
    if invalid or len(name) > 96:
        raise ConfigError(f"{name!r} is not the name of a repository on the Hub; write owner/name, as in anna/reviews")


def exported_record(folder: Path) -> ExportRecord:
    """The content of an export's export.json. Raises RunError if it is missing or damaged."""
    path = folder / EXPORT_FILE
    try:
        return ExportRecord.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise RunError(f"{folder} has no {EXPORT_FILE}, so it is not a complete export; export it again") from None
    except (ValidationError, OSError):
        raise RunError(f"{path} is damaged; export it again with --force") from None


def check_publishable(source: ExportSource, folder: Path, record: ExportRecord) -> None:
    """Raises RunError for an export of another training, one that failed its check, or one that was changed since.

    The model card may be changed, as its license.
    """
    again = f"export it again: alfine export {source.run.folder} --to {record.target} --force"
    if record.model != source.model_fingerprint:
        raise RunError(f"{folder} is an export of another training than the run has now; {again}")
    if record.check is not None and not record.check.passed:
        raise RunError(f"{folder} failed its check ({record.check.problems[0]}); it is not published")
    expected = {file.name: file.sha256 for file in record.files if file.name != CARD}
    found = {file.name: file.sha256 for file in file_list(folder)}
    changed = sorted(name for name, sha256 in expected.items() if found.get(name) != sha256)
    if changed or CARD not in found:
        name = (changed or [CARD])[0]
        raise RunError(f"{folder}: {name} is missing or was changed since the check; {again}")


def prepare(run: Path, folder: Path, repository: str, is_public: bool, revision: str | None) -> Publication:
    """The publication of the export in `folder`. Needs no network. Raises ConfigError and RunError."""
    check_repository(repository)
    source = open_source(run)
    record = exported_record(folder)
    check_publishable(source, folder, record)
    return Publication(repository, folder, record, is_public, revision)


def publish(publication: Publication, reporter: ConsoleReporter) -> str:
    """Pushes the files in one commit, and compares what the Hub then has. Returns the address.

    Raises RunError for a repository with other content or visibility, and MachineError without a token or network.
    """
    with _one_line_errors(publication):
        api = huggingface_hub.HfApi()
        if huggingface_hub.get_token() is None:
            raise MachineError(f"there is no token for the Hub; {TOKEN_HINT}")
        with reporter.status("Asking the Hub"):
            api.whoami()
            outdated = _outdated_files(api, publication)
        with reporter.status(f"Uploading to {publication.repository}"):
            if publication.revision is not None:
                api.create_branch(publication.repository, branch=publication.revision, exist_ok=True)
            additions = [
                huggingface_hub.CommitOperationAdd(name, str(publication.folder / name)) for name in publication.names
            ]
            api.create_commit(
                publication.repository,
                [*additions, *(huggingface_hub.CommitOperationDelete(name) for name in outdated)],
                commit_message=f"{publication.record.target} of the alfine run {publication.record.run}",
                revision=publication.revision,
            )
        with reporter.status("Comparing the files on the Hub"):
            _check_uploaded(api, publication)
        branch = f"/tree/{publication.revision}" if publication.revision else ""
        return f"{api.endpoint}/{publication.repository}{branch}"


def _outdated_files(api: Any, publication: Publication) -> list[str]:
    """Creates the repository if there is none. Returns the files of an earlier export of the same run in it that the
    new one does not have."""
    repository = publication.repository
    try:
        info = api.model_info(repository)
    except hub_errors.RepositoryNotFoundError:
        api.create_repo(repository, private=not publication.is_public)
        return []
    if bool(info.private) == publication.is_public:
        now, option = ("private", "without --public") if info.private else ("public", "with --public")
        raise RunError(
            f"{repository} exists and is {now}; publish {option}, or change it in its settings on the Hub, or choose "
            "another name"
        )
    if publication.revision is not None:
        branches = [branch.name for branch in api.list_repo_refs(repository).branches]
        if publication.revision not in branches:
            return []
    files = set(api.list_repo_files(repository, revision=publication.revision))
    if not files - IGNORED_FILES:
        return []
    earlier = _earlier_record(api, publication) if EXPORT_FILE in files else None
    if earlier is None or (earlier.run, earlier.target) != (publication.record.run, publication.record.target):
        example = sorted(files - IGNORED_FILES)[0]
        raise RunError(
            f"{repository} exists and has other content ({example}); choose another name, or a branch with --revision"
        )
    return sorted({file.name for file in earlier.files} & files - set(publication.names))


def _earlier_record(api: Any, publication: Publication) -> ExportRecord | None:
    path = api.hf_hub_download(publication.repository, EXPORT_FILE, revision=publication.revision)
    try:
        return ExportRecord.model_validate_json(Path(path).read_bytes())
    except ValidationError:
        return None


def _check_uploaded(api: Any, publication: Publication) -> None:
    """Raises RunError unless the Hub has all files with their sizes, and large ones with their SHA-256."""
    entries = api.get_paths_info(publication.repository, publication.names, revision=publication.revision)
    remote = {entry.path: entry for entry in entries}
    expected = {file.name: file for file in file_list(publication.folder)}
    for name in publication.names:
        entry: Any = remote.get(name)
        local_size = (publication.folder / name).stat().st_size
        is_same = entry is not None and entry.size == local_size
        if entry is not None and entry.lfs is not None and name in expected:
            is_same = is_same and entry.lfs.sha256 == expected[name].sha256
        if not is_same:
            raise RunError(f"{publication.repository}: {name} is not on the Hub as it is here; publish again")


@contextlib.contextmanager
def _one_line_errors(publication: Publication) -> Iterator[None]:
    """Raises an AlfineError of one line for an error of the Hub or the network."""
    repository = publication.repository
    try:
        yield
    except hub_errors.LocalTokenNotFoundError:
        raise MachineError(f"there is no token for the Hub; {TOKEN_HINT}") from None
    except hub_errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status == 401:
            raise MachineError(f"the Hub does not accept the token; {TOKEN_HINT}") from None
        if status in (403, 404):
            owner = repository.partition("/")[0]
            raise MachineError(
                f"the token may not write to {repository}; use one with write access to {owner}, or another owner"
            ) from None
        reason = str(error.server_message or next(iter(str(error).splitlines()), status))[:200]
        raise MachineError(f"the Hub refused {repository} ({reason}); try again later") from None
    except hub_errors.OfflineModeIsEnabled:
        raise MachineError("HF_HUB_OFFLINE is set; unset it to publish") from None
    except (hub_errors.HTTPError, hub_errors.LocalEntryNotFoundError, ConnectionError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:120]
        raise MachineError(f"the Hub cannot be reached ({reason}); try again with a network") from None
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise MachineError(f"{repository}: the upload failed ({reason})") from None
