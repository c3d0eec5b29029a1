"""Data sets on the Hugging Face Hub: their data files, downloaded into the Hub's cache and read like local files.

No loading script is ever run: `datasets` only resolves which files are data, and huggingface_hub downloads them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pipelines.config.retention_registry import HUB
from pipelines.console.activity import track_activity
from pipelines.errors import DataError, Problem
from pipelines.registry import lazy_import
from pipelines.storage.cache import cache_folder
from pipelines.storage.files import digest, write_json
from pipelines.storage.strict_json import parse

if TYPE_CHECKING:
    import datasets
    import huggingface_hub
else:  # a second that jobs with local files do not need
    datasets, huggingface_hub = lazy_import("datasets"), lazy_import("huggingface_hub")

HUB_FORM = "hub:OWNER/NAME[@REVISION][:CONFIG][:SPLIT], or hub:OWNER/NAME[@REVISION]/FILE"
_REPOSITORY = r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[^:/]+))?"
_DATASET = re.compile(_REPOSITORY + r"(?::(?P<first>[^:]*))?(?::(?P<second>[^:]*))?")
_FILE = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^:/]+))?/(?P<file>.+\.[\w.]+)")
_HUB_FILE = re.compile(r"hf://datasets/(?P<name>[^@]+)@(?P<revision>[^/]+)/(?P<file>.+)")


@dataclass(frozen=True)
class HubDataset:
    """What `hub:…` names.

    Attributes:
        parts: the texts after the colons: a config, a split, or a config and a split.
        file: the path of a single file inside the repository, or None.
    """

    name: str
    revision: str | None
    parts: tuple[str, ...] = ()
    file: str | None = None

    def at(self, revision: str) -> str:
        """The text that names the same at a commit."""
        if self.file is not None:
            return f"{HUB}{self.name}@{revision}/{self.file}"
        return ":".join([f"{HUB}{self.name}@{revision}", *self.parts])

    @classmethod
    def parse(cls, text: str) -> HubDataset:
        """Raises DataError for a text that is not of the form HUB_FORM."""
        if match := _FILE.fullmatch(text.removeprefix(HUB)):
            return cls(match["name"], match["revision"], file=match["file"])
        match = _DATASET.fullmatch(text.removeprefix(HUB))
        if match is None:
            raise DataError(Problem(f"write {HUB_FORM}, as in hub:HuggingFaceTB/smoltalk:everyday-conversations", text))
        parts = tuple(part for part in (match["first"], match["second"]) if part)
        return cls(match["name"], match["revision"], parts)


@dataclass(frozen=True)
class ResolvedDataset:
    """The data files of a data set at one commit, by split, as paths inside its repository."""

    name: str
    revision: str
    files: dict[str, list[str]]


def pinned(text: str) -> str:
    """`text`, of the form HUB_FORM, with the commit that it means now. Raises DataError as `resolve_dataset` does."""
    return HubDataset.parse(text).at(resolve_dataset(text).revision)


def resolve_dataset(text: str) -> ResolvedDataset:
    """Finds the data files that `text`, of the form HUB_FORM, names: at its revision, or the newest.

    What was found is kept in the cache, so that a commit that is known needs no network.
    Raises DataError if the data set, its config or its split does not exist, or if the Hub cannot be reached.
    """
    wanted = HubDataset.parse(text)
    revision = wanted.revision
    if revision is not None and (known := _read_resolved(wanted, revision)):
        return known
    try:
        with track_activity(f"looking for the data set {wanted.name} on the Hub"):
            resolved = _resolve_online(wanted, revision, text)
    except DataError:
        raise
    except Exception as error:
        # Offline: the commit that was used last. Not if the Hub has refused.
        refused = (datasets.exceptions.DatasetNotFoundError, huggingface_hub.errors.RepositoryNotFoundError)
        if revision is None and not isinstance(error, refused) and (known := _read_resolved(wanted, "newest")):
            return known
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:160]
        message = f"the data set is not in the cache and cannot be read from the Hub ({reason})"
        raise DataError(Problem(f"{message}; download its files and write their paths here", text)) from None
    for key in {resolved.revision, revision or "newest"}:
        write_json(_cache_file(wanted, key), vars(resolved))
    return resolved


def download(resolved: ResolvedDataset, file: str) -> Path:
    """The path of a file of the data set in the Hub's cache, downloaded if it is not there. Raises DataError."""
    arguments = {"repo_type": "dataset", "revision": resolved.revision}
    try:
        return Path(huggingface_hub.hf_hub_download(resolved.name, file, local_files_only=True, **arguments))
    except Exception:
        pass  # not in the cache
    try:
        with track_activity(f"downloading {PurePosixPath(file).name} of {resolved.name}"):
            return Path(huggingface_hub.hf_hub_download(resolved.name, file, **arguments))
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:160]
        raise DataError(
            Problem(f"could not be downloaded from the Hub ({reason})", f"hub:{resolved.name}/{file}")
        ) from None


def _resolve_online(wanted: HubDataset, revision: str | None, text: str) -> ResolvedDataset:
    if wanted.file is not None:
        info = huggingface_hub.HfApi().dataset_info(wanted.name, revision=revision)
        if wanted.file not in {entry.rfilename for entry in info.siblings or []}:
            raise DataError(Problem(f"the data set has no file {wanted.file!r}", text))
        return ResolvedDataset(wanted.name, str(info.sha), {"train": [wanted.file]})
    configs = datasets.get_dataset_config_names(wanted.name, revision=revision)
    config, split = _config_and_split(wanted, configs, text)
    builder = datasets.load_dataset_builder(wanted.name, config, revision=revision)
    by_split = {str(name): [str(path) for path in paths] for name, paths in (builder.config.data_files or {}).items()}
    if not by_split:
        raise DataError(Problem("has no data files that can be read without a script", text))
    if split is not None:
        if split not in by_split:
            raise DataError(Problem(f"has no split {split!r}; it has {', '.join(by_split)}", text))
        by_split = {split: by_split[split]}
    files: dict[str, list[str]] = {}
    commit = ""
    for name, paths in by_split.items():
        for path in paths:
            match = _HUB_FILE.fullmatch(path)
            if match is None:
                raise DataError(Problem(f"names the file {path}, which is not in its repository; download it", text))
            commit = match["revision"]
            files.setdefault(name, []).append(match["file"])
    return ResolvedDataset(wanted.name, commit, files)


def _config_and_split(wanted: HubDataset, configs: list[str], text: str) -> tuple[str, str | None]:
    """The config and the split that the parts after the colons name."""
    if len(wanted.parts) == 2:
        config, split = wanted.parts
    elif not wanted.parts:
        config, split = "", None
    elif wanted.parts[0] in configs:
        config, split = wanted.parts[0], None
    else:
        config, split = "", wanted.parts[0]
    if config and config not in configs:
        raise DataError(Problem(f"has no config {config!r}; it has {', '.join(configs[:10])}", text))
    if not config and len(configs) > 1 and "default" not in configs:
        raise DataError(
            Problem(
                f"has several configs; name one, as in {HUB}{wanted.name}:{configs[0]} ({', '.join(configs[:10])})",
                text,
            )
        )
    return config or ("default" if "default" in configs else configs[0]), split


def _cache_file(wanted: HubDataset, revision: str) -> Path:
    return cache_folder() / "hub" / f"{digest(wanted.name, wanted.parts, wanted.file, revision)[:32]}.json"


def _read_resolved(wanted: HubDataset, revision: str) -> ResolvedDataset | None:
    try:
        return ResolvedDataset(**parse(_cache_file(wanted, revision).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
