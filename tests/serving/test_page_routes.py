"""The routes of the page: its files, the run as JSON, rows, prompts, the order of ratings, votes, bad requests."""

import asyncio
import json
import re

import pytest
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.report.votes import read_votes
from pipelines.serving.page_routes import PAGE, is_public
from tests.report.run_folder import line, write_lines, write_run
from tests.serving.page_server import ScriptedServer, answering, demo_page_run, one_row_run, with_config


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return demo_page_run(tmp_path_factory.mktemp("runs") / "demo", rows=40)


@pytest.fixture
def ask():
    """ask(folder, METHOD, path, …) → (status, JSON or text, headers); ask.votes(folder)."""

    def request(folder, method, path, app=None, **options):
        async def once():
            app = ScriptedServer(folder, answering()).app
            async with TestClient(TestServer(app)) as client, client.request(method, path, **options) as response:
                text = await response.text()
                is_json = response.content_type == "application/json"
                return response.status, json.loads(text) if is_json else text, response.headers

        return asyncio.run(once())

    return request


def test_the_files_of_the_page(demo, ask):
    status, page, headers = ask(demo, "GET", "/")
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-cache"
    linked = re.findall(r'(?:href|src)="(/page/[^"]+)"', page)
    scripts = [f"/page/{path.name}" for path in PAGE.glob("*.js")]
    for path in {*linked, *scripts}:
        status, _, headers = ask(demo, "GET", path)
        assert status == 200 and is_public(path)
        assert ask(demo, "GET", path, headers={"If-None-Match": headers["ETag"]})[0] == 304
    assert ask(demo, "GET", "/page/page.js", headers={"If-None-Match": '"other"'})[0] == 200


def test_the_page_loads_nothing_from_elsewhere_and_never_makes_html_of_text():
    for path in PAGE.iterdir():
        text = path.read_text()
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), path
        assert not re.search(
            'innerHTML|outerHTML|insertAdjacent|document.write|eval\\(|new Function| style=| on[a-z]+="', text
        ), path
    assert all(len(path.read_text().splitlines()) < 300 for path in PAGE.glob("*.js"))


@pytest.mark.parametrize("path", ["/page/x.js", "/page/..%2Fpage_routes.py", "/page/%2e%2e/x", "/page/"])
def test_other_files_are_not_served(demo, ask, path):
    assert ask(demo, "GET", path)[0] in (403, 404)


def test_only_the_page_is_public():
    assert is_public("/") and is_public("/page/page.js")
    assert not any(is_public(path) for path in ("/alfine/run", "/alfine/votes", "/v1/models", "/page", "//"))


def test_the_run(demo, ask):
    status, run, headers = ask(demo, "GET", "/alfine/run")
    assert status == 200 and headers["Cache-Control"] == "no-store"
    assert (run["name"], run["models"], run["temperature"]) == ("demo", ["base", "tuned"], 0)
    assert run["free"] == {"system": "Answer briefly.", "max_tokens": 96, "rows": 4}
    by_name = {task["name"]: task for task in run["tasks"]}
    assert by_name["sentiment"] == {
        "name": "sentiment",
        "prompt": "Is this review positive or negative?\n{review}",
        "messages": None,
        "columns": [{"name": "review", "required": True, "json": False}],
        "system": "Answer briefly.",
        "max_tokens": 32,
        "rows": 18,
        "is_code": False,
    }
    assert by_name["code"]["max_tokens"] == 96 and by_name["code"]["is_code"]


