"""The configs in a checkout of another tool: YAML files, blocks in Markdown and notebooks, texts and dictionaries in
Python code."""

from __future__ import annotations

import ast
import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

_UNKNOWN = object()
"""What stands for a value that cannot be read from the code: a parameter, the result of a function."""


MAX_RUNS = 200
"""The most runs of one test whose parameters are tried."""


def configs_in(folder: Path, under: str) -> Iterator[tuple[str, str, Path | None]]:
    """The name, the text and, for a file of its own, the path of every config below `folder`, each only once."""
    constants = _constants(folder / "ludwig" / "constants.py")
    seen = set()
    for path in sorted((folder / under).rglob("*")):
        if not path.is_file() or path.suffix not in (".yaml", ".yml", ".md", ".py", ".ipynb"):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        name = str(path.relative_to(folder))
        if path.suffix in (".yaml", ".yml"):
            yield name, text, path
            seen.add(_canonical(text))
            continue
        for number, block in enumerate(_blocks(path.suffix, text, constants), 1):
            if (canonical := _canonical(block)) not in seen:
                seen.add(canonical)
                yield f"{name}#{number}", block, None


def _canonical(text: str) -> str:
    """The text of a config without its layout."""
    try:
        return json.dumps(yaml.safe_load(text), sort_keys=True, default=str)
    except (yaml.YAMLError, TypeError, ValueError):
        return text


def _blocks(suffix: str, text: str, constants: Mapping[str, Any]) -> Iterator[str]:
    if suffix == ".py":
        yield from _python_blocks(text, constants)
    elif suffix == ".md":
        yield from _fenced(text, constants)
    else:
        for cell in json.loads(text).get("cells", []):
            source = "".join(cell["source"])
            if cell["cell_type"] == "markdown":
                yield from _fenced(source, constants)
            elif source.startswith("%%writefile"):
                yield source.partition("\n")[2]
            else:
                yield from _python_blocks(re.sub(r"^\s*[!%].*$", "", source, flags=re.M), constants)


def _fenced(text: str, constants: Mapping[str, Any]) -> Iterator[str]:
    for indent, language, block in re.findall(r"^([ \t]*)```[ ]*(\w*)[^\n]*\n(.*?)^\1```", text, re.S | re.M):
        block = textwrap.dedent(block) if indent else block
        if language in ("python", "py", "python3"):
            yield from _python_blocks(block, constants)
        elif language in ("yaml", "yml", "", "json"):
            yield block
        else:
            yield from re.findall(r"<<\s*['\"]?(?:EOF|EOL)['\"]?[^\n]*\n(.*?)\n(?:EOF|EOL)", block, re.S)


def _python_blocks(text: str, constants: Mapping[str, Any]) -> Iterator[str]:
    """The texts and dictionaries of Python code that may be configs, as YAML."""
    try:
        tree = ast.parse(textwrap.dedent(text))
    except SyntaxError:
        return
    module = _Scope(dict(constants))
    module.read(tree.body)
    yield from _configs_of(tree.body, module)


def _configs_of(body: list[ast.stmt], scope: _Scope) -> Iterator[str]:
    """The configs of a block of code: what its variables hold in the end, then all other texts and dictionaries."""
    functions = [node for node in ast.walk(ast.Module(body, [])) if isinstance(node, ast.FunctionDef) and node.body]
    inside = {id(node) for function in functions for node in ast.walk(function) if node is not function}
    named = [node.value for node in scope.assignments]
    for value in scope.values_of_assignments():
        yield from _as_yaml(value)
    for statement in body:
        for node in ast.walk(statement):
            if (
                id(node) not in inside
                and isinstance(node, ast.Dict | ast.Constant | ast.JoinedStr)
                and node not in named
            ):
                yield from _as_yaml(scope.value(node))
    for function in functions:
        if id(function) in inside:
            continue
        for parameters in _runs(function, functions, scope):
            local = _Scope({**scope.names, **parameters})
            local.read(function.body)
            yield from _configs_of(function.body, local)


def _runs(function: ast.FunctionDef, functions: list[ast.FunctionDef], scope: _Scope) -> list[dict[str, Any]]:
    """The parameters of each run of a function: its own, or those of the tests that call it, which it has as well."""
    names = {argument.arg for argument in function.args.args}
    callers = [
        caller
        for caller in functions
        if any(
            isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == function.name
            for node in ast.walk(caller)
        )
    ]
    runs = _parameters(function, scope)
    runs += [
        {name: value for name, value in run.items() if name in names}
        for caller in callers
        for run in _parameters(caller, scope)
    ]
    return runs[1:] if len(runs) > 1 and not runs[0] else runs


