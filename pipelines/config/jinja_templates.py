"""Jinja templates of a task (`template: jinja`): compiled in a sandbox, with a limit on the work of one rendering.

A template is a program that runs once per row. The sandbox keeps it from attributes and files; the limit keeps a loop,
a recursion or a product of texts from running forever.

A line that holds only blocks, such as `{% if input %}`, leaves nothing in the text. Every other line break stays, also
that after a block within a line (which `trim_blocks` would remove).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, Undefined, nodes
from jinja2.meta import find_undeclared_variables
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipelines.config.messages import shorten
from pipelines.storage.strict_json import NonTextValue, dump

ROW = "row"
"""The variable with all columns of a row, for names that are no identifiers: `row["question text"]`."""
MAX_WORK = 5_000_000
"""Steps of loops and calls, and characters and items of values that they make, in one rendering."""
_CALL_WORK = 25
"""Work of a call or a filter besides that of its values: a macro may call itself twice."""
_MAX_INTEGER = 1_000_000
_REMOVED_GLOBALS = ("lipsum", "cycler", "joiner")
_REMOVED_FILTERS = ("random", "pprint", "xmlattr", "urlize", "format")
_REPEATING = ("replace", "join")
"""Operations whose result may be as long as the product of the lengths of their arguments."""

_BLOCK_LINE = re.compile(
    r"^[ \t]*((?:(?:\{%(?:(?!%\}).)*|\{#(?:(?!#\}).)*)[%#]\}[ \t]*)+)(?:\n|\Z)", re.MULTILINE | re.DOTALL
)
"""A line of blocks and comments only."""


class TemplateValueError(ValueError):
    """A value or an operation in a template that cannot become text. The message says what to write."""


_work: ContextVar[list[int]] = ContextVar("_work")
"""The work that the present rendering may still do."""


def _spend(amount: int) -> None:
    budget = _work.get(None)
    if budget is None:
        return
    budget[0] -= amount
    if budget[0] < 0:
        raise TemplateValueError("it runs too long or makes too long a text; remove the loop, or shorten it")


def _size(value: Any) -> int:
    """The length of a text or a collection, or about that of an integer."""
    if isinstance(value, Sized) and not isinstance(value, Undefined | Context):
        return len(value)
    return value.bit_length() // 8 if isinstance(value, int) else 0


def _checked[T](value: T) -> T:
    _spend(1 + _size(value))
    return value


def _limited[T](values: Iterable[T]) -> Iterator[T]:
    for value in values:
        _spend(1)
        yield value


def _check_arguments(name: str, arguments: Iterable[Any]) -> None:
    """Raises TemplateValueError for arguments that could make a result of any size in one step."""
    arguments = list(arguments)
    for value in arguments:
        if isinstance(value, int) and abs(value) > _MAX_INTEGER:
            raise TemplateValueError(f"{name} gets the number {shorten(str(value), 20)}; write one up to a million")
    if name in _REPEATING:
        longest = sorted((_size(value) for value in arguments), reverse=True)[:2]
        _spend(math.prod(longest) if len(longest) == 2 else 0)
    _spend(_CALL_WORK + sum(_size(value) for value in arguments))


def _bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)  # keeps the mark of filters that take the context or the environment
    def bounded(*arguments: Any, **keywords: Any) -> Any:
        _check_arguments(name, [*arguments, *keywords.values()])
        return _checked(function(*arguments, **keywords))

    return bounded


def output_text(value: Any) -> Any:
    """The text of a value that a template prints: as in a `{column}` template, so that nothing of Python's notation
    (None, True, {'a': 1}) gets into a prompt. Raises TemplateValueError."""
    if isinstance(value, NonTextValue):
        raise TemplateValueError(f"a value {value.reason}")
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise TemplateValueError('it prints a missing value (null); write {{ x or "" }}, or {% if x %}…{% endif %}')
    if isinstance(value, float) and math.isinf(value):
        raise TemplateValueError("it prints infinity; write a number or a text")
    if isinstance(value, bool | int | float):
        return dump(value)
    if isinstance(value, str):
        if "\0" in value:
            raise TemplateValueError("it prints a NUL character, as UTF-16 and binary files have; remove it")
        return value
    if isinstance(value, Undefined):
        return value  # raises when it becomes text, with the name
    kind = "an object" if isinstance(value, Mapping) else "a list" if isinstance(value, list | tuple) else "no text"
    raise TemplateValueError(f'it prints {kind}; write {{{{ x | join("\\n") }}}}, {{{{ x | tojson }}}} or a part of it')


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with every loop, call, filter and product counted."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            undefined=StrictUndefined,
            finalize=output_text,
            optimized=False,
            autoescape=False,
            extensions=["jinja2.ext.loopcontrols"],
        )
        for name in _REMOVED_GLOBALS:
            del self.globals[name]
        for name in _REMOVED_FILTERS:
            del self.filters[name]
        self.filters["tojson"] = lambda value, indent=None: dump(value, indent=indent)  # not escaped for HTML
        self.filters = {name: _bounded_filter(name, function) for name, function in self.filters.items()}
        self.filters |= {"_limited": _limited, "_checked": _checked}

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and not (isinstance(right, int | float) and abs(right) <= 64):
            raise TemplateValueError("it has an exponent over 64; write a smaller one")
        if any(isinstance(value, int) and value.bit_length() > 1000 for value in (left, right)):
            raise TemplateValueError("it computes with an integer of more than 300 digits; write smaller ones")
        if operator == "*":
            sizes = [_size(value) if isinstance(value, str | list | tuple) else None for value in (left, right)]
            if any(size is not None for size in sizes):
                times = next((abs(v) for v in (left, right) if isinstance(v, int)), 1)
                _spend(sum(size or 0 for size in sizes) * times)
        if operator == "%" and isinstance(left, str):
            raise TemplateValueError('it formats with %; write {{ a ~ " " ~ b }}')
        return _checked(super().call_binop(context, operator, left, right))

    def call(self, __context: Any, __obj: Any, *arguments: Any, **keywords: Any) -> Any:
        name = str(getattr(__obj, "__name__", "a call"))
        owner = getattr(__obj, "__self__", None)
        _check_arguments(name, [owner, *arguments, *keywords.values()])
        if name in ("format", "format_map"):
            raise TemplateValueError('it calls format; write {{ a ~ " " ~ b }}')
        return _checked(super().call(__context, __obj, *arguments, **keywords))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Wraps what is repeated or grows without a call: the values of a loop, `~`, and blocks that set a variable."""
        tree = super()._parse(_without_block_lines(source), name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = _wrapped(loop.iter, "_limited")
        for block in tree.find_all(nodes.AssignBlock):
            block.filter = _wrapped(block.filter, "_checked")
        _wrap_concatenations(tree)
        return tree


def _without_block_lines(source: str) -> str:
    """The template without the line breaks of lines that hold only blocks. They move into the block, so that the
    numbers of the lines in messages stay."""

    def moved(line: re.Match[str]) -> str:
        blocks = line[1].rstrip(" \t")
        return f"{blocks[:-2]}\n{blocks[-2:]}" if line[0].endswith("\n") else blocks

    return _BLOCK_LINE.sub(moved, source)


def _ends_with_block_line(source: str) -> bool:
    return any(match.end() >= len(source.rstrip("\n")) for match in _BLOCK_LINE.finditer(source) if match.start())


def _wrapped(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno if node is not None else 1)


def _wrap_concatenations(node: Any) -> Any:
    """The tree with each `a ~ b` as `(a ~ b) | _checked`."""
    for field, value in node.iter_fields():
        if isinstance(value, nodes.Node):
            setattr(node, field, _wrap_concatenations(value))
        elif isinstance(value, list):
            setattr(node, field, [_wrap_concatenations(v) if isinstance(v, nodes.Node) else v for v in value])
    return _wrapped(node, "_checked") if isinstance(node, nodes.Concat) else node


@lru_cache(maxsize=1)
def _environment() -> _Environment:
    return _Environment()


@dataclass(frozen=True)
class JinjaTemplate:
    """A compiled template.

    Attributes:
        columns: the columns that it names, without those that it only uses if they are there.
        optional_columns: the columns that it asks `is defined` or gives a `default`.
        printed_columns: the columns that it prints as they are, `{{ column }}`.
    """

    source: str
    columns: tuple[str, ...]
    optional_columns: tuple[str, ...]
    printed_columns: tuple[str, ...]

    def render(self, fields: Mapping[str, Any]) -> str:
        """The text for the columns of a row. Raises TemplateValueError for what cannot be rendered."""
        token = _work.set([MAX_WORK])
        try:
            template = _compile(self.source)
            parts = []
            for part in template.generate(**{ROW: dict(fields), **fields}):
                _spend(1 + len(part))
                parts.append(str(part))
            text = "".join(parts)
            # The line break before a last line of blocks belongs to the layout of the template.
            return text.removesuffix("\n") if _ends_with_block_line(self.source) else text
        except TemplateValueError:
            raise
        except RecursionError:
            raise TemplateValueError("it calls itself without an end") from None
        except Exception as error:  # a template is a program and can raise anything
            details = shorten(" ".join(str(error).split()) or type(error).__name__, 200)
            raise TemplateValueError(f"it fails ({details})") from None
        finally:
            _work.reset(token)


@lru_cache(maxsize=256)
def _compile(source: str) -> Any:
    return _environment().from_string(source)


@lru_cache(maxsize=256)
def jinja_template(source: str) -> JinjaTemplate:
    """Compiles a template. Raises ValueError with the line in the template for one that is not valid."""
    environment = _environment()
    try:
        tree = ImmutableSandboxedEnvironment.parse(environment, source)
        _refuse_includes(tree)
        undeclared = find_undeclared_variables(tree)
        _compile(source)
    except TemplateSyntaxError as error:
        raise ValueError(f"line {error.lineno} of the template: {_sentence(error)}") from None
    except (TemplateError, RecursionError, OverflowError) as error:
        raise ValueError(f"the template cannot be compiled ({_sentence(error)})") from None
    known = {ROW, *environment.globals}
    optional = {name for name in undeclared if name in _tested_names(tree)}
    names = [name for name in _names_in_order(tree) if name in undeclared and name not in known]
    printed = [
        node.name for output in tree.find_all(nodes.Output) for node in output.nodes if isinstance(node, nodes.Name)
    ]
    return JinjaTemplate(
        source,
        tuple(dict.fromkeys(name for name in names if name not in optional)),
        tuple(dict.fromkeys(name for name in names if name in optional)),
        tuple(dict.fromkeys(name for name in printed if name in undeclared)),
    )


def _sentence(error: Exception) -> str:
    text = " ".join(str(getattr(error, "message", None) or error).split()).removesuffix(".") or "nested too deeply"
    return shorten(text[0].lower() + text[1:], 200)


def _refuse_includes(tree: nodes.Template) -> None:
    for kind in (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends):
        if node := tree.find(kind):
            raise TemplateSyntaxError("a template cannot read others; write their text into it", node.lineno)


def _names_in_order(tree: nodes.Template) -> Iterator[str]:
    for node in tree.find_all(nodes.Name):
        if node.ctx == "load":
            yield node.name


def _tested_names(tree: nodes.Template) -> set[str]:
    """The names that the template asks `is defined` or gives a default."""
    tests = [node.node for node in tree.find_all(nodes.Test) if node.name in ("defined", "undefined")]
    filters = [node.node for node in tree.find_all(nodes.Filter) if node.name in ("default", "d")]
    return {node.name for node in [*tests, *filters] if isinstance(node, nodes.Name)}
