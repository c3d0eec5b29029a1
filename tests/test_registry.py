"""Registries that discover their entries, and lazy modules."""

import sys

import pytest

from pipelines.registry import Registry, lazy_import


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "__init__.py").write_text("from pipelines.registry import Registry\nREGISTRY = Registry('plugins')\n")
    for name in ("second", "first"):
        (folder / f"{name}.py").write_text(
            f"from plugins import REGISTRY\nREGISTRY.register('{name}', '{name}'.upper())\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    yield __import__("plugins").REGISTRY
    for name in [name for name in sys.modules if name.partition(".")[0] == "plugins"]:
        del sys.modules[name]


def test_every_module_of_the_package_is_an_entry(package):
    assert list(package) == ["first", "second"]
    assert package["first"] == "FIRST" and "third" not in package
    assert list(package.items()) == [("first", "FIRST"), ("second", "SECOND")] and len(package) == 2


def test_a_name_is_registered_once(package):
    with pytest.raises(ValueError, match="first is registered twice"):
        package._load() and package.register("first", "again")


def test_a_lazy_module_is_imported_at_its_first_use(monkeypatch):
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    module = lazy_import("colorsys")
    assert "colorsys" not in sys.modules
    assert module.rgb_to_hsv(0, 0, 0) == (0.0, 0.0, 0) and "colorsys" in sys.modules


def test_an_empty_registry_of_a_missing_package():
    with pytest.raises(ModuleNotFoundError):
        list(Registry("no_such_package"))
