"""Sources: the files that a task's `data` names, in the order in which they are read, each with its split, if any.

`data` is a file, a pattern, a folder, a data set on the Hub, a list of these, or one of them per split.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.config.data_files import DataFiles
from pipelines.config.messages import did_you_mean
from pipelines.config.retention_registry import HUB
from pipelines.data.arrow_files import is_saved_dataset, saved_files, saved_splits
from pipelines.data.hub_files import download, resolve_dataset
from pipelines.data.readers import SUFFIXES
from pipelines.data.text_files import data_suffix
from pipelines.errors import DataError, Problem
from pipelines.storage.files import digest

SPLITS = ("train", "validation", "test")
_SYNONYMS = {
    "train": ("training", "trn", "tr", "fit"),
    "validation": ("val", "valid", "validate", "dev", "devel", "development", "eval", "evaluation"),
    "test": ("testing", "tst", "heldout", "holdout"),
}
"""Names of the splits in other tools and data sets."""
_PATTERN = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class DataFile:
    """One file of rows.

    Attributes:
        path: a file, or a folder that `datasets.save_to_disk` has written.
        name: the file in messages: its path, or `hub:OWNER/NAME/FILE`.
        split: the split of all its rows; None if its rows name their splits or are split at random.
    """

    path: Path
    name: str
    split: str | None = None

    @property
    def parts(self) -> list[Path]:
        """The files on the disk: those of a saved dataset, else the file itself."""
        return saved_files(self.path) if self.path.is_dir() else [self.path]


@dataclass(frozen=True)
class DataSource:
    """The files of one task, and notes on how they were found."""

    files: list[DataFile]
    notes: list[str]

    @property
    def has_splits(self) -> bool:
        """Whether every file has a split."""
        return all(file.split is not None for file in self.files)

    def of_split(self, split: str | None) -> list[DataFile]:
        """The files whose rows all belong to `split`; None: those without a split."""
        return [file for file in self.files if file.split == split]


def open_source(data: str | Sequence[str] | DataFiles) -> DataSource:
    """The files that `data` names. Files of a data set on the Hub are downloaded.

    Raises DataError, located at the text that names it, for a file that does not exist, a pattern without a match, a
    folder without files, and a data set that cannot be found.
    """
    notes: list[str] = []
    if isinstance(data, DataFiles):
        files: list[DataFile] = []
        for split in SPLITS:
            for file in _expand_all(getattr(data, split), notes):
                if file.split not in (None, split):
                    continue  # the other splits of a data set that has several
                files.append(DataFile(file.path, file.name, split))
        return DataSource(files, notes)
    files = list(_expand_all(data, notes))
    if any(file.split is not None for file in files) and not all(file.split is not None for file in files):
        without = next(file for file in files if file.split is None)
        message = "belongs to no split, although other files of this task do; write data: {train: …, test: …}"
        raise DataError(Problem(message, str(without.path)))
    return DataSource(files, notes)


def _expand_all(data: str | Sequence[str] | None, notes: list[str]) -> Iterator[DataFile]:
    texts = [] if data is None else [data] if isinstance(data, str) else data
    seen: dict[str, str] = {}
    for text in texts:
        for file in _expand(text, notes):
            # In the cache of the Hub, files of the same content are links to one file.
            identity = file.name if file.name.startswith(HUB) else str(file.path.resolve())
            if identity in seen:
                message = f"is named twice, by {seen[identity]!r} and {text!r}; its rows would count twice"
                raise DataError(Problem(message, str(file.path)))
            seen[identity] = text
            yield file


def _expand(text: str, notes: list[str]) -> list[DataFile]:
    """The files that one text names."""
    if text.startswith(HUB):
        return _hub_files(text, notes)
    try:
        return _local_files(expand_user(text), text, notes)
    except ValueError as error:  # `**` inside a word, or a null byte
        raise DataError(Problem(f"is not a valid path or pattern: {error}", text[:100])) from None
    except OSError as error:
        raise DataError(Problem(f"cannot be read: {error.strerror or error}", text[:100])) from None


def _local_files(path: Path, text: str, notes: list[str]) -> list[DataFile]:
    if path.is_dir():
        return _folder_files(path, text, notes)
    if path.exists() or not _PATTERN.search(text):
        if not path.exists():
            raise DataError(Problem(_no_such_file(text, path)))
        if not path.is_file():  # reading it might never end
            raise DataError(Problem("is not a file (a pipe, socket or device)", text))
        return [DataFile(path, text)]
    matches = sorted(_glob(path))
    files = [match for match in matches if match.is_file() or is_saved_dataset(match)]
    if not files:
        raise DataError(Problem("no file matches this pattern; patterns are relative to the working directory", text))
    notes.append(f"{text} names {len(files):,} file{'s' if len(files) != 1 else ''}")
    return [DataFile(match, str(match)) for match in files]


def source_digests(source: DataSource, file_sha256: Callable[[Path], str]) -> list[list[str | None]]:
    """The name, the split and the sha256 of every file of a task."""
    return [
        [
            file.name,
            file.split,
            digest(*map(file_sha256, file.parts)) if len(file.parts) > 1 else file_sha256(file.parts[0]),
        ]
        for file in source.files
    ]


def source_sha256(source: DataSource, file_sha256: Callable[[Path], str]) -> str:
    """The sha256 of a task's only file; of several files, that of their digests."""
    digests = source_digests(source, file_sha256)
    return str(digests[0][-1]) if len(digests) == 1 else digest(digests)