CONVERSATION = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@pytest.mark.parametrize(
    ("task", "fields", "columns", "row", "messages"),
    [
        (
            {"template": "jinja", "prompt": "{{ a }}{% if b is defined %}{{ b }}{% endif %}", "completion": "{{ c }}"},
            {"a": "x", "b": "y", "c": "z"},
            [("a", True, False), ("b", False, False)],
            {"a": "x"},
            [("system", "Answer briefly."), ("user", "x")],
        ),
        (
            {"messages": "turns"},
            {"turns": CONVERSATION},
            [("turns", True, True)],
            {"turns": [*CONVERSATION, {"role": "user", "content": "Bye"}]},
            [("system", "Answer briefly."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye")],
        ),
        (
            {"prompt": "{q}", "completion": "{a}", "history": "h"},
            {"q": "x", "a": "y", "h": []},
            [("h", True, True), ("q", True, False)],
            {"q": "x", "h": [["1", "2"]]},
            [("system", "Answer briefly."), ("user", "1"), ("assistant", "2"), ("user", "x")],
        ),
        (
            {"prompt": "{q}", "completion": "{a}", "system": "You are {who}, not {nobody}."},
            {"q": "x", "a": "y", "who": "Ada"},
            [("q", True, False), ("who", False, False)],
            {"q": "x", "who": "Ben"},
            [("system", "You are Ben, not {nobody}."), ("user", "x")],
        ),
    ],
    ids=["jinja", "messages", "history", "system"],
)
def test_every_form_of_a_task(tmp_path, ask, task, fields, columns, row, messages):
    folder = one_row_run(tmp_path / "r", "t", fields, task)
    (described,) = ask(folder, "GET", "/alfine/run")[1]["tasks"]
    assert [(column["name"], column["required"], column["json"]) for column in described["columns"]] == columns
    status, reply, _ = ask(folder, "POST", "/alfine/prompt", json={"task": "t", "row": row})
    assert status == 200, reply
    assert [(turn["role"], turn["content"]) for turn in reply["messages"]] == messages


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"task": "sentiment", "row": {}}, "the template names the column {review}"),
        ({"task": "sentiment", "row": {"review": None}}, "column review has no value"),
        ({"task": "x", "row": {}}, "the run has no task 'x'"),
        ({"task": "sentiment"}, "row: field required"),
        ({"task": "sentiment", "row": []}, "row: "),
        ([], "the body: "),
    ],
)
def test_rows_that_do_not_fit_are_explained(demo, ask, body, message):
    status, reply, _ = ask(demo, "POST", "/alfine/prompt", json=body)
    assert status == 400 and reply["error"]["message"].startswith(message)
    assert set(reply["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"[" * 100_000, b'{"task": "a", "task": "b"}', b'{"task": "\\ud800"}', b"null"]
)
def test_bodies_that_are_no_json_are_refused(demo, ask, content):
    for path in ("/alfine/prompt", "/alfine/votes"):
        status, reply, _ = ask(demo, "POST", path, data=content, headers={"Content-Type": "application/json"})
        assert status == 400 and "\n" not in reply["error"]["message"]


def test_a_form_of_another_website_is_refused(demo, ask):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        assert ask(demo, "POST", "/alfine/votes", data=b"{}", headers={"Content-Type": kind})[0] == 415


def test_rows(demo, ask):
    status, row, _ = ask(demo, "GET", "/alfine/row?task=sentiment&index=3")
    assert status == 200 and set(row) == {"row", "answer", "fields", "prompt", "reference"}
    assert row["prompt"].endswith(row["fields"]["review"]) and row["answer"] is None
    status, prompt, _ = ask(demo, "GET", "/alfine/row?index=0")
    assert status == 200 and set(prompt) == {"row", "prompt", "title"}
    for query in ("task=sentiment&index=18", "task=x&index=0", "index=4"):
        assert ask(demo, "GET", f"/alfine/row?{query}")[0] == 404
    for index in ("-1", "x", "", "٣", "1" * 20, "1.5"):
        assert ask(demo, "GET", f"/alfine/row?task=sentiment&index={index}")[0] == 400


def ballot(item, choice="tuned", **changes):
    """A vote on a test row of `/alfine/rating`."""
    return {
        "id": f"{item['task']}-{item['row']}-0000",
        "rater": "Ada",
        "task": item["task"],
        "row": item["row"],
        "answer": item["answer"],
        "system": None,
        "turns": [{"prompt": item["prompt"], "base": item["base"]["text"], "tuned": item["tuned"]["text"]}],
        "settings": None,
        "left": "base",
        "choice": choice,
        **changes,
    }


@pytest.fixture
def small(tmp_path):
    return demo_page_run(tmp_path / "small", rows=8)


def test_test_rows_are_rated_in_one_random_order(small, ask):
    seen = []
    while True:
        status, reply, _ = ask(small, "GET", "/alfine/rating?rater=Ada")
        assert status == 200 and reply["rated"] == len(seen)
        if reply["item"] is None:
            break
        seen.append((reply["item"]["task"], reply["item"]["row"]))
        assert ask(small, "POST", "/alfine/votes", json=ballot(reply["item"]))[0] == 200
    assert len(seen) == reply["total"] == len(set(seen)) and seen != sorted(seen)
    first = ask(small, "GET", "/alfine/rating?rater=Ben")[1]
    assert (first["rated"], first["item"]["task"], first["item"]["row"]) == (0, *seen[0])
    assert [vote.run for vote in read_votes(small / "votes.jsonl")] == ["small"] * len(seen)


FREE = {
    "task": None,
    "row": None,
    "answer": None,
    "turns": [{"prompt": "Hi", "base": "b", "tuned": "t"}, {"prompt": "And?", "base": "", "tuned": "t"}],
    "system": "Answer briefly.",
    "settings": {"temperature": 0.7, "max_tokens": 32, "seed": 3},
}


def test_votes_on_prompts_of_the_rater(small, ask):
    item = ask(small, "GET", "/alfine/rating")[1]["item"]
    status, reply, _ = ask(small, "POST", "/alfine/votes", json=ballot(item, "both bad", **FREE))
    assert status == 200 and reply == {"saved": "votes.jsonl"}
    (vote,) = read_votes(small / "votes.jsonl")
    assert (vote.choice, vote.left, vote.rater, len(vote.turns)) == ("both bad", "base", "Ada", 2)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"choice": "left"}, 400),
        ({"rater": "x" * 81}, 400),
        ({"id": "short"}, 400),
        ({"row": 10_000}, 409),
        ({"turns": [{"prompt": "p", "base": "changed", "tuned": "t"}]}, 409),
        ({"turns": []}, 400),
        ({"task": "unknown"}, 400),
        ({"task": None}, 409),
        ({"row": None}, 400),
        ({"settings": FREE["settings"]}, 400),
        ({**FREE, "settings": None}, 400),
        ({**FREE, "answer": 1}, 400),
        ({**FREE, "settings": {"temperature": "0", "max_tokens": 1, "seed": None}}, 400),
        ({"time": "2020-01-01T00:00:00Z"}, 400),
        ({"row": True}, 400),
    ],
)
def test_votes_that_are_not_valid_are_not_saved(small, ask, changes, status):
    item = ask(small, "GET", "/alfine/rating")[1]["item"]
    assert ask(small, "POST", "/alfine/votes", json=ballot(item, **changes))[0] == status
    assert not (small / "votes.jsonl").exists()


