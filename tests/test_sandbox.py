"""The sandbox, given good, wrong, foreign and hostile code."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from pipelines.sandbox import MAX_CHARS, MAX_MESSAGE, TestResult, extract_code, run_tests, split_tests

ADD_THREE = "def f(x):\n    return x + 3"


def test_every_test_is_run_and_the_first_failure_told() -> None:
    tests = ["assert f(1) == 4", "assert f(2) == 4", "assert f(0) == 3", "assert f(9) == 0"]
    assert run_tests(ADD_THREE, tests) == TestResult(2, 4, "assert f(2) == 4: got 5", unsupported=False)


def test_all_pass() -> None:
    assert run_tests(ADD_THREE, ["assert f(1) == 4", "assert f(-3) == 0"]) == TestResult(2, 2, "", False)


def test_no_tests_is_no_success() -> None:
    assert run_tests(ADD_THREE, []) == TestResult(0, 0, "there are no tests", unsupported=False)


FAILURES = {
    # code, test, what the message must hold
    "message of the assert": (ADD_THREE, "assert f(1) == 5, 'off by one'", "got 4"),
    "not an equality": (ADD_THREE, "assert f(1) < 2", "assert f(1) < 2: assert 4 < 2"),
    "no values to show": (ADD_THREE, "assert not f(1)", "assert not f(1): not true"),
    "assert in the code": (
        "def f(x):\n    assert x > 3",
        "assert f(1) is None",
        "AssertionError: assert 1 > 3",
    ),
    "exception": (
        "def f(x):\n    raise ValueError('bad x')",
        "assert f(1)",
        "assert f(1): ValueError: bad x",
    ),
    "exception without words": ("def f(x):\n    raise ValueError", "assert f(1)", "assert f(1): ValueError"),
    "last line of many": ("def f(x):\n    raise ValueError('a\\nb')", "assert f(1)", "ValueError: b"),
    "name unknown": ("def g(x): pass", "assert f(1)", "NameError: name 'f' is not defined"),
    "code fails before the tests": ("1 / 0\ndef f(x): return 1", "assert f(1)", "ZeroDivisionError"),
    "syntax": ("def f(:", "assert f(1)", "SyntaxError"),
    "return outside": ("return 1", "assert True", "SyntaxError: 'return' outside function (line 1)"),
    "backslash that would swallow the test": ("if False: \\", "assert False", "SyntaxError"),
    "quotes that would swallow the test": ("x = '''", "assert False\n'''", "SyntaxError"),
    "syntax of the test": (ADD_THREE, "assert f(1) ==", "assert f(1) ==: SyntaxError"),
    "zero byte": ("x = 1\0", "assert True", "SyntaxError"),
    "half a surrogate pair": ("x = '\ud800'", "assert True", "SyntaxError"),
    "half a surrogate pair in the test": ("x = 1", "assert '\udfff'", "SyntaxError"),
    "own NotImplementedError": ("def f(): raise NotImplementedError('later')", "assert f()", "later"),
    "own words": ("def f(): raise ValueError('not yet supported')", "assert f()", "ValueError: not yet"),
    "reads the keyboard": ("x = input()", "assert True", "name 'input' is not defined"),
    "leaves": ("def f(): exit()", "assert f()", "name 'exit' is not defined"),
    "foreign package": ("import numpy", "assert True", "No module named 'numpy'"),
    "attribute that does not exist": ("import math\nmath.squareroot(4)", "assert True", "squareroot"),
    "method that does not exist": ("'a'.uppercase()", "assert True", "no attribute 'uppercase'"),
    "import that does not exist": ("from math import squareroot", "assert True", "cannot import name"),
}


@pytest.mark.parametrize(("code", "test", "message"), FAILURES.values(), ids=FAILURES.keys())
def test_failed(code: str, test: str, message: str) -> None:
    result = run_tests(code, [test])
    assert (result.passed, result.total, result.unsupported) == (0, 1, False)
    assert message in result.message


UNSUPPORTED = {
    # code that CPython runs, test that it passes, what the message must hold
    "yield": ("def f():\n    yield 1", "assert list(f()) == [1]", "yield expressions"),
    "inheritance": ("class A(dict): pass", "assert A() == {}", "class inheritance"),
    "del": ("x = [1]\ndel x[0]", "assert x == []", "'del' statement"),
    "decorated method": ("class A:\n    @staticmethod\n    def f(): return 1", "assert A.f()", "decorators"),
    "module": ("import heapq", "assert heapq", "import heapq"),
    "module within a function": ("def f():\n    import string\n    return 1", "assert f()", "import string"),
    "name in a module": ("from collections import OrderedDict", "assert 1", "collections.OrderedDict"),
    "attribute of a module": ("import re\nx = re.VERBOSE", "assert x", "re.VERBOSE"),
    "method of a type": ("x = max(['b', 'A'], key=str.lower)", "assert x == 'b'", "str.lower"),
    "method as a value": ("d = {1: 2}", "assert max(d, key=d.get) == 1", "dict.get"),
    "builtin": ("def f(): return bytearray(1)", "assert f() == b'\\0'", "bytearray"),
    "function in re.sub": (
        "import re\ndef f(s): return re.sub('a', lambda m: 'b', s)",
        "assert f('a') == 'b'",
        "callable replacement",
    ),
    "next of a generator": (
        "x = next(n for n in [1, 2])",
        "assert x == 1",
        "next() of a generator expression",
    ),
    "__len__": (
        "class A:\n    def __len__(self): return 3",
        "assert len(A()) == 3",
        "special method __len__",
    ),
    "__bool__": (
        "class A:\n    def __bool__(self): return False",
        "assert not A()",
        "special method __bool__",
    ),
    "typing alias": ("from typing import List\nV = List[int]", "assert V", "typing"),
}


@pytest.mark.parametrize(("code", "test", "message"), UNSUPPORTED.values(), ids=UNSUPPORTED.keys())
def test_unsupported_is_told_apart_from_failed(code: str, test: str, message: str) -> None:
    exec(compile(f"{code}\n{test}", "<test>", "exec"), {})  # ours, harmless, and right
    result = run_tests(code, [test])
    assert (result.passed, result.unsupported) == (0, True)
    assert message in result.message


def test_a_wrong_answer_outweighs_what_the_sandbox_lacks() -> None:
    result = run_tests(ADD_THREE, ["import heapq\nassert f(1) == 4", "assert f(1) == 5", "assert f(0) == 3"])
    assert result == TestResult(1, 3, "assert f(1) == 5: got 4", unsupported=False)


HOSTILE = {
    "endless loop": "while True: pass",
    "endless loop that catches": "while True:\n  try:\n    while True: pass\n  except BaseException: pass",
    "endless recursion": "def f(n): return f(n + 1)\nf(0)",
    "recursion without an end to its finally": "def f():\n    try: f()\n    finally: f()\nf()",
    "list that grows": "x = []\nwhile True: x.append('a' * 1000)",
    "string that grows": "x = 'a'\nwhile True: x += x",
    "string of 10 GB": "x = 'a' * 10**10",
    "list of 10 TB": "x = [0] * 10**12",
    "range as a list": "x = list(range(10**12))",
    "sort of a huge range": "x = sorted(range(10**9), reverse=True)",
    "sum of a huge range": "x = sum(range(10**12))",
    "set of a huge range": "x = set(range(10**9))",
    "dict of huge ranges": "x = dict(zip(range(10**9), range(10**9)))",
    "split into millions": "x = ('a ' * 3 * 10**6).split()",
    "huge power": "x = 10**10**8",
    "huge shift": "x = 1 << 10**10",
    "squares without end": "x = 3\nwhile True: x = x * x",
    "factorial": "import math\nx = math.factorial(10**6)",
    "digits of a huge number": "x = str(10**1000000)",
    "permutations": "import itertools\nx = list(itertools.permutations(range(20)))",
    "print in a loop": "while True: print('x' * 1000)",
    "huge width in a format": "x = '{:>10000000000}'.format(1)",
    "huge width in a percent format": "x = '%0100000000d' % 1",
    "huge width in an f-string": "x = f'{1:>1000000000}'",
    "replacements that multiply": "x = ('a' * 10**6).replace('a', 'b' * 10**6)",
    "regex with nested repeats": "import re\nx = re.compile('(a{1,1000}){1,1000}')",
    "list that holds itself": "x = []\nx.append(x)\ny = []\ny.append(y)\nx == y",
    "list nested deeply": "x = []\nfor i in range(10**5): x = [x]\nhash((repr(x), x == x, x))",
    "huge exception": "raise ValueError('x' * 10**7)",
    "file": "open('/etc/passwd').read()",
    "file written": "open('/tmp/alfine-was-here', 'w').write('x')",
    "environment": "import os\nx = os.environ['HOME']",
    "shell": "import os\nos.system('ls')",
    "process": "import subprocess\nsubprocess.run(['ls'])",
    "network": "import socket\nsocket.socket()",
    "thread": "import threading",
    "import by name": "__import__('os').system('ls')",
    "way round through classes": "().__class__.__bases__[0].__subclasses__()",
    "end of the program": "raise SystemExit(0)",
    "interrupt": "raise KeyboardInterrupt",
    "parentheses": "(" * 9000 + ")" * 9000,
    "minus signs": "-" * 19_000 + "1",
    "attributes": "x" + ".a" * 9000,
    "many undefined names": "for i in range(10**5):\n    try: undefined\n    except NameError: pass",
    "environment of the process": "import os\nx = dict(os.environ)\nassert not x, x",
    "path to a file": "import pathlib\nx = pathlib.Path('/etc/passwd').read_text()",
    "listing of a folder": "import pathlib\nx = list(pathlib.Path('/').iterdir())",
    "file through a path": "import pathlib\npathlib.Path('/tmp/alfine-was-here').write_text('x')",
    "folder removed": "import shutil\nshutil.rmtree('/tmp/x')",
    "file by its number": "import os\nos.read(0, 10)",
    "web page": "import urllib.request\nurllib.request.urlopen('http://localhost')",
    "web page by another module": "import http.client\nhttp.client.HTTPConnection('localhost').connect()",
    "library of C": "import ctypes\nctypes.CDLL(None)",
    "pickle": "import pickle\npickle.loads(b'cos\\nsystem\\n(S\\'ls\\'\\ntR.')",
    "file from a text of code": "eval(\"open('/etc/passwd').read()\")",
    "shell from a text of code": "exec(\"import os\\nos.system('ls')\")",
    "code compiled": "compile('1', 'x', 'eval')",
    "frames": "import sys\nsys._getframe().f_back.f_globals",
    "modules that are loaded": "import sys\nsys.modules['os'].system('ls')",
    "module by its loader": "import importlib\nimportlib.import_module('os')",
    "globals of a function": "def f(): pass\nf.__globals__['__builtins__']",
    "code of a function": "def f(): pass\nf.__code__",
    "builtins": "__builtins__['open']('/etc/passwd')",
    "builtins by their module": "import builtins\nbuiltins.open('/etc/passwd')",
    "closure": "def f():\n    x = 1\n    def g(): return x\n    return g\nf().__closure__[0].cell_contents",
    "attribute by a format": "x = '{0.__class__.__mro__}'.format(1)\nassert 'object' not in x",
    "classes of an exception": "try: 1 / 0\nexcept Exception as e: e.__traceback__.tb_frame.f_globals",
    "garbage collector": "import gc\ngc.get_objects()",
    "signal": "import signal\nsignal.signal(2, print)",
    "own process killed": "import os\nos.kill(os.getpid(), 9)",
    "fork": "import os\nos.fork()",
    "endless sleep in a coroutine": "import asyncio\nasync def f():\n    while True: await asyncio.sleep(0)\nasyncio.run(f())",
    "decorator of itself": "def d(f): return d(f)\n@d\ndef g(): pass",
    "endless comparison": "class A:\n    def __eq__(self, other): return self == other\nassert A() == A()",
    "endless text of itself": "class A:\n    def __repr__(self): return repr(self)\nrepr(A())",
    "json nested deeply": "import json\njson.loads('[' * 10**5)",
    "toml that repeats": "import tomllib\ntomllib.loads('a = ' + '[' * 10**5)",
    "decimal with a million digits": "import decimal\ndecimal.getcontext().prec = 10**9\ndecimal.Decimal(1) / 3",
    "hash of much": "import hashlib\nwhile True: hashlib.sha256(b'a' * 10**6).digest()",
    "regex over much, again and again": "import re\nwhile True: re.findall('(a|b)+c', 'ab' * 10**5)",
    "product of long ranges": "import itertools\nfor x in itertools.product(range(10**4), repeat=4): pass",
}


@pytest.mark.parametrize("code", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_code_fails_in_time(code: str) -> None:
    start = time.perf_counter()
    result = run_tests(code, ["assert True"], seconds=0.2, memory_mb=16)
    assert time.perf_counter() - start < 1.0
    assert result.passed == 0
    assert 0 < len(result.message) <= MAX_MESSAGE


def test_of_the_machine_the_clock_alone_gets_through() -> None:
    seen = "import os, sys\nx = [os.getcwd(), sys.argv, sys.platform]"
    expected = ["/", ["main.py"], "monty"]
    assert run_tests(seen, [f"assert x == {expected}"]).passed == 1
    now = time.time()
    assert run_tests("import time", [f"assert {now - 5} < time.time() < {now + 60}"]).passed == 1
    for hidden in ("os.environ", "os.getenv('HOME')", "os.urandom(4)", "os.listdir('/')", "os.path.exists('/')", "os.getpid()"):
        assert run_tests(f"import os\nx = {hidden}", ["assert True"]).passed == 0, hidden


@pytest.mark.parametrize(
    ("code", "tests", "passed"),
    [
        ("def f(n):\n    while n: pass\n    return n", ["assert f(0) == 0", "assert f(1)", "assert f(1)"], 1),
        ("def f(n): return 'a' * n", ["assert f(1) == 'a'", "assert f(10**10)", "assert f(2) == 'aa'"], 1),
    ],
)
def test_an_overrun_within_a_test_ends_the_run_and_keeps_what_passed(code: str, tests: list[str], passed: int) -> None:
    start = time.perf_counter()
    result = run_tests(code, tests, seconds=0.2, memory_mb=16)
    assert time.perf_counter() - start < 1.0
    assert (result.passed, result.total, result.unsupported) == (passed, 3, False)
    assert "too" in result.message


def test_harmless_code_that_prints_and_sleeps_passes() -> None:
    code = "import time\ndef f(x):\n    print('x' * 10**6)\n    time.sleep(60)\n    return x"
    assert run_tests(code, ["assert f(1) == 1"]).passed == 1


def test_same_random_numbers_every_time() -> None:
    tests = ["import random\nassert random.random() == 0"]
    assert run_tests("", tests) == run_tests("", tests)


def test_huge_code_and_tests_are_refused_unread() -> None:
    huge = "x = 1\n" * MAX_CHARS
    for code, tests in ((huge, ["assert True"]), ("x = 1", [huge]), ("x = 1", ["assert True"] * MAX_CHARS)):
        result = run_tests(code, tests)
        assert (result.passed, result.total, result.unsupported) == (0, len(tests), False)
        assert str(MAX_CHARS) in result.message


def test_message_is_bounded() -> None:
    result = run_tests("def f(x): raise ValueError('y' * 999)", ["assert f(1) == 2  # " + "x" * 999])
    assert len(result.message) == MAX_MESSAGE
    assert "ValueError" in result.message


def test_out_of_memory_leaves_no_line_on_stderr() -> None:
    program = "from pipelines.sandbox import run_tests; run_tests(\"x = ('a ' * 10**7).split()\", ['assert x'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


EXTRACTIONS = {
    "fence with language": ("Sure:\n```python\ndef f():\n    return 1\n```\nDone.", "def f():\n    return 1"),
    "fence without language": ("```\nx = 1\n```", "x = 1"),
    "first of two": ("```py\na = 1\n```\nor\n```py\na = 2\n```", "a = 1"),
    "indented fence": (
        "1. So:\n   ```python\n   def f():\n       return 1\n   ```",
        "def f():\n    return 1",
    ),
    "fence cut off": ("Here:\n```python\ndef f():\n    return 1", "def f():\n    return 1"),
    "fence opened in the prompt": (
        "def f():\n    return 1\n```\nThis returns one.",
        "def f():\n    return 1",
    ),
    "prose around": (
        "Here is it.\n\ndef f():\n    return 1\n\nIt returns one, as asked.\nYou're welcome.",
        "def f():\n    return 1",
    ),
    "imports and decorators": (
        "The code:\nimport functools\n@functools.cache\ndef f():\n    return 1",
        "import functools\n@functools.cache\ndef f():\n    return 1",
    ),
    "prose that begins like an import": (
        "from here on, see\ndef f():\n    return 1",
        "def f():\n    return 1",
    ),
    "second function cut off": ("def f():\n    return 1\n\ndef g(x):\n    y = [1,", "def f():\n    return 1"),
    "constants above": ("N = 3\ndef f():\n    return N", "N = 3\ndef f():\n    return N"),
    "broken code": ("Code:\ndef f(:\n    return 1", "def f(:\n    return 1"),
    "line separator in a string": (
        "So:\ndef f():\n    return 'a\u2028b'\nok?",
        "def f():\n    return 'a\u2028b'",
    ),
    "carriage returns": ("So:\r\ndef f():\r\n    return 1\r\nHave fun!", "def f():\n    return 1"),
    "no code": ("I cannot do that.", "I cannot do that."),
    "nothing": ("", ""),
}


@pytest.mark.parametrize(("completion", "code"), EXTRACTIONS.values(), ids=EXTRACTIONS.keys())
def test_extract_code(completion: str, code: str) -> None:
    assert extract_code(completion) == code


def test_extract_code_from_a_text_that_makes_the_parser_stumble() -> None:
    start = time.perf_counter()
    for text in ("@a\n" * 500, "def f():\n" * 2000, "import x!\n" * 2000, "`" * 10**5, "x = (" * 10**5):
        extract_code(text)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("text", "tests"),
    [
        ("assert f(1)\nassert f(2)", ["assert f(1)", "assert f(2)"]),
        ("# two\n\nassert f(1)\n\nassert f(2)\n", ["# two\n\nassert f(1)", "assert f(2)"]),
        ("x = [1,\n     2]\nassert f(x)\nassert f(2)", ["x = [1,\n     2]\nassert f(x)", "assert f(2)"]),
        ("for x in (1, 2):\n    assert f(x)", ["for x in (1, 2):\n    assert f(x)"]),
        ("assert f(1); assert f(2)", ["assert f(1); assert f(2)"]),
        ("assert f(1)\r\nassert '\u2028'\r\n", ["assert f(1)", "assert '\u2028'"]),
        ("assert f(1\nassert f(2)", ["assert f(1", "assert f(2)"]),
        ("", []),
        ("# nothing", []),
    ],
)
def test_split_tests(text: str, tests: list[str]) -> None:
    assert split_tests(text) == tests
