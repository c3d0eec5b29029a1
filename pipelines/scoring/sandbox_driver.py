"""The program inside the sandbox. alfine never imports this file: the sandbox's own Python runs its text.

It runs the code under test, then each test in the code's namespace, and sends each outcome to the host. The code may
change every module, so this program uses its own copy of the builtins, and reads what it needs from modules before the
code runs.
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
namespace = vars(module)

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
UNSEEN_OBJECT = object()
asserts, failed = 0, ""


def send(kind: bytes, text: str = "") -> None:
    call(key + kind + text[:600].encode("utf-8", "replace"))


def equals_everything(value: object) -> bool:
    """Whether `value`, or one of its elements, claims to be equal to an object that the code cannot know."""
    kind = type(value)
    if kind in SCALARS:
        return False
    if kind is dict:
        return any(map(equals_everything, value.values()))  # type: ignore[attr-defined]
    if kind in CONTAINERS:
        return any(map(equals_everything, value))  # type: ignore[call-overload]
    return bool(value == UNSEEN_OBJECT)


def any_equals_everything(*values: object) -> bool:
    try:
        return any(map(equals_everything, values))
    except Exception:  # an array, whose comparison has no truth value
        return False


def describe_value(value: object) -> str:
    try:
        return f"got {value!r}"
    except Exception:
        return "not true"


def compare(left: object, name: str, right: object) -> bool:
    """Evaluates the comparison in an assert of a test, such as `assert left == right`."""
    global asserts, failed
    asserts += 1
    if not OPERATORS[name](left, right):
        failed = describe_value(left)
        return False
    if name in ("==", "in") and any_equals_everything(left, right):
        failed = "got an object that equals everything"
        return False
    return True


def check(value: object) -> bool:
    """Evaluates the value in `assert value` of a test."""
    global asserts, failed
    asserts += 1
    if value:
        return True
    failed = "not true" if value is False else describe_value(value)
    return False


def counted(function: object = None) -> object:
    """Counts an assert outside of the tests: a call of a library function such as `numpy.testing.assert_allclose`,
    which is returned, or an expected exception."""
    global asserts
    asserts += 1
    return function


def describe_error(error: BaseException) -> str:
    name = type.__dict__["__name__"].__get__(type(error))
    try:
        lines = str(error).splitlines()
    except BaseException:
        lines = []
    return f"{name}: {lines[-1]}" if lines else name


def enable_asyncio() -> None:
    """Replaces the socket through which asyncio's loop wakes itself: the sandbox has no sockets, and without threads
    nothing needs to wake it."""
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
    """Runs `source` and sends the outcome to the host: passed, failed with a message, or out of memory."""
    global failed
    failed = ""
    builtin_names.update(originals)
    namespace.update({prefix + "compare": compare, prefix + "check": check, prefix + "counted": counted})
    try:
        exec(compile(source, name, "exec", dont_inherit=True), namespace)
    except BaseException as error:
        settrace(None), setprofile(None)
        if isinstance(error, MemoryError):
            send(kind + b"m")
        else:
            send(kind + b"f", failed if failed and type(error) is AssertionError else describe_error(error))
        return False
    settrace(None), setprofile(None)
    send(kind + b"p")
    return True


if "asyncio" in code or "asyncio" in str(tests):
    enable_asyncio()
if run(code, "<completion>", b"c"):
    asserts = 0
    for index, test in enumerate(tests, start=1):
        run(test, f"<test {index}>", b"t")
    send(b"a", str(asserts))
