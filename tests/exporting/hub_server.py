"""A stand-in for the HTTP API of the Hugging Face Hub on 127.0.0.1: what `alfine publish` calls, with LFS uploads.

It is no mock of huggingface_hub: the official client talks to it over HTTP.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

TOKEN = "hf_right"
READ_ONLY = "hf_readonly"
LFS_SUFFIXES = (".safetensors", ".gguf", ".png", "tokenizer.json")


@dataclass
class Repository:
    """A model repository: for each branch, the content of each file."""

    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {".gitattributes": b"*"}})


class Hub:
    """The server with what it has received."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.commits = 0
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def __enter__(self) -> Hub:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def reply(self, status: int, value: object = None, headers: dict[str, str] | None = None) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def error(self, status: int, code: str = "", message: str = "") -> None:
        self.reply(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message})

    def handle_request(self) -> None:
        length = self.headers.get("Content-Length")
        if length is not None:
            body = self.rfile.read(int(length))
        elif self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = b""
        path = unquote(urlparse(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        for pattern, method in ROUTES:
            if match := re.fullmatch(pattern, f"{self.command} {path}"):
                token = self.headers.get("Authorization", "").removeprefix("Bearer ")
                if method != "upload" and token not in (TOKEN, READ_ONLY):
                    self.error(401, message="Invalid credentials in Authorization header")
                elif token == READ_ONLY and self.command == "POST" and method != "validate":
                    self.error(403, message="Forbidden: you must use a write token")
                else:
                    getattr(self, method)(body, *match.groups())
                return
        self.error(404, message=f"no route for {self.command} {path}")

    do_GET = do_POST = do_PUT = do_HEAD = handle_request

    def repository(self, name: str, branch: str = "main") -> dict[str, bytes] | None:
        """The files of a branch; replies with an error if there is none."""
        repository = self.hub.repositories.get(name)
        if repository is None:
            self.error(404, "RepoNotFound", "Repository not found")
            return None
        if branch not in repository.branches:
            self.error(404, "RevisionNotFound", f"Invalid rev id: {branch}")
            return None
        return repository.branches[branch]

    # --- routes ---

    def whoami(self, body: bytes) -> None:
        self.reply(200, {"type": "user", "name": "anna", "fullname": "Anna", "orgs": [], "auth": {}})

    def validate(self, body: bytes) -> None:
        content = json.loads(body)["content"]
        valid = content.startswith("---\n") and "\n---\n" in content[4:]
        self.reply(200 if valid else 400, {"errors": [] if valid else [{"message": "no metadata"}], "warnings": []})

    def create(self, body: bytes) -> None:
        request = json.loads(body)
        name = f"{request.get('organization') or 'anna'}/{request['name']}"
        if not name.startswith("anna/"):
            self.error(403, message="You don't have the rights to create a model under this namespace")
            return
        private = request.get("private")
        if private is None:
            private = request.get("visibility") == "private"
        self.hub.repositories[name] = Repository(private)
        self.reply(200, {"url": f"{self.hub.address}/{name}", "name": name, "id": name})

    def info(self, body: bytes, name: str, branch: str | None = None) -> None:
        files = self.repository(name, branch or "main")
        if files is not None:
            siblings = [{"rfilename": path} for path in files]
            private = self.hub.repositories[name].private
            values = {"id": name, "modelId": name, "sha": "0" * 40, "private": private, "tags": [], "downloads": 0}
            self.reply(200, {**values, "likes": 0, "siblings": siblings})

    def refs(self, body: bytes, name: str) -> None:
        if self.repository(name) is not None:
            branches = self.hub.repositories[name].branches
            entries = [{"name": one, "ref": f"refs/heads/{one}", "targetCommit": "0" * 40} for one in branches]
            self.reply(200, {"branches": entries, "converts": [], "tags": []})

    def branch(self, body: bytes, name: str, branch: str) -> None:
        files = self.repository(name)
        if files is not None:
            existing = self.hub.repositories[name].branches
            if branch in existing:
                self.error(409, message="Reference already exists")
            else:
                existing[branch] = dict(files)
                self.reply(201, {})

    def preupload(self, body: bytes, name: str, branch: str) -> None:
        if self.repository(name, branch) is not None:
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self.reply(200, {"files": files})

    def batch(self, body: bytes, name: str) -> None:
        objects = []
        for item in json.loads(body)["objects"]:
            entry = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.objects:
                entry["actions"] = {"upload": {"href": f"{self.hub.address}/lfs/{item['oid']}"}}
            objects.append(entry)
        self.reply(200, {"transfer": "basic", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"})

    def upload(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            self.error(400, message="wrong content")
        else:
            self.hub.objects[oid] = body
            self.reply(200, {})

    def commit(self, body: bytes, name: str, branch: str) -> None:
        files = self.repository(name, branch)
        if files is None:
            return
        for line in map(json.loads, body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self.hub.commits += 1
        self.reply(200, {"commitUrl": f"{self.hub.address}/{name}/commit/{'0' * 40}", "commitOid": "0" * 40})

    def tree(self, body: bytes, name: str, branch: str) -> None:
        files = self.repository(name, branch)
        if files is not None:
            self.reply(200, [_entry(path, content) for path, content in files.items()])

    def paths(self, body: bytes, name: str, branch: str) -> None:
        files = self.repository(name, branch)
        if files is not None:
            text = body.decode()
            wanted = json.loads(text)["paths"] if text.startswith("{") else re.findall(r"paths=([^&]*)", text)
            names = {unquote(path.replace("+", " ")) for path in wanted}
            self.reply(200, [_entry(path, content) for path, content in files.items() if path in names])

    def resolve(self, body: bytes, name: str, branch: str, path: str) -> None:
        files = self.repository(name, branch)
        if files is not None and path not in files:
            self.error(404, "EntryNotFound", "Entry not found")
        elif files is not None:
            etag = hashlib.sha256(files[path]).hexdigest()
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": "0" * 40, "Accept-Ranges": "bytes"}
            self.reply(200, files[path], headers)


def _entry(path: str, content: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": "0" * 40}
    if path.endswith(LFS_SUFFIXES):
        oid = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 130}
    return entry


NAME, REV = r"([^/]+/[^/]+)", r"([^/]+)"
ROUTES = [
    (r"GET /api/whoami-v2", "whoami"),
    (r"POST /api/validate-yaml", "validate"),
    (r"POST /api/repos/create", "create"),
    (rf"POST /api/models/{NAME}/preupload/{REV}", "preupload"),
    (rf"POST /api/models/{NAME}/commit/{REV}", "commit"),
    (rf"POST /api/models/{NAME}/paths-info/{REV}", "paths"),
    (rf"POST /api/models/{NAME}/branch/{REV}", "branch"),
    (rf"GET /api/models/{NAME}/tree/{REV}", "tree"),
    (rf"GET /api/models/{NAME}/refs", "refs"),
    (rf"GET /api/models/{NAME}/revision/{REV}", "info"),
    (rf"GET /api/models/{NAME}", "info"),
    (rf"POST /{NAME}.git/info/lfs/objects/batch", "batch"),
    (r"PUT /lfs/([0-9a-f]+)", "upload"),
    (rf"(?:GET|HEAD) /{NAME}/resolve/{REV}/(.+)", "resolve"),
]
