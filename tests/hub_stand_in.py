"""A stand-in for the read API of the Hugging Face Hub: an HTTP server on this machine with data sets and models.

It answers what huggingface_hub and datasets ask for: the files of a repository at a revision, and the files themselves.
"""

from __future__ import annotations

import hashlib
import json
import threading
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "a1b2c3d4e5f60718293a4b5c6d7e8f9001122334"
NEWER = "ffeeddccbbaa99887766554433221100ffeeddcc"


@dataclass
class HubStandIn:
    """Repositories by kind and name (`datasets/owner/name`), each with its files by revision.

    Attributes:
        repositories: for every repository the files of each commit; the last commit is the newest.
        failures: HTTP status codes that the next requests get, in order, whatever they ask for.
        denied: repositories that need a token.
        requests: the paths of all requests.
    """

    repositories: dict[str, dict[str, Mapping[str, bytes]]]
    failures: list[int] = field(default_factory=list)
    denied: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)

    def __enter__(self) -> HubStandIn:
        stand_in = self

        class Handler(_Handler):
            hub = stand_in

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def commit(self, repository: str, revision: str) -> str | None:
        """The commit that a branch or a commit of a repository means."""
        commits = self.repositories[repository]
        return list(commits)[-1] if revision in ("main", "HEAD") else revision if revision in commits else None


class _Handler(BaseHTTPRequestHandler):
    hub: HubStandIn
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.failures:
            self._send(self.hub.failures.pop(0), {}, b"failed on purpose")
            return
        is_api = path.startswith("/api/")
        rest = path.removeprefix("/api/").lstrip("/")
        name = next((name for name in self.hub.repositories if rest == name or rest.startswith(f"{name}/")), None)
        if name is None and not is_api:
            name = next((name for name in self.hub.repositories if f"models/{rest}".startswith(f"{name}/")), None)
            rest = f"models/{rest}"
        if name is None:
            self._error(404, "RepoNotFound", "Repository not found")
        elif name in self.hub.denied:
            self._error(401, "GatedRepo" if "gated" in name else "RepoNotFound", "Access is restricted")
        elif is_api:
            self._api(name, rest.removeprefix(name).strip("/").split("/"))
        else:
            self._file(name, rest.removeprefix(name).strip("/").split("/"))

    def _api(self, name: str, parts: list[str]) -> None:
        kind = parts[0] or "revision"
        revision = parts[1] if len(parts) > 1 else "main"
        commit = self.hub.commit(name, revision)
        if commit is None:
            self._error(404, "RevisionNotFound", "Revision not found")
            return
        files = self.hub.repositories[name][commit]
        if kind == "revision":
            siblings = [{"rfilename": file, "size": len(content)} for file, content in files.items()]
            identity = name.split("/", 1)[1]
            self._json({"id": identity, "sha": commit, "siblings": siblings, "private": False, "tags": []})
        elif kind == "tree":
            query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
            self._tree(files, "/".join(parts[2:]), recursive=query.get("recursive", ["false"])[0].lower() == "true")
        elif kind == "paths-info":
            wanted = urllib.parse.parse_qs(self.body.decode()).get("paths", [])
            if self.headers.get("Content-Type", "").startswith("application/json"):
                wanted = json.loads(self.body)["paths"]
            self._json([_entry(file, files[file]) for file in wanted if file in files])
        else:
            self._error(404, "EntryNotFound", "not known to this stand-in")

    def _tree(self, files: Mapping[str, bytes], folder: str, *, recursive: bool) -> None:
        prefix = f"{folder}/" if folder else ""
        inside = [file for file in files if file.startswith(prefix)]
        if folder and not inside:
            self._error(404, "EntryNotFound", "Entry not found")
            return
        names = dict.fromkeys(prefix + file.removeprefix(prefix).split("/")[0] for file in inside)
        folders = [{"type": "directory", "path": name, "size": 0, "oid": "0"} for name in names if name not in files]
        shown = inside if recursive else [name for name in names if name in files]
        self._json([*folders, *(_entry(file, files[file]) for file in shown)])

    def _file(self, name: str, parts: list[str]) -> None:
        commit = self.hub.commit(name, parts[1]) if parts[0] == "resolve" and len(parts) > 2 else None
        files = {} if commit is None else self.hub.repositories[name][commit]
        content = files.get("/".join(parts[2:]))
        if content is None:
            self._error(404, "EntryNotFound", "Entry not found")
            return
        headers = {
            "X-Repo-Commit": str(commit),
            "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
            "Accept-Ranges": "bytes",
        }
        status, wanted = 200, self.headers.get("Range", "")
        if wanted.startswith("bytes="):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), int(last) if last else len(content) - 1
            headers["Content-Range"] = f"bytes {start}-{min(end, len(content) - 1)}/{len(content)}"
            status, content = 206, content[start : end + 1]
        self._send(status, headers, content)

    def _json(self, value: object) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _error(self, status: int, code: str, message: str) -> None:
        self._send(status, {"X-Error-Code": code, "X-Error-Message": message}, message.encode())

    def _send(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _entry(file: str, content: bytes) -> dict[str, object]:
    return {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
