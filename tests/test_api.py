"""The public API: its version, its names, and the example of docs/api.md as it is written there."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import pipelines
from pipelines import api

DOCS = Path(__file__).parents[1] / "docs" / "api.md"


def test_all_names_exist_and_are_documented():
    assert pipelines.__all__ == api.__all__ == sorted(api.__all__)
    text = DOCS.read_text(encoding="utf-8")
    for name in pipelines.__all__:
        assert getattr(pipelines, name) is getattr(api, name)
        assert name in text, f"docs/api.md does not mention {name}"


def test_no_module_has_the_name_of_a_function():
    """Importing a submodule sets its name in the package, where it would replace the function."""
    modules = {path.stem for path in Path(pipelines.__file__).parent.iterdir()}
    assert not modules & set(pipelines.__all__)


def test_the_version_is_that_of_the_package():
    metadata = tomllib.loads((DOCS.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    assert metadata["project"]["version"] == pipelines.__version__


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'lod_job'"):
        pipelines.lod_job  # noqa: B018


def test_the_api_loads_without_torch():
    program = "import sys; from pipelines import load_job, analyse; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.ludwig
def test_the_example_of_the_docs_runs(project, capsys, monkeypatch):
    monkeypatch.chdir(project)
    example = re.search(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL).group(1)
    exec(compile(example, "docs/api.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["odd", "say"]
    assert lines[3].split()[-1] in ("stop", "length")
    assert "epohcs: unknown key; did you mean epochs?" in lines[-1]