def describe_data(data: str | Sequence[str] | DataFiles) -> str:
    """`data` as one text, for the manifest and the report."""
    if isinstance(data, DataFiles):
        parts = {split: value for split, value in data.model_dump().items() if value is not None}
        return ", ".join(f"{split}: {describe_data(value)}" for split, value in parts.items())
    return data if isinstance(data, str) else ", ".join(data)


def pin_data(data: str | list[str] | DataFiles, pin: Callable[[str], str]) -> str | list[str] | DataFiles:
    """`data` with `pin` applied to every data set on the Hub that it names."""
    if isinstance(data, DataFiles):
        pinned = {split: pin_data(value, pin) for split, value in data.model_dump().items() if value is not None}
        return DataFiles.model_validate(pinned)
    if isinstance(data, str):
        return pin(data) if data.startswith(HUB) else data
    return [str(pin_data(text, pin)) for text in data]


def expand_user(text: str) -> Path:
    """The path with `~` replaced by the home folder, if there is one."""
    return Path(os.path.expanduser(text))


def _glob(pattern: Path) -> Iterator[Path]:
    parts = pattern.parts
    first = next(index for index, part in enumerate(parts) if _PATTERN.search(part))
    yield from Path(*parts[:first]).glob(str(Path(*parts[first:])))


def _no_such_file(text: str, path: Path) -> str:
    if path.is_symlink():
        return f"{text!r} is a link to a file that does not exist, or to itself"
    siblings = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    closest = did_you_mean(path.name, siblings)
    hint = f"; did you mean {path.parent / closest}?" if closest else "; paths are relative to the working directory"
    return f"no such file: {text!r}{hint}"


def _folder_files(folder: Path, text: str, notes: list[str]) -> list[DataFile]:
    if is_saved_dataset(folder):
        return [DataFile(folder, text)]
    if names := saved_splits(folder):
        return [
            DataFile(folder / name, str(folder / name), split) for name, split in _canonical_splits(names, text).items()
        ]
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.is_file() and data_suffix(file) in SUFFIXES and not _is_hidden(file.relative_to(folder))
    )
    if not files:
        raise DataError(Problem(f"the folder has no data file ({', '.join(SUFFIXES)})", text))
    splits = [_split_of_name(str(file.relative_to(folder).with_suffix(""))) for file in files]
    if all(splits) and "train" in splits:
        listed = ", ".join(f"{file.name}: {split}" for file, split in zip(files[:4], splits[:4], strict=True))
        notes.append(f"{text}: the splits come from the names of its {len(files):,} files ({listed})")
        return [DataFile(file, str(file), split) for file, split in zip(files, splits, strict=True)]
    notes.append(f"{text} has {len(files):,} data file{'s' if len(files) != 1 else ''}")
    return [DataFile(file, str(file)) for file in files]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def _split_of_name(name: str) -> str | None:
    """The split that a file's name contains as a word, as in `data/train-00000-of-00002`; None for none or several."""
    splits = {split for word in re.split(r"[\W_\d]+", name) if (split := canonical_split(word))}
    return splits.pop() if len(splits) == 1 else None


def _hub_files(text: str, notes: list[str]) -> list[DataFile]:
    resolved = resolve_dataset(text)
    count = sum(map(len, resolved.files.values()))
    notes.append(f"{text}: {count:,} file{'s' if count != 1 else ''} at commit {resolved.revision[:12]}")
    # A single split is not a statement about train and test: most data sets on the Hub have only `train`.
    names = list(resolved.files)
    splits: Mapping[str, str | None] = dict.fromkeys(names) if len(names) == 1 else _canonical_splits(names, text)
    return [
        DataFile(download(resolved, file), f"{HUB}{resolved.name}/{file}", splits[name])
        for name in splits
        for file in resolved.files[name]
    ]


def _canonical_splits(names: Sequence[str], text: str) -> dict[str, str]:
    """The split of each named part of a data set. Raises DataError for names that mean none, or one that has two."""
    splits = {name: canonical_split(name) for name in names}
    unknown = [name for name, split in splits.items() if split is None]
    known = [split for split in splits.values() if split is not None]
    if unknown or len(set(known)) < len(known):
        reason = f"it is unclear which split {unknown[0]!r} is" if unknown else "two of its parts mean the same split"
        example = f"data: {{train: {text}{'/' if not text.startswith(HUB) else ':'}{names[0]}, test: …}}"
        raise DataError(
            Problem(f"has the parts {', '.join(names)}, and {reason}; name one per split, as in {example}", text)
        )
    return {name: split for name, split in splits.items() if split is not None}


def canonical_split(name: object) -> str | None:
    """The split that `name` means in any spelling or by a synonym, or None."""
    word = re.sub(r"[\W_]", "", name).casefold() if isinstance(name, str) else ""
    return next((split for split, synonyms in _SYNONYMS.items() if word == split or word in synonyms), None)
