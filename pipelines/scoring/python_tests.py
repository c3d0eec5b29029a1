"""The unit tests of a row: Python code in the column `tests`, split into single tests. Nothing is executed here."""

from __future__ import annotations

import ast
import json
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.errors import DataError
from pipelines.scoring.code_extraction import parse_python, split_lines

_WRITE = "write lines like `assert f(1) == 2`"


def split_tests(text: str) -> list[str]:
    """Splits tests into one string per top-level `assert`, each with the statements before it. Text that does not parse
    is split into lines."""
    tree, lines = parse_python(text), split_lines(text)
    if not isinstance(tree, ast.Module):
        return [line for line in lines if line.strip()]
    tests, begin = [], 0
    for node in tree.body:
        end = node.end_lineno or node.lineno
        if (isinstance(node, ast.Assert) or node is tree.body[-1]) and end > begin:
            tests.append("\n".join(lines[begin:end]).strip("\n"))
            begin = end
    return tests


# --- the tests of a row ---


def row_tests(row: Mapping[str, Any]) -> list[str]:
    """The tests of a row's column `tests`: Python code, or a list of such texts, which a CSV cell may hold as text.

    Calls are added for test functions that are never called: `test_x()`, the methods of a test class, and
    `check(candidate)` with the function that the row's column `entry_point` names. Raises DataError, with one line, for
    tests that assert nothing.
    """
    text = "\n".join(_texts(row))
    tree = parse_python(text)
    if not isinstance(tree, ast.Module):
        raise DataError(f"the tests are not Python (line {tree}); {_WRITE}")
    body = list(_without_test_runner(tree.body))
    _reject_ineffective_tests(body)
    body += _calls(body, row.get("entry_point"))
    if not any(_asserts(node, _asserting_names(body)) for node in body if not isinstance(node, _DEFINITIONS)):
        raise DataError(f"the tests assert nothing; {_WRITE}")
    if not _undefined_names(body):
        raise DataError(f"the tests name nothing that the code under test defines; {_WRITE}")
    if body == tree.body:
        return split_tests(text)
    return split_tests(ast.unparse(ast.Module(body, [])))


_KINDS = {
    type(None): "nothing",
    float: "a number",
    int: "a number",
    dict: "an object",
    list: "a list of something else",
}
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def _texts(row: Mapping[str, Any]) -> list[str]:
    """The texts of the row's tests. A list that is stored as text (JSON or a Python literal) is parsed."""
    value = row.get("tests")
    if isinstance(value, str):
        value = _parse_list(value)
    if isinstance(value, str) and value.strip():
        return [value]
    if isinstance(value, list | tuple) and value and all(isinstance(item, str) and item.strip() for item in value):
        return list(value)
    misnamed = next((name for name in ("test", "test_list", "unit_tests") if name in row and "tests" not in row), None)
    problem = (
        f"the row has {misnamed!r}: rename it"
        if misnamed
        else f"this one holds {_KINDS.get(type(value), 'something else')}"
    )
    raise DataError(
        "metric unit_tests needs a column `tests` with at least one assert, as a list of strings or as lines of one "
        f"string; {problem}"
    )


def _parse_list(text: str) -> Any:
    """The value of a JSON or Python literal; any other text unchanged."""
    for parse in (json.loads, ast.literal_eval):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return text


