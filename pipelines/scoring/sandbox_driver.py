"""The program inside the sandbox. alfine never imports this file: the sandbox's own Python runs its text.

It runs the code under test, then each test in the code's namespace, and tells the host how each ended. The code may
change every module, so this text has builtins of its own (a copy made before), and what it needs of a module it fetches
first.
"""

import builtins
import marshal
import operator
import sys
import types

from _host import call  # type: ignore[import-not-found]

key, prefix, code, tests = marshal.loads(call(b""))
builtin_names = vars(builtins)
originals = dict(builtin_names)
settrace, setprofile = sys.settrace, sys.setprofile
module = types.ModuleType("solution")
sys.modules["solution"] = module
space = vars(module)

OPERATORS = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "is": operator.is_,
    "is not": operator.is_not,
    "in": lambda left, right: left in right,
    "not in": lambda left, right: left not in right,
}
SCALARS = {int, float, complex, str, bytes, bool, type(None), range, type, types.FunctionType}
CONTAINERS = {list, tuple, set, frozenset}
STRANGER = object()
asserts, failed = 0, ""


def tell(kind: bytes, text: str = "") -> None:
    call(key + kind + text[:600].encode("utf-8", "replace"))


def equals_all(value: object) -> bool:
    """Whether `value`, or one of its elements, claims to equal an object that it has never seen."""
    kind = type(value)
    if kind in SCALARS:
        return False
    if kind is dict:
        return any(map(equals_all, value.values()))  # type: ignore[attr-defined]
    if kind in CONTAINERS:
        return any(map(equals_all, value))  # type: ignore[call-overload]
    return bool(value == STRANGER)


def forged(*values: object) -> bool:
    try:
        return any(map(equals_all, values))
    except Exception:  # an array, whose comparison has no truth value
        return False


def shown(value: object) -> str:
    try:
        return f"got {value!r}"
    except Exception:
        return "not true"


def compare(left: object, name: str, right: object) -> bool:
    """`assert left == right` of a test, or another comparison."""
    global asserts, failed
    asserts += 1
    if not OPERATORS[name](left, right):
        failed = shown(left)
        return False
    if name in ("==", "in") and forged(left, right):
        failed = "got an object that equals everything"
        return False
    return True


def check(value: object) -> bool:
    """`assert value` of a test."""
    global asserts, failed
    asserts += 1
    if value:
        return True
    failed = "not true" if value is False else shown(value)
    return False


def counted(function: object = None) -> object:
    """A function of a library that asserts, such as `numpy.testing.assert_allclose`; or an exception that came as
    expected."""
    global asserts
    asserts += 1
    return function


def described(error: BaseException) -> str:
    name = type.__dict__["__name__"].__get__(type(error))
    try:
        lines = str(error).splitlines()
    except BaseException:
        lines = []
    return f"{name}: {lines[-1]}" if lines else name


def enable_asyncio() -> None:
    """asyncio's loop wakes itself through a socket, which there is none of; without threads nothing needs to wake
    it."""
    import asyncio.selector_events
    import selectors
    import time

    class Selector(selectors.SelectSelector):
        def select(self, timeout: float | None = None) -> list:
            time.sleep(timeout or 0)
            return []

    selectors.DefaultSelector = Selector  # type: ignore[assignment,misc]
    loop = asyncio.selector_events.BaseSelectorEventLoop
    loop._make_self_pipe = loop._close_self_pipe = lambda self: None  # type: ignore[attr-defined]


def run(source: str, name: str, kind: bytes) -> bool:
    """Runs `source` and tells the host: passed, failed with a message, or out of memory."""
    global failed
    failed = ""
    builtin_names.update(originals)
    space.update({prefix + "compare": compare, prefix + "check": check, prefix + "counted": counted})
    try:
        exec(compile(source, name, "exec", dont_inherit=True), space)
    except BaseException as error:
        settrace(None), setprofile(None)
        if isinstance(error, MemoryError):
            tell(kind + b"m")
        else:
            tell(kind + b"f", failed if failed and type(error) is AssertionError else described(error))
        return False
    settrace(None), setprofile(None)
    tell(kind + b"p")
    return True


if "asyncio" in code or "asyncio" in str(tests):
    enable_asyncio()
if run(code, "<completion>", b"c"):
    asserts = 0
    for number, test in enumerate(tests, start=1):
        run(test, f"<test {number}>", b"t")
    tell(b"a", str(asserts))