def _parameters(function: ast.FunctionDef, scope: _Scope) -> list[dict[str, Any]]:
    """The parameters of each run of a test, from `pytest.mark.parametrize`; one without any for other functions."""
    runs: list[dict[str, Any]] = [{}]
    for decorator in function.decorator_list:
        if not isinstance(decorator, ast.Call) or not ast.unparse(decorator.func).endswith("mark.parametrize"):
            continue
        names, values = scope.value(decorator.args[0]), decorator.args[1] if len(decorator.args) > 1 else None
        names = re.split(r"[ ,]+", names) if isinstance(names, str) else names
        if not isinstance(names, list) or not isinstance(values, ast.List | ast.Tuple):
            continue
        cases = [_case(names, node, scope) for node in values.elts]
        runs = [{**run, **case} for run in runs for case in cases][:MAX_RUNS]
    return runs


def _case(names: list[str], node: ast.expr, scope: _Scope) -> dict[str, Any]:
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.param":
        parts = list(node.args)
    else:
        parts = list(node.elts) if isinstance(node, ast.Tuple | ast.List) and len(names) > 1 else [node]
    return {name: scope.value(part) for name, part in zip(names, parts, strict=False)}


def _as_yaml(value: Any) -> Iterator[str]:
    if isinstance(value, str) and "\n" in value:
        yield textwrap.dedent(value)
    elif isinstance(value, dict):
        try:
            yield yaml.safe_dump(value, sort_keys=False)
        except yaml.YAMLError:
            return


class _Scope:
    """The values that the code of a module or a function assigns to names, as far as they can be read.

    names: name → value.
    assignments: the assignments to names, in order.
    """

    def __init__(self, names: dict[str, Any]) -> None:
        self.names = names
        self.assignments: list[ast.Assign] = []

    def read(self, body: list[ast.stmt]) -> None:
        """Applies assignments to names and to keys of named dictionaries, those in blocks as well."""
        for statement in body:
            if isinstance(statement, ast.FunctionDef | ast.ClassDef):
                continue
            if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
                self._assign(statement.targets[0], statement)
            elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
                self._assign(statement.target, ast.Assign([statement.target], statement.value))
            for block in ("body", "orelse", "finalbody"):
                self.read(getattr(statement, block, []))

    def _assign(self, target: ast.expr, statement: ast.Assign) -> None:
        value = self.value(statement.value)
        if isinstance(target, ast.Name):
            self.names[target.id] = value
            self.assignments.append(statement)
        elif isinstance(target, ast.Subscript):
            section, key = self.value(target.value), self.value(target.slice)
            if isinstance(section, dict) and isinstance(key, str) and value is not _UNKNOWN:
                section[key] = value

    def values_of_assignments(self) -> Iterator[Any]:
        """The value of each name that was assigned here."""
        for name in dict.fromkeys(
            node.targets[0].id for node in self.assignments if isinstance(node.targets[0], ast.Name)
        ):
            yield self.names[name]

    def value(self, node: ast.expr) -> Any:
        """The value of an expression; _UNKNOWN if the code does not show it. Unknown parts of a value are left out."""
        match node:
            case ast.Constant():
                return node.value
            case ast.Name():
                return self.names.get(node.id, _UNKNOWN)
            case ast.Subscript():
                section, key = self.value(node.value), self.value(node.slice)
                return section.get(key, _UNKNOWN) if isinstance(section, dict) and isinstance(key, str) else _UNKNOWN
            case ast.List() | ast.Tuple():
                return [value for value in map(self.value, node.elts) if value is not _UNKNOWN]
            case ast.Dict():
                return self._dictionary(node)
            case ast.JoinedStr():
                parts = (
                    self.value(part.value if isinstance(part, ast.FormattedValue) else part) for part in node.values
                )
                return "".join("x" if part is _UNKNOWN else str(part) for part in parts)
            case ast.UnaryOp(op=ast.USub()):
                number = self.value(node.operand)
                return -number if isinstance(number, int | float) else _UNKNOWN
            case ast.BinOp(op=ast.Add()):
                left, right = self.value(node.left), self.value(node.right)
                return left + right if isinstance(left, str) and isinstance(right, str) else _UNKNOWN
            case ast.Call(func=ast.Name(id=function)) if function.endswith("_feature"):
                named = {keyword.arg: self.value(keyword.value) for keyword in node.keywords if keyword.arg}
                kind = function.removesuffix("_feature")
                feature = {
                    "name": kind,
                    "type": kind,
                    **{key: part for key, part in named.items() if part is not _UNKNOWN},
                }
                return feature
        return _UNKNOWN

    def _dictionary(self, node: ast.Dict) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in zip(node.keys, node.values, strict=True):
            value = self.value(value_node)
            if key_node is None:
                result |= value if isinstance(value, dict) else {}
                continue
            key = self.value(key_node)
            if isinstance(key, str) and value is not _UNKNOWN:
                result[key] = value
        return result


def _constants(path: Path) -> dict[str, Any]:
    """The constants of a module; empty without it."""
    if not path.exists():
        return {}
    scope = _Scope({})
    scope.read(ast.parse(path.read_text(encoding="utf-8")).body)
    return {name: value for name, value in scope.names.items() if isinstance(value, str | int | float)}