def _without_test_runner(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yields the statements, including those under `if __name__ == "__main__":`, without calls of a test runner."""
    for node in body:
        if isinstance(node, ast.If) and "__name__" in _names(node.test, ast.Load):
            yield from _without_test_runner(node.body)
        elif not (isinstance(node, ast.Expr) and re.match(r"(unittest|pytest)\.main\(|main\(\)", ast.unparse(node))):
            yield node


def _reject_ineffective_tests(body: list[ast.stmt]) -> None:
    """Raises DataError for statements that cannot fail, such as a bare comparison, and for imports of pytest."""
    for node in body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Compare | ast.BoolOp | ast.UnaryOp | ast.Name):
            raise DataError("a line of the tests is a bare expression, such as `f(1) == 2`; write `assert` before it")
    for inner in ast.walk(ast.Module(body, [])):
        if isinstance(inner, ast.Assert) and isinstance(inner.test, ast.Tuple) and inner.test.elts:
            raise DataError(
                "an assert in parentheses, such as `assert (f(1) == 2, 'wrong')`, never fails; remove the parentheses"
            )
        modules = [alias.name for alias in inner.names] if isinstance(inner, ast.Import) else []
        if isinstance(inner, ast.ImportFrom):
            modules = [inner.module or ""]
        if any(module.split(".")[0] == "pytest" for module in modules):
            raise DataError(
                "the tests import pytest, which the sandbox does not have; write `assert`, and for an expected error "
                "try: f(-1) / except ValueError: pass / else: assert False"
            )


def _asserting_names(body: list[ast.stmt]) -> set[str]:
    """The functions and classes that contain an assert, or call one that does."""
    names: set[str] = set()
    while True:
        asserting = {
            node.name
            for node in body
            if isinstance(node, _DEFINITIONS) and any(_asserts(inner, names) for inner in node.body)
        }
        if asserting <= names:
            return names
        names |= asserting


def _asserts(node: ast.AST, names: set[str]) -> bool:
    """Whether a statement asserts something, directly or through one of the functions `names`."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Assert) and _can_fail(inner.test):
            return True
        if isinstance(inner, ast.Call) and (_called(inner).startswith("assert") or _called(inner) in names):
            return True
        if isinstance(inner, ast.Name) and inner.id in names:
            return True
    return False


def _called(call: ast.Call) -> str:
    """The name of the called function: `close` in `close(…)` and in `testing.close(…)`."""
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def _can_fail(test: ast.expr) -> bool:
    """Whether an assert of this expression depends on any name, or always fails (`assert False`)."""
    if isinstance(test, ast.Constant):
        return not test.value
    if isinstance(test, ast.Lambda | ast.GeneratorExp | ast.JoinedStr):
        return False
    return bool(_names(test, ast.Load))


def _calls(body: list[ast.stmt], entry_point: Any) -> list[ast.stmt]:
    """Calls of the test functions and classes that the tests do not call themselves. Raises DataError if the arguments
    of a call cannot be inferred."""
    asserting = _asserting_names(body)
    calls = []
    for node in body:
        if not isinstance(node, _DEFINITIONS) or node.name not in asserting:
            continue
        if any(node.name in _names(statement, ast.Load) for statement in body if statement is not node):
            continue
        if isinstance(node, ast.ClassDef):
            calls += _class_calls(node)
        else:
            calls.append(_function_call(node, entry_point))
    return ast.parse("\n".join(calls)).body


def _function_call(node: ast.FunctionDef | ast.AsyncFunctionDef, entry_point: Any) -> str:
    arguments = node.args
    required = [argument.arg for argument in [*arguments.posonlyargs, *arguments.args]]
    required = required[: len(required) - len(arguments.defaults)]
    required += [
        argument.arg
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        if default is None
    ]
    head = f"def {node.name}({', '.join(required)})"
    call = "__import__('asyncio').run({})" if isinstance(node, ast.AsyncFunctionDef) else "{}"
    if not required:
        return call.format(f"{node.name}()")
    if len(required) > 1:
        raise DataError(f"{head} is never called; add the line that calls it to the tests")
    if not isinstance(entry_point, str) or not entry_point.isidentifier():
        raise DataError(
            f"{head} is never called; add a column `entry_point` with the name of the function that it tests, "
            f"or the line `{node.name}(NAME)` to the tests"
        )
    return call.format(f"{node.name}({entry_point})")


def _class_calls(node: ast.ClassDef) -> list[str]:
    methods = [inner.name for inner in node.body if isinstance(inner, ast.FunctionDef)]
    cases = [name for name in methods if name.startswith("test")]
    unittest = any(ast.unparse(base).endswith("TestCase") for base in node.bases)
    if not cases or (not unittest and {"setup_method", "setup_class"} & {*methods}):
        raise DataError(f"class {node.name} is never used; write its asserts without a class")
    first = [f"{node.name}.setUpClass()"] if "setUpClass" in methods else []
    return first + [f"{node.name}({name!r}).debug()" if unittest else f"{node.name}().{name}()" for name in cases]


def _undefined_names(body: list[ast.stmt]) -> set[str]:
    """The names that the tests use but do not define: the code under test must define them.

    They include builtins, since the tested function may have the name of a builtin, and names that are imported from
    modules outside of the standard library.
    """
    defined: set[str] = set()
    for node in ast.walk(ast.Module(body, [])):
        named = [] if isinstance(node, ast.alias) else [getattr(node, "name", None), getattr(node, "arg", None)]
        defined |= {name for name in named if isinstance(name, str)}
        if isinstance(node, ast.Import):
            defined |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in sys.stdlib_module_names:
            defined |= {alias.asname or alias.name for alias in node.names}
    module = ast.Module(body, [])
    return _names(module, ast.Load) - _names(module, ast.Store) - defined


def _names(node: ast.AST, context: type[ast.expr_context]) -> set[str]:
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name) and isinstance(inner.ctx, context)}


# --- instrumentation ---


def instrument(test: str, prefix: str) -> str:
    """The test with instrumented asserts, which are counted and report the compared values on failure:
    `assert f(1) == 2` becomes `assert PREFIXcompare(f(1), '==', 2)`. A test that does not parse is unchanged."""
    tree = parse_python(test)
    if not isinstance(tree, ast.Module):
        return test
    try:
        return ast.unparse(ast.fix_missing_locations(_Instrument(prefix).visit(tree)))
    except RecursionError:
        return test


class _Instrument(ast.NodeTransformer):
    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def visit_Assert(self, node: ast.Assert) -> ast.Assert:
        countable, test = _can_fail(node.test) and not isinstance(node.test, ast.Constant), node.test
        self.generic_visit(node)
        if countable and isinstance(test, ast.Compare) and len(test.ops) == 1:
            node.test = self._call(
                "compare", test.left, ast.Constant(_OPERATORS[type(test.ops[0])]), test.comparators[0]
            )
        elif countable:
            node.test = self._call("check", node.test)
        return node

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        if _called(node).startswith("assert"):
            node.func = self._call("counted", node.func)
        return node

    def visit_Try(self, node: ast.Try) -> ast.Try:
        """Counts an expected exception as an assert if the test asserts that it is raised."""
        expects = any(_asserts(inner, set()) for inner in [*node.body, *node.orelse])
        self.generic_visit(node)
        for handler in node.handlers:
            if expects and not _catches_asserts(handler):
                handler.body.insert(0, ast.Expr(self._call("counted")))
        return node

    def _call(self, name: str, *arguments: ast.expr) -> ast.Call:
        return ast.Call(ast.Name(self.prefix + name, ast.Load()), list(arguments), [])


_OPERATORS = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Is: "is",
    ast.IsNot: "is not",
    ast.In: "in",
    ast.NotIn: "not in",
}


def _catches_asserts(handler: ast.ExceptHandler) -> bool:
    caught = {"BaseException"} if handler.type is None else _names(handler.type, ast.Load)
    return bool(caught & {"AssertionError", "Exception", "BaseException"})
