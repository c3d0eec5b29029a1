"""Ludwig takes half a minute to import: only training may, and inference never does."""

import ast
import subprocess
import sys
from pathlib import Path

import pipelines

ROOT = Path(pipelines.__file__).parent


def test_only_training_imports_ludwig():
    importing = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "lazy_import":
                names += [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            if any(name.split(".")[0] == "ludwig" for name in names):
                importing.add(path.relative_to(ROOT).as_posix())
    assert importing and {path for path in importing if not path.startswith("training/")} == set()


def test_inference_leaves_ludwig_out():
    modules = [
        *(f"prediction.{path.stem}" for path in sorted((ROOT / "prediction").glob("*.py")) if path.stem != "__init__"),
        "compare",
        *(f"evaluation.{path.stem}" for path in sorted((ROOT / "evaluation").glob("*.py")) if path.stem != "__init__"),
        *(f"modeling.{path.stem}" for path in sorted((ROOT / "modeling").glob("*.py")) if path.stem != "__init__"),
    ]
    code = f"""
import importlib, sys
for name in {modules!r}:
    importlib.import_module("pipelines." + name)
loaded = sorted(name for name in sys.modules if name.split(".")[0] == "ludwig")
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True)
