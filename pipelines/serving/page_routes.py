"""The web page of `alfine serve`: its files, what it asks about the run, and the votes of its blind mode."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.config.job import Job
from pipelines.errors import AlfineError, DataError
from pipelines.report import html
from pipelines.report.votes import VOTES_FILE, Ballot, Vote, append_vote, read_votes
from pipelines.serving.page_run import PageRun, RowKey
from pipelines.storage.run_folder import Run
from pipelines.storage.strict_json import StrictJsonError, dump, parse

PAGE = Path(__file__).parent / "page"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
PUBLIC_PREFIX = "/page/"
"""The files of the page. Like `/`, they say nothing about the run, so they need no API key."""
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""The Content-Security-Policy of the page: its own files only, and no text that becomes HTML or a script."""
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

logger = logging.getLogger(__name__)
type Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class RowRequest(BaseModel):
    """The body of `POST /alfine/prompt`: a row of a task."""

    model_config = ConfigDict(extra="forbid", strict=True)

    task: str
    row: dict[str, Any]


def add_page_routes(app: web.Application, run: Run, job: Job) -> None:
    """Adds the page and its endpoints to a server whose `/v1/chat/completions` answers for the models of the run.

    - `GET /`, `GET /page/FILE`: the page. Public: `is_public` tells an authentication middleware.
    - `GET /alfine/run`: the run's tasks and settings. `GET /alfine/row?task=T&index=N`: a test row; without `task`, a
      sample prompt.
    - `POST /alfine/prompt`: the messages of a row's prompt.
    - `GET /alfine/rating?rater=R`: the next test row to rate. `POST /alfine/votes`: appends a vote to RUN/votes.jsonl.
    """
    page = _PageHandlers(PageRun(run, job))
    app.router.add_get("/", _send_page_file)
    app.router.add_get(PUBLIC_PREFIX + "{name}", _send_page_file)
    app.router.add_get("/alfine/run", _answered(page.describe))
    app.router.add_get("/alfine/row", _answered(page.row))
    app.router.add_post("/alfine/prompt", _answered(page.prompt))
    app.router.add_get("/alfine/rating", _answered(page.rating))
    app.router.add_post("/alfine/votes", _answered(page.vote))


def is_public(path: str) -> bool:
    """Whether a path of this module is answered without an API key."""
    return path == "/" or path.startswith(PUBLIC_PREFIX)


@cache
def _page_files() -> dict[str, tuple[bytes, str, str]]:
    """By name, the content, type and entity tag of each file of the page. The style sheet of the report is one."""
    paths = [path for path in PAGE.iterdir() if path.suffix in TYPES] + [html.HERE / "report.css"]
    files = {path.name: (path.read_bytes(), TYPES[path.suffix]) for path in paths}
    return {name: (content, kind, hashlib.sha256(content).hexdigest()[:32]) for name, (content, kind) in files.items()}


async def _send_page_file(request: web.Request) -> web.Response:
    file = _page_files().get(request.match_info.get("name", "index.html"))
    if file is None:
        return _error(404, "there is no such file")
    content, kind, tag = file
    headers = {**HEADERS, "ETag": f'"{tag}"', "Cache-Control": "no-cache"}
    if any(given.value in (tag, "*") for given in request.if_none_match or ()):
        return web.Response(status=304, headers=headers)
    return web.Response(body=content, content_type=kind, charset="utf-8", headers=headers)


