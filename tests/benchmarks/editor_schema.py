"""The JSON Schema in an editor's language server: yaml-language-server is installed into a temporary folder with npm, run
over standard input and output, and asked for errors, completions and descriptions of configs that name the schema.

    python -m tests.benchmarks.editor_schema

Needs node and npm. Prints a line per check; the exit code is 1 if one fails.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bad_configs import GOOD, adapter, generation, pipeline, rank, rate, scheduler, task, trainer, with_line

ROOT = Path(__file__).parents[2]
SCHEMA = ROOT / "docs" / "config.schema.json"
MODELINE = "# yaml-language-server: $schema=config.schema.json\n"
PACKAGE = "yaml-language-server@1"
ERRORS: dict[str, tuple[str, int]] = {
    "misspelt key of a task": (with_line("prompt:", "promt:"), 5),
    "unknown key at the top": (GOOD + "trianer: {}\n", 15),
    "rank of 0": (rank("r: 0"), 9),
    "learning rate as text": (rate("fast"), 12),
    "unknown metric": (with_line("exact_match", "exact_mach"), 7),
    "unknown strategy": (pipeline("forgetting: ewcc+replay"), 2),
    "key of another adapter": (adapter("{type: ia3, r: 8}"), 9),
    "adapter that is refused": (adapter("{type: adalora, r: 8}"), 9),
    "unknown key of the scheduler": (scheduler("dcay: linear"), 11),
    "key of Ludwig without effect": (trainer("eval_batch_size: 4"), 11),
    "seed as text": (pipeline("seed: seven"), 2),
    "boolean as text": (generation("do_sample: maybe"), 14),
    "kind of an eval": (pipeline("forgetting: {evals: {mine: {kind: text, data: a.jsonl}}}"), 2),
}
"""A config with an error, and its line in it."""
GOOD_ONES: dict[str, str] = {
    "good config": GOOD,
    "several strategies": pipeline("forgetting: ewc+replay+distill"),
    "batch size by memory": trainer("batch_size: auto\n  effective_batch_size: 16"),
    "own metric": with_line("exact_match", "scoring:accuracy"),
}
COMPLETIONS: dict[str, tuple[str, int, int, set[str]]] = {
    "keys at the top": (GOOD + "\n", 15, 0, {"quantization", "preprocessing", "backend"}),
    "keys of a task": (task(""), 8, 6, {"system", "max_new_tokens", "reasoning", "too_long"}),
    "keys of the trainer": (GOOD.replace("  epochs: 2\n", "  \n"), 11, 2, {"epochs", "early_stop", "optimizer"}),
    "values of metric": (with_line("metric: exact_match", "metric: "), 7, 14, {"rouge", "multilabel_f1", "unit_tests"}),
    "strategies": (pipeline("forgetting: "), 2, 14, {"ewc", "replay", "auto", "none"}),
    "types of the optimizer": (trainer("optimizer:\n    type: "), 12, 10, {"adamw", "sgd"}),
    "keys of LoRA": (adapter("\n  type: lora\n  "), 11, 2, {"alpha", "target_modules", "use_rslora"}),
    "too_long": (task("too_long: "), 8, 16, {"drop", "truncate_prompt"}),
}
"""A config, a line from 1 and a column from 0 of it, and labels that must be offered there."""
REFUSED = {"eval_batch_size", "input_features", "hyperopt", "adalora", "lbfgs"}
"""Words that must never be offered."""


@dataclass
class Server:
    """yaml-language-server, spoken to by the Language Server Protocol."""

    process: subprocess.Popen[bytes]
    folder: Path
    num_requests: int = 0
    num_files: int = 0
    diagnostics: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def send(self, message: dict[str, Any]) -> None:
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        assert self.process.stdin is not None
        self.process.stdin.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        self.process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        """The next message. Requests of the server are answered, diagnostics are kept."""
        assert self.process.stdout is not None
        length = 0
        while line := self.process.stdout.readline().strip():
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        message: dict[str, Any] = json.loads(self.process.stdout.read(length))
        if message.get("method") == "textDocument/publishDiagnostics":
            self.diagnostics[message["params"]["uri"]] = message["params"]["diagnostics"]
        elif "method" in message and "id" in message:
            settings = {"yaml": {"validate": True, "completion": True, "hover": True, "schemaStore": {"enable": False}}}
            is_settings = message["method"] == "workspace/configuration"
            result = (
                [settings.get(item.get("section"), {}) for item in message["params"]["items"]] if is_settings else None
            )
            self.send({"id": message["id"], "result": result})
        return message

    def request(self, method: str, parameters: dict[str, Any]) -> Any:
        self.num_requests += 1
        self.send({"id": self.num_requests, "method": method, "params": parameters})
        while True:
            message = self.receive()
            if message.get("id") == self.num_requests and "method" not in message:
                return message.get("result")

    def open(self, text: str) -> str:
        """Opens a document beside the schema and returns its address."""
        self.num_files += 1
        uri = (self.folder / f"job{self.num_files}.yaml").as_uri()
        document = {"uri": uri, "languageId": "yaml", "version": 1, "text": MODELINE + text}
        self.send({"method": "textDocument/didOpen", "params": {"textDocument": document}})
        return uri

    def error_lines(self, text: str) -> list[tuple[int, str]]:
        """The line, from 1 and without that which names the schema, and the message of each error."""
        uri = self.open(text)
        while uri not in self.diagnostics:
            self.receive()
        return [(error["range"]["start"]["line"], error["message"]) for error in self.diagnostics[uri]]

    def completions(self, text: str, line: int, column: int) -> set[str]:
        position = {"line": line, "character": column}  # the first line names the schema
        parameters = {"textDocument": {"uri": self.open(text)}, "position": position}
        result = self.request("textDocument/completion", parameters)
        return {item["label"] for item in (result["items"] if isinstance(result, dict) else result or [])}

    def hover(self, text: str, line: int, column: int) -> str:
        position = {"line": line, "character": column}
        parameters = {"textDocument": {"uri": self.open(text)}, "position": position}
        return json.dumps(self.request("textDocument/hover", parameters))


def start(folder: Path) -> Server:
    """Installs and starts the server in a folder, which gets the schema too."""
    (folder / "package.json").write_text("{}")
    subprocess.run(["npm", "install", "--silent", "--no-audit", PACKAGE], cwd=folder, check=True, capture_output=True)
    (folder / SCHEMA.name).write_bytes(SCHEMA.read_bytes())
    program = folder / "node_modules" / ".bin" / "yaml-language-server"
    process = subprocess.Popen(
        [str(program), "--stdio"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    server = Server(process, folder)
    capabilities = {"workspace": {"configuration": True}, "textDocument": {"publishDiagnostics": {}}}
    server.request("initialize", {"processId": None, "rootUri": folder.as_uri(), "capabilities": capabilities})
    server.send({"method": "initialized", "params": {}})
    return server


def checks(server: Server) -> list[tuple[str, bool, str]]:
    """The name of each check, whether it holds, and what the server said."""
    results = []
    for name, text in GOOD_ONES.items():
        errors = server.error_lines(text)
        results.append((name, not errors, str(errors or "no error")))
    for name, (text, line) in ERRORS.items():
        errors = server.error_lines(text)
        results.append((name, {number for number, _ in errors} == {line}, f"line {line}: {errors}"))
    offered: set[str] = set()
    for name, (text, line, column, expected) in COMPLETIONS.items():
        labels = server.completions(text, line, column)
        offered |= labels
        missing = expected - labels
        results.append((name, not missing, f"missing {sorted(missing)}" if missing else f"{len(labels)} offered"))
    results.append(("nothing that is refused is offered", not offered & REFUSED, f"{len(offered)} words"))
    description = server.hover(GOOD, 7, 8)
    results.append(("description of metric", "Name of a metric" in description, description[:120]))
    return results


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        server = start(Path(folder))
        try:
            results = checks(server)
        finally:
            server.process.kill()
            server.process.wait()
    for name, holds, said in results:
        print(f"{'ok  ' if holds else 'FAIL'} {name}: {said[:220]}")
    print(f"{sum(holds for _, holds, _ in results)} of {len(results)} checks hold")
    return 0 if all(holds for _, holds, _ in results) else 1


if __name__ == "__main__":
    sys.exit(main())