def test_a_vote_that_cannot_be_written_is_an_error(small, ask):
    item = ask(small, "GET", "/alfine/rating")[1]["item"]
    (small / "votes.jsonl").mkdir()
    status, reply, _ = ask(small, "POST", "/alfine/votes", json=ballot(item))
    assert status == 500 and reply["error"]["message"] == "the vote was not saved: Is a directory"


def test_a_damaged_votes_file_is_named(small, ask):
    (small / "votes.jsonl").write_text("{}\n")
    status, reply, _ = ask(small, "GET", "/alfine/rating?rater=Ada")
    assert status == 500 and "delete the line" in reply["error"]["message"]


def test_a_run_without_completions_has_no_rows(tmp_path, ask):
    folder = one_row_run(tmp_path / "r", "t", {"q": "x", "a": "y"}, {"prompt": "{q}", "completion": "{a}"})
    (folder / "tuned" / "completions.jsonl").unlink()
    assert ask(folder, "GET", "/alfine/run")[1]["tasks"][0]["rows"] == 0
    assert ask(folder, "GET", "/alfine/rating")[1] == {"item": None, "rated": 0, "total": 0}
    (folder / "tuned" / "completions.jsonl").write_text("{broken")
    status, reply, _ = ask(folder, "GET", "/alfine/run")
    assert status == 500 and "completions.jsonl is damaged" in reply["error"]["message"]


def test_several_answers_of_a_row_are_numbered(tmp_path, ask):
    completions = [[line("t", 4, f"p{n}", "r", f"{model}{n}") for n in range(2)] for model in "bt"]
    folder = with_config(write_run(tmp_path / "r", {"t": "rouge"}, *completions), {"t": {"messages": "m"}})
    rows = [ask(folder, "GET", f"/alfine/row?task=t&index={n}")[1] for n in range(2)]
    assert [(row["row"], row["answer"], row["prompt"]) for row in rows] == [(4, 1, "p0"), (4, 2, "p1")]
    item = ask(folder, "GET", "/alfine/rating")[1]["item"]
    assert ask(folder, "POST", "/alfine/votes", json=ballot(item))[0] == 200
    assert ask(folder, "GET", "/alfine/rating?rater=Ada")[1]["item"]["answer"] != item["answer"]


def test_completions_of_different_rows_are_not_shown(tmp_path, ask):
    folder = one_row_run(tmp_path / "r", "t", {"q": "x", "a": "y"}, {"prompt": "{q}", "completion": "{a}"})
    write_lines(folder / "tuned" / "completions.jsonl", [line("t", 2, "prompt", "reference", "t")])
    assert ask(folder, "GET", "/alfine/run")[1]["tasks"][0]["rows"] == 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=6), values, max_size=3),
    max_leaves=6,
)
QUERY = st.text(max_size=12) | st.sampled_from(["sentiment", "0", "-1", "\0", "\ud800", "1e9", "9" * 400])


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_request_makes_the_server_fail(small, ask, data):
    """Ballots and rows with keys that are changed, missing or added, and any query: a status below 500."""
    item = {"task": "sentiment", "row": 1, "answer": None, "prompt": "p", "base": {"text": "b"}, "tuned": {"text": "t"}}
    for path, valid in (
        ("/alfine/votes", ballot(item)),
        ("/alfine/prompt", {"task": "sentiment", "row": {"review": "x"}}),
    ):
        body = {**valid, **data.draw(st.dictionaries(st.sampled_from([*valid, "other"]), JSON, max_size=2))}
        body = data.draw(st.sampled_from([body, {key: body[key] for key in list(body)[1:]}]) | JSON)
        content = json.dumps(body).encode()
        status, reply, _ = ask(small, "POST", path, data=content, headers={"Content-Type": "application/json"})
        assert status < 500, (body, reply)
    for path in ("/alfine/row", "/alfine/rating"):
        query = {key: data.draw(QUERY).encode("utf-8", "replace").decode() for key in ("task", "index", "rater")}
        status, reply, _ = ask(small, "GET", path, params=query)
        assert status < 500, (query, reply)
