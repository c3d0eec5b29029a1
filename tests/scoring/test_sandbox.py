"""The sandbox with correct, wrong and hostile code. The limits are lower where an attack would reach them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.scoring import sandbox, wasm, wasm_host
from pipelines.scoring.sandbox import MAX_CHARS, MAX_MESSAGE, TestResult, run_tests

pytestmark = pytest.mark.usefixtures("compiled_sandbox")

ADD_THREE = "def f(x):\n    return x + 3"
LIBRARY = "/usr/local/lib/python315.zip"


@pytest.fixture
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lowers the limits: a thirtieth of the instructions and calls, half of the memory."""
    sandbox._cached_result.cache_clear()
    monkeypatch.setattr(wasm, "INSTRUCTIONS", wasm.INSTRUCTIONS // 30)
    monkeypatch.setattr(wasm_host, "HOST_CALLS", wasm_host.HOST_CALLS // 30)
    monkeypatch.setattr(wasm, "MEMORY", wasm.MEMORY // 2)
    yield
    sandbox._cached_result.cache_clear()


def test_every_test_is_run_and_the_first_failure_named() -> None:
    tests = ["assert f(1) == 4", "assert f(2) == 4", "assert f(0) == 3", "assert f(9) == 0"]
    assert run_tests(ADD_THREE, tests) == TestResult(2, 4, "assert f(2) == 4: got 5", unsupported=False)


def test_all_pass() -> None:
    assert run_tests(ADD_THREE, ["assert f(1) == 4", "assert f(-3) == 0"]) == TestResult(2, 2, "", False)


def test_no_tests_do_not_pass() -> None:
    assert run_tests(ADD_THREE, []) == TestResult(0, 0, "there are no tests", unsupported=False)


@pytest.mark.parametrize(
    "tests",
    [
        ["f(1) == 5"],
        ["x = 1", "f(x)"],
        ["def check(candidate):\n    assert candidate(1) == 5"],
        ["assert True"],
        ["for x in []:\n    assert f(x)"],
        ["try:\n    f(1)\nexcept ValueError:\n    assert False"],
    ],
)
def test_tests_that_run_no_assert_do_not_pass(tests: list[str]) -> None:
    assert run_tests(ADD_THREE, tests) == TestResult(0, len(tests), "the tests ran no assert", False)


FAILURES = {
    # code, test, a part of the message
    "message of the assert": (ADD_THREE, "assert f(1) == 5, 'off by one'", "assert f(1) == 5, 'off by one': got 4"),
    "not an equality": (ADD_THREE, "assert f(1) < 2", "assert f(1) < 2: got 4"),
    "no values to show": (ADD_THREE, "assert not f(1)", "assert not f(1): not true"),
    "nothing returned": ("def f(x): pass", "assert f(1)", "assert f(1): got None"),
    "assert in the code": ("def f(x):\n    assert x > 3", "assert f(1) is None", "AssertionError"),
    "exception": ("def f(x):\n    raise ValueError('bad x')", "assert f(1)", "assert f(1): ValueError: bad x"),
    "exception without words": ("def f(x):\n    raise ValueError", "assert f(1)", "assert f(1): ValueError"),
    "last line of many": ("def f(x):\n    raise ValueError('a\\nb')", "assert f(1)", "ValueError: b"),
    "exception without a text": (
        "class E(Exception):\n    def __str__(self): raise KeyError\ndef f(x): raise E",
        "assert f(1)",
        "assert f(1): E",
    ),
    "value without a text": (
        "class A:\n    def __repr__(self): raise KeyError\ndef f(x): return A()",
        "assert f(1) == 2",
        "not true",
    ),
    "name unknown": ("def g(x): pass", "assert f(1)", "NameError: name 'f' is not defined"),
    "code fails before the tests": ("1 / 0\ndef f(x): return 1", "assert f(1)", "ZeroDivisionError"),
    "syntax": ("def f(:", "assert f(1)", "SyntaxError"),
    "return outside": ("return 1", "assert True", "SyntaxError: 'return' outside function"),
    "backslash that would swallow the test": ("if False: \\", "assert False", "SyntaxError"),
    "quotes that would swallow the test": ("x = '''", "assert False\n'''", "SyntaxError"),
    "syntax of the test": (ADD_THREE, "assert f(1) ==", "assert f(1) ==: SyntaxError"),
    "zero byte": ("x = 1\0", "assert True", "SyntaxError"),
    "half a surrogate pair": ("x = '\ud800'", "assert True", "UnicodeEncodeError"),
    "half a surrogate pair in the test": ("x = 1", "assert '\udfff'", "UnicodeEncodeError"),
    "reads the keyboard": ("x = input()", "assert True", "EOFError"),
    "leaves": ("def f(): exit()", "assert f()", "SystemExit"),
    "foreign package": ("import no_such_package", "assert True", "No module named 'no_such_package'"),
    "expected exception that does not come": (
        "def f(x): return x",
        "try:\n    f(1)\nexcept ValueError:\n    pass\nelse:\n    assert False, 'no error'",
        "AssertionError: no error",
    ),
}


@pytest.mark.parametrize(("code", "test", "message"), FAILURES.values(), ids=FAILURES.keys())
def test_failed(code: str, test: str, message: str) -> None:
    result = run_tests(code, [test])
    assert (result.passed, result.total, result.unsupported) == (0, 1, False)
    assert message in result.message


PYTHON = {
    # features that another interpreter may lack, each with an assert that passes in CPython
    "generators": ("def f():\n    yield 1", "assert list(f()) == [1]"),
    "inheritance": ("class A(dict): pass", "assert A() == {}"),
    "del": ("x = [1]\ndel x[0]", "assert x == []"),
    "static methods": ("class A:\n    @staticmethod\n    def f(): return 1", "assert A.f()"),
    "heapq": ("import heapq\nx = [3, 1, 2]\nheapq.heapify(x)", "assert heapq.heappop(x) == 1"),
    "Counter.get": (
        "from collections import Counter\nx = Counter('aab')",
        "assert x.get('a') == 2 and x.get('z') is None",
    ),
    "defaultdict.get": ("from collections import defaultdict\nx = defaultdict(int)", "assert x.get(1) is None"),
    "list += tuple": ("x = [1]\nx += (2, 3)", "assert x == [1, 2, 3]"),
    "groups in re.sub": ("import re\nx = re.sub('(a)(b)', r'\\1_\\2', 'ab')", "assert x == 'a_b'"),
    "order of small integers in a set": ("x = list({3, 1, 2})", "assert x == [1, 2, 3]"),
    "lru_cache that goes deep": (
        "import functools\n@functools.lru_cache\ndef f(n): return n if n < 2 else f(n - 1) + f(n - 2)",
        "assert f(450) % 10 == 0",
    ),
    "sort that recurses": (
        "def f(n): return sorted([n], key=lambda k: f(k - 1) if k else 0)",
        "assert f(400) == [400]",
    ),
    "nested lists": ("x = []\nfor _ in range(900): x = [x]", "assert len(repr(x)) == 1802"),
    "list that holds itself": (
        "x, y = [], []\nx.append(x)\ny.append(y)\ntry: x == y\nexcept RecursionError: z = 1",
        "assert z == 1",
    ),
    "numpy": ("import numpy as np\nx = np.arange(3)", "assert (x == np.array([0, 1, 2])).all() and x.sum() == 3"),
    "numpy.testing": (
        "import numpy\ndef f(): return numpy.ones(2)",
        "import numpy\nnumpy.testing.assert_allclose(f(), [1, 1])",
    ),
    "asyncio": (
        "import asyncio\nasync def g(n):\n    await asyncio.sleep(n)\n    return n\nasync def f():\n    return await asyncio.gather(g(9), g(5))",
        "import asyncio\nassert asyncio.run(f()) == [9, 5]",
    ),
    "dataclass with texts as types": (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    x: int",
        "assert A(1) == A(1) and A(1) != A(2)",
    ),
    "named tuple": ("from collections import namedtuple\nP = namedtuple('P', 'x y')", "assert P(1, 2) == (1, 2)"),
    "own equality": (
        "class A:\n    def __init__(self, x): self.x = x\n    def __eq__(self, other): return self.x == getattr(other, 'x', other)",
        "assert A(1) == 1",
    ),
    "unittest": (
        "def f(x): return x + 1",
        "import unittest\nclass T(unittest.TestCase):\n    def test_f(self):\n        self.assertEqual(f(1), 2)\nT('test_f').debug()",
    ),
    "expected exception": (
        "def f(x): raise ValueError",
        "try:\n    f(1)\nexcept ValueError:\n    pass\nelse:\n    assert False",
    ),
    "time zones": (
        "import datetime, zoneinfo\nx = datetime.datetime(2024, 7, 1, tzinfo=zoneinfo.ZoneInfo('Europe/Berlin'))",
        "assert x.utcoffset() == datetime.timedelta(hours=2)",
    ),
    "builtin of the same name": ("def sum(x): return 'own'", "assert sum([1]) == 'own'"),
}


@pytest.mark.parametrize(("code", "test"), PYTHON.values(), ids=PYTHON.keys())
def test_code_that_passes_in_cpython_passes(code: str, test: str) -> None:
    assert run_tests(code, [test]) == TestResult(1, 1, "", False)


def test_code_that_needs_threads_is_not_scored() -> None:
    result = run_tests("import threading\ndef f(): threading.Thread(target=print).start()", ["assert f() is None"])
    assert (result.passed, result.unsupported) == (0, True)
    assert "can't start new thread" in result.message


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
    "huge power": "x = 10**10**8",
    "huge shift": "x = 1 << 10**10",
    "squares without end": "x = 3\nwhile True: x = x * x",
    "factorial": "import math\nx = math.factorial(10**6)",
    "digits of a huge number": "x = str(10**1000000)",
    "permutations": "import itertools\nx = list(itertools.permutations(range(20)))",
    "huge width in a format": "x = '{:>10000000000}'.format(1)",
    "huge width in an f-string": "x = f'{1:>1000000000}'",
    "replacements that multiply": "x = ('a' * 10**6).replace('a', 'b' * 10**6)",
    "list nested deeply": "x = []\nfor i in range(10**5): x = [x]\nhash((repr(x), x == x, x))",
    "huge exception": "raise ValueError('x' * 10**7)",
    "file": "open('/etc/passwd').read()",
    "file written": "open('/tmp/alfine-was-here', 'w').write('x')",
    "environment": "import os\nx = os.environ['HOME']",
    "process": "import subprocess\nsubprocess.run(['ls'])",
    "parentheses": "(" * 9000 + ")" * 9000,
    "minus signs": "-" * 19_000 + "1",
    "attributes": "x" + ".a" * 9000,
    "path to a file": "import pathlib\nx = pathlib.Path('/etc/passwd').read_text()",
    "listing of a folder": "import pathlib\nx = list(pathlib.Path('/').iterdir())",
    "file through a path": "import pathlib\npathlib.Path('/tmp/alfine-was-here').write_text('x')",
    "folder removed": "import shutil\nshutil.rmtree('/tmp/x')",
    "web page": "import urllib.request\nurllib.request.urlopen('http://localhost')",
    "web page by another module": "import http.client\nhttp.client.HTTPConnection('localhost').connect()",
    "library of C": "import ctypes\nctypes.CDLL(None)",
    "pickle": "import pickle\npickle.loads(b'cos\\nsystem\\n(S\\'ls\\'\\ntR.')",
    "file from a text of code": "eval(\"open('/etc/passwd').read()\")",
    "builtins": "__builtins__['open']('/etc/passwd')",
    "builtins by their module": "import builtins\nbuiltins.open('/etc/passwd')",
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
    "print in a loop": "while True: print('x' * 1000)",
    "small writes in a loop": "import os\nwhile True: os.write(1, b'x')",
    "clock in a loop": "import time\nwhile True: time.time()",
    "sleep in a loop": "import time\nwhile True: time.sleep(1000)",
    "random bytes in a loop": "import os\nwhile True: os.urandom(10**6)",
    "status of a file in a loop": f"import os\nwhile True: os.stat({LIBRARY!r})",
    "file opened in a loop": f"import os\nwhile True: os.open({LIBRARY!r}, 0)",
    "file read in a loop": f"f = open({LIBRARY!r}, 'rb')\nwhile True:\n    f.seek(0)\n    f.read()",
    "messages in a loop": "import _host\nwhile True: _host.call(b'x' * 10**6)",
    "end of the program": "raise SystemExit(0)",
    "end of the process": "import os\nos._exit(0)",
    "interrupt": "raise KeyboardInterrupt",
    "thread": "import threading\nthreading.Thread(target=print).start()",
    "network": "import socket\nsocket.socket().connect(('127.0.0.1', 80))",
    "name looked up": "import socket\nsocket.getaddrinfo('localhost', 80)",
    "shell": "import os\nos.system('ls')",
    "new process image": "import os\nos.execv('/bin/ls', ['ls'])",
    "own process killed": "import os\nos.kill(os.getpid(), 9)",
    "pool of processes": "import multiprocessing\nmultiprocessing.Pool()",
    "library written to": f"open({LIBRARY!r}, 'r+b')",
    "file beside the library": "open('/usr/local/lib/x', 'w')",
    "library removed": f"import os\nos.remove({LIBRARY!r})",
    "path upwards": "open('/usr/local/lib/../../../etc/passwd')",
    "link to elsewhere": "import os\nos.symlink('/etc', '/usr/local/lib/etc')\nopen('/usr/local/lib/etc/passwd')",
    "huge width in a percent format": "while True: x = '%010000000d' % 1",
    "regular expression that tries everything": "import re\nre.match('(a+)+$', 'a' * 40 + 'b')",
    "lock that is taken already": "import threading\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()",
    "queue that stays empty": "import queue\nqueue.Queue().get()",
    "event that never comes": "import asyncio\nasync def f(): await asyncio.Event().wait()\nasyncio.run(f())",
    "coroutines without end": "import asyncio\nasync def f():\n    while True: await asyncio.sleep(0)\nasyncio.run(f())",
    "error at the end of itself": "class A:\n    def __del__(self): A()\nA()\nwhile True: pass",
    "memory in pieces": "x = {}\ni = 0\nwhile True:\n    x[i] = bytes(4096)\n    i += 1",
    "frame that holds itself": "import sys\nx = []\nwhile True: x.append(sys._getframe())",
}


@pytest.fixture(scope="module")
def opened_archive() -> None:
    """The first import of `subprocess` opens the archive of the standard library, which stays open."""
    run_tests(HOSTILE["process"], ["assert f"])


@pytest.mark.usefixtures("low_limits", "opened_archive")
@pytest.mark.parametrize("code", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_code_fails_within_the_limits(code: str) -> None:
    files, start = len(os.listdir("/proc/self/fd")), time.process_time()
    result = run_tests(code, ["assert f"])
    assert time.process_time() - start < 5.0  # seconds of processor time, for a thirtieth of the limits
    assert len(os.listdir("/proc/self/fd")) <= files
    assert result.passed == 0
    assert 0 < len(result.message) <= MAX_MESSAGE
    assert not os.path.exists("/tmp/alfine-was-here")


WALK = (
    "import sys, os\ndef judge():\n    frame = sys._getframe()\n"
    "    while 'send' not in frame.f_globals: frame = frame.f_back\n    return frame.f_globals\n"
)
FORGED = {
    # code that claims to pass `assert f(1) == 2` without computing it
    "prints a verdict": "print('passed 1 of 1')",
    "ends the program well": "import sys\ndef f(x): sys.exit(0)",
    "ends the process well": "import os\ndef f(x): os._exit(0)",
    "ends the process when loaded": "import os\nos._exit(0)",
    "equals everything": "class A:\n    def __eq__(self, other): return True\ndef f(x): return A()",
    "equals everything, as a number": "class A(int):\n    def __eq__(self, other): return True\ndef f(x): return A()",
    "mock.ANY": "from unittest.mock import ANY\ndef f(x): return ANY",
    "metaclass that equals everything": "class M(type):\n    def __eq__(self, other): return True\nclass A(metaclass=M): pass\ndef f(x): return A",
    "every exception is caught": "def f(x):\n    while True:\n        try: return 1\n        except BaseException: pass",
    "builtins patched": "import builtins\nbuiltins.bool = builtins.any = builtins.all = lambda *x: True\ndef f(x): return 1",
    "builtins patched when called": "import builtins\ndef f(x):\n    for name in ('bool', 'map', 'any', 'type', 'isinstance', 'len', 'repr'):\n        setattr(builtins, name, lambda *x: True)\n    return 1",
    "exec and compile patched": "import builtins\nbuiltins.exec = builtins.compile = lambda *x, **y: None",
    "errors patched": "import builtins\nbuiltins.AssertionError = builtins.NameError = ZeroDivisionError",
    "operators patched": "import operator\noperator.eq = lambda *x: True\ndef f(x): return 1",
    "helpers defined": "compare = check = counted = lambda *x: True\ndef f(x): return 1",
    "helpers of the module": "import sys\nmodule = sys.modules['__main__']\nfor name in ('compare', 'check', 'run', 'send', 'asserts'):\n    setattr(module, name, lambda *x: True)",
    "message without the key": "import _host\nfor start in (b'', bytes(16), b'verdict'):\n    for kind in (b'cp', b'tp', b'a1', b'tp1'): _host.call(start + kind)",
    "tests fetched again": "import _host, marshal\nkey = marshal.loads(_host.call(b''))[0]\n_host.call(key + b'tp')",
    "verdicts sent by way of the frames": WALK + "def f(x): [judge()['send'](b'tp') for _ in range(2)]",
    "verdicts sent by way of the frames, and an end": WALK
    + "def f(x):\n    [judge()['send'](b'tp') for _ in range(2)]\n    judge()['send'](b'a', '2')\n    os._exit(0)",
    "trace function": "import sys\nsys.settrace(lambda *x: None)\nsys.setprofile(lambda *x: None)\ndef f(x): return 1",
    "trace function that returns early": "import sys\ndef hook(frame, event, arg):\n    frame.f_trace_lines = False\n    return hook\ndef f(x):\n    sys.settrace(hook)\n    return 1",
    "exception hooks": "import sys\nsys.excepthook = sys.unraisablehook = lambda *x: None\ndef f(x): raise ValueError",
    "standard output closed": "import sys, os\nos.close(1)\nsys.stdout = None",
    "at exit": "import atexit, _host\natexit.register(lambda: _host.call(b'tp'))",
    "tests redefined": "tests = ['assert True']\ndef f(x): return 1",
    "import hooks": "import sys\nclass Finder:\n    def find_spec(self, *x): raise SystemExit(0)\nsys.meta_path.insert(0, Finder())\ndef f(x): import statistics",
    "modules removed": "import sys\nsys.modules.clear()\ndef f(x): return 1",
    "recursion limit": "import sys\nsys.setrecursionlimit(30)\ndef f(x): return f(x)",
    "memory of the interpreter freed": "import gc\nfor o in gc.get_objects():\n    if type(o) is dict: o.clear()",
}


@pytest.mark.usefixtures("low_limits")
@pytest.mark.parametrize("code", FORGED.values(), ids=FORGED.keys())
def test_a_verdict_is_not_forged(code: str) -> None:
    result = run_tests(code, ["assert f(1) == 2", "assert f(1) in (2, 3)"])
    assert result.passed == 0 and result.message, result


def test_attacks_name_the_driver_functions() -> None:
    """An attack on a function that was renamed would test nothing."""
    driver = Path(sandbox.__file__).with_name("sandbox_driver.py").read_text(encoding="utf-8")
    for name in ("compare", "check", "counted", "run", "send"):
        assert f"\ndef {name}(" in driver


def test_the_machine_is_not_visible() -> None:
    tests = [
        "assert dict(os.environ) == {}",
        "assert sys.argv == ['-c']",
        "assert os.uname().sysname == 'wasi'",
        "assert os.getpid() == 42",
    ]
    assert run_tests("import os, sys", tests).passed == 4
    for hidden in (
        "os.getlogin()",
        "os.getuid()",
        "os.listdir('/')",
        "os.listdir('/usr/local/lib')",
        "os.getloadavg()",
        "open('/proc/self/maps')",
    ):
        result = run_tests(f"import os\ndef f(): return {hidden}", ["assert f() == 0"])
        assert "Error" in result.message, (hidden, result)


def test_every_run_is_the_same() -> None:
    """The clock, random numbers, hashes, addresses and the number of instructions are deterministic."""
    code = "import time, random, uuid, os\nx = [time.time(), random.random(), uuid.uuid4(), os.urandom(4), hash('a'), object()]"
    results = []
    for _ in range(2):
        sandbox._cached_result.cache_clear()
        session = sandbox._TestSession(code, ["assert x == 0"])
        program = wasm_host.Program(sandbox._driver(), session.reply)
        results.append((session.result(wasm.run_program(program)), program.instructions, program.calls))
    assert results[0] == results[1]
    assert "got [17" in results[0][0].message and results[0][1] > 10**7


@pytest.mark.usefixtures("low_limits")
@pytest.mark.parametrize(
    ("code", "tests", "passed"),
    [
        ("def f(n):\n    while n: pass\n    return n", ["assert f(0) == 0", "assert f(1)", "assert f(1)"], 1),
        ("def f(n): return 'a' * n", ["assert f(1) == 'a'", "assert f(10**9)", "assert f(2) == 'aa'"], 2),
        (
            "def f(n):\n    x = [0]\n    while n: x += x\n    return n",
            ["assert f(0) == 0", "assert f(1)", "assert f(0) == 0"],
            2,
        ),
    ],
)
def test_tests_before_an_exceeded_limit_count_as_passed(code: str, tests: list[str], passed: int) -> None:
    result = run_tests(code, tests)
    assert (result.passed, result.total, result.unsupported) == (passed, 3, False)
    assert "too" in result.message


def test_an_endless_loop_ends_at_the_instruction_limit() -> None:
    start = time.process_time()
    assert run_tests("while True: pass", ["assert f"]).message == "took too long"
    assert time.process_time() - start < 30


def test_a_program_stopped_by_the_time_limit_is_not_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wasm, "WALL_SECONDS", 0.3)
    sandbox._cached_result.cache_clear()
    result = run_tests("while True: pass", ["assert f"])
    sandbox._cached_result.cache_clear()
    assert (result.passed, result.unsupported, result.message) == (0, True, "the machine was too slow to run it")
    monkeypatch.undo()
    assert run_tests(ADD_THREE, ["assert f(1) == 4"]).passed == 1


def test_harmless_code_that_prints_and_sleeps_passes() -> None:
    code = "import time\ndef f(x):\n    print('x' * 10**6)\n    time.sleep(60)\n    return x"
    assert run_tests(code, ["assert f(1) == 1"]).passed == 1


def test_huge_code_and_tests_are_rejected() -> None:
    huge = "x = 1\n" * MAX_CHARS
    for code, tests in ((huge, ["assert True"]), ("x = 1", [huge]), ("x = 1", ["assert True"] * MAX_CHARS)):
        result = run_tests(code, tests)
        assert (result.passed, result.total, result.unsupported) == (0, len(tests), False)
        assert str(MAX_CHARS) in result.message


def test_message_is_bounded() -> None:
    result = run_tests("def f(x): raise ValueError('y' * 999)", ["assert f(1) == 2  # " + "x" * 999])
    assert len(result.message) == MAX_MESSAGE
    assert "ValueError" in result.message


def test_nothing_is_written_to_the_terminal() -> None:
    program = (
        "from pipelines.scoring.sandbox import run_tests\n"
        "run_tests(\"import sys; print(1); print(2, file=sys.stderr); x = ('a ' * 10**8).split()\", ['assert x'])"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (process.stdout, process.stderr) == ("", "")