def _error(status: int, message: str) -> web.Response:
    """An error in the format of OpenAI's API."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = {"error": {"message": message, "type": kind, "param": None, "code": None}}
    return _json(body, status)


def _json(value: Any, status: int = 200) -> web.Response:
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return web.json_response(value, status=status, headers=headers, dumps=dump)


class _Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


def _answered(handler: Callable[[web.Request], Awaitable[Any]]) -> Handler:
    """The handler of aiohttp that sends the JSON value of `handler`, or one line about what is wrong."""

    async def answer(request: web.Request) -> web.Response:
        try:
            return _json(await handler(request))
        except _Refused as error:
            return _error(error.status, str(error))
        except AlfineError as error:
            return _error(400 if isinstance(error, DataError) else 500, error.problems[0].message)

    return answer


async def _body[B: BaseModel](request: web.Request, body_type: type[B]) -> B:
    """The body of a request. Only JSON by its declared type: a browser does not send that for another website."""
    if request.content_type != "application/json":
        raise _Refused(415, "send application/json")
    try:
        text = (await request.read()).decode()
        return body_type.model_validate_json(dump(parse(text)))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the body"
        raise _Refused(400, f"{key}: {first['msg'].lower()}") from None
    except StrictJsonError as error:
        raise _Refused(400, f"the body {error}") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise _Refused(400, "the body is not JSON") from None


class _PageHandlers:
    """The endpoints of one run. Files are read and written in a thread, so that streams go on."""

    def __init__(self, page: PageRun) -> None:
        self.page = page
        self.votes_path = page.run.path(VOTES_FILE)
        self.write_lock = asyncio.Lock()
        self.read_lock = asyncio.Lock()

    async def _in_thread[T](self, function: Callable[..., T], *arguments: Any) -> T:
        async with self.read_lock:  # the files of the run are read once
            return await asyncio.to_thread(function, *arguments)

    async def describe(self, request: web.Request) -> dict[str, Any]:
        return await self._in_thread(self.page.description)

    async def row(self, request: web.Request) -> dict[str, Any]:
        task, number = request.query.get("task"), request.query.get("index", "")
        if not (number.isascii() and number.isdecimal() and len(number) < 10):
            raise _Refused(400, "index is the number of a row, from 0")
        row = await self._in_thread(self.page.row, task, int(number))
        if row is None:
            raise _Refused(404, "there is no such row")
        return row

    async def prompt(self, request: web.Request) -> dict[str, Any]:
        body = await _body(request, RowRequest)
        return {"messages": await self._in_thread(self.page.fill, body.task, body.row)}

    async def rating(self, request: web.Request) -> dict[str, Any]:
        rater = request.query.get("rater", "").strip()
        rated = await asyncio.to_thread(self._rated_rows, rater)
        return await self._in_thread(self.page.next_rating, rated)

    def _rated_rows(self, rater: str) -> set[RowKey]:
        votes = read_votes(self.votes_path) if self.votes_path.exists() else []
        return {
            (vote.task, vote.row, vote.answer)
            for vote in votes
            if vote.task is not None and vote.row is not None and vote.rater.strip() == rater
        }

    async def vote(self, request: web.Request) -> dict[str, Any]:
        ballot = await _body(request, Ballot)
        await self._in_thread(self._check_ballot, ballot)
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        vote = Vote(**dict(ballot), format_version=1, run=self.page.run.name, time=now)
        async with self.write_lock:
            try:
                await asyncio.to_thread(append_vote, self.votes_path, vote)
            except OSError as error:
                logger.error("the vote was not saved: %s", error)
                raise _Refused(500, f"the vote was not saved: {error.strerror or error}") from None
        return {"saved": VOTES_FILE}

    def _check_ballot(self, ballot: Ballot) -> None:
        """Raises _Refused for a vote on what the run does not have."""
        tasks = self.page.job.pipeline.tasks
        if ballot.task is not None and ballot.task not in tasks:
            raise _Refused(400, f"the run has no task {ballot.task!r:.80}")
        if ballot.row is None:
            if ballot.answer is not None or ballot.settings is None:
                raise _Refused(400, "a vote on new completions needs settings, and no answer")
            return
        if ballot.settings is not None or ballot.system is not None or len(ballot.turns) != 1:
            raise _Refused(400, "a vote on a test row has one turn, and neither system nor settings")
        row = None if ballot.task is None else self.page.find_row((ballot.task, ballot.row, ballot.answer))
        turn = ballot.turns[0]
        if row is None or (turn.base, turn.tuned) != (row.base.completion, row.tuned.completion):
            raise _Refused(409, "the completions of this test row are others; load the page again")
