"""Registries whose entries are modules of a package, and modules that are imported when they are first used."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Any


class Registry[T](Mapping[str, T]):
    """Named objects, each registered by a module of one package: to add one, add a file to that package.

    The modules are imported at the first lookup, so a package may sit in a higher layer than the code that looks up.
    """

    def __init__(self, package: str) -> None:
        self.package = package
        self._entries: dict[str, T] = {}
        self._is_loaded = False

    def register(self, name: str, entry: T) -> T:
        """Adds `entry` under `name` and returns it. Raises ValueError if the name is taken."""
        if name in self._entries:
            raise ValueError(f"{name} is registered twice in {self.package}")
        self._entries[name] = entry
        return entry

    def _load(self) -> dict[str, T]:
        if not self._is_loaded:
            package = importlib.import_module(self.package)
            for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda module: module.name):
                importlib.import_module(f"{self.package}.{module.name}")
            # Sorted by name: the order of registration depends on the imports between the modules.
            self._entries = dict(sorted(self._entries.items()))
            self._is_loaded = True
        return self._entries

    def __getitem__(self, name: str) -> T:
        return self._load()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._load())

    def __len__(self) -> int:
        return len(self._load())


class _LazyModule:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


def lazy_import(name: str) -> Any:
    """A stand-in for the module `name` that imports it at the first attribute access.

    For modules that `alfine check` must load without torch although their methods use torch:

        if TYPE_CHECKING:
            import torch
        else:
            torch = lazy_import("torch")
    """
    return _LazyModule(name)
