"""The server side of `EngineProcess`: a program that calls the methods of one class. It imports nothing of alfine.

Arguments: the file of the class, and its name. The first line of standard input has the arguments of the constructor;
each line after it names a method and its arguments. The answer is a line with the key `result`; lines with the key
`progress` come before. The program ends with its input.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from typing import Any


def load_class(file: str, name: str) -> Any:
    """The class `name` in a file of Python."""
    specification = importlib.util.spec_from_file_location("engine", file)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return getattr(module, name)


def serve(file: str, name: str) -> None:
    """Answers the lines of standard input with the methods of the class."""
    # Libraries print to standard output; the answers have a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    engine = load_class(file, name)(**json.loads(sys.stdin.readline()))
    answer({"result": engine.describe()})
    for line in sys.stdin:
        request = json.loads(line)
        result = getattr(engine, request.pop("call"))(**request)
        if isinstance(result, list):
            answer({"result": result})
        else:
            for message in result:
                answer(message)


if __name__ == "__main__":  # vLLM starts processes that import this file again
    serve(*sys.argv[1:])
