"""Configs, rows and model folders edited at random: an answer or one clear error, never anything else."""

import copy
import datetime
import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.cli import main
from pipelines.config import other_tools
from pipelines.config.job import load_job
from pipelines.config.pipeline import Pipeline
from pipelines.config.pydantic_errors import schema_of
from pipelines.config.schema import ludwig_fields
from pipelines.data.examples import load_examples
from pipelines.data.readers import read_rows
from pipelines.errors import AlfineError, ConfigError, DataError, ModelError
from pipelines.evaluation.retention_files import check_retention_evals
from pipelines.modeling.base_models import find_base_model, load_tokenizer
from pipelines.modeling.content_hash import fingerprint
from pipelines.storage.strict_json import dump
from tests.tiny import make_model

CONFIGS = sorted((Path(__file__).parents[2] / "ludwig_configs").glob("*.yaml"))
FUZZ = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

STRANGE = [
    None,
    True,
    False,
    0,
    -1,
    1e308,
    float("inf"),
    float("nan"),
    10**400,
    "",
    " ",
    "auto",
    "none",
    "{",
    "{a}",
    "{{",
    "\x00",
    "\ud7ff",
    "é",
    "\u202e",
    "a" * 500,
    "data/../../etc/passwd",
    [],
    {},
    [[]],
    [None],
    {"": 1},
    {"type": "x"},
    {1: 2},
    "2024-01-01",
    "1e5",
    "0x10",
    "~",
]


def places(value, path=()):
    """Every place in a config, the deepest included."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


@st.composite
def edited(draw):
    """A shipped config with up to four edits: a key gone, renamed, moved, repeated below itself, or another value."""
    config = yaml.safe_load(draw(st.sampled_from(CONFIGS)).read_text(encoding="utf-8"))
    for _ in range(draw(st.integers(1, 4))):
        path = draw(st.sampled_from([path for path in places(config) if path]))
        parent = config
        for key in path[:-1]:
            parent = parent[key]
        key, kind = path[-1], draw(st.sampled_from(["drop", "strange", "rename", "nest", "text", "number", "swap"]))
        if kind == "drop":
            del parent[key]
        elif kind == "strange":
            parent[key] = copy.deepcopy(draw(st.sampled_from(STRANGE)))
        elif kind == "rename" and isinstance(parent, dict):
            parent[
                draw(st.sampled_from([str(key)[:-1], str(key) + "s", "", "é", str(key).upper(), "pipeline", "type"]))
            ] = parent.pop(key)
        elif kind == "nest":
            parent[key] = {str(key): copy.deepcopy(parent[key])}
        elif kind == "text":
            parent[key] = draw(st.text(max_size=20))
        elif kind == "number":
            parent[key] = draw(st.one_of(st.integers(), st.floats()))
        elif kind == "swap":
            parent[key] = copy.deepcopy(draw(st.sampled_from(list(config.values()))))
        if not config:
            break
    return config


def one_line_each(error, file):
    assert error.problems
    for problem in error.problems:
        text = str(problem)
        assert text.strip() and text.isprintable() and "Traceback" not in text, text
        assert len(text) < 1000, text
        assert problem.file is None or Path(problem.file).name == Path(file).name or "data" in str(problem.file), text


@FUZZ
@given(edited())
def test_an_edited_config_loads_or_is_refused(tmp_path, config):
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(config, allow_unicode=True, sort_keys=False), encoding="utf-8", errors="replace")
    try:
        job = load_job(path)
    except ConfigError as error:
        one_line_each(error, path)
        return
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(job.resolved(), allow_unicode=True), encoding="utf-8")
    assert load_job(again).pipeline == job.pipeline


@FUZZ
@given(
    st.sampled_from(CONFIGS),
    st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 40), st.binary(max_size=12)), min_size=1, max_size=4),
)
def test_a_config_with_other_bytes_loads_or_is_refused(tmp_path, shipped, edits):
    raw = shipped.read_bytes()
    for place, length, put in edits:
        place %= len(raw) + 1
        raw = raw[:place] + put + raw[place + length :]
    path = tmp_path / "job.yaml"
    path.write_bytes(raw)
    try:
        load_job(path)
    except ConfigError as error:
        one_line_each(error, path)


def keys_of(fields):
    """Every key of a tree of fields, at any depth."""
    for name, node in fields.items():
        yield name
        for inner in [
            node.get("fields", {}),
            *node.get("variants", {}).values(),
            node.get("each", {}).get("fields", {}),
        ]:
            yield from keys_of(inner)


KNOWN = sorted({"pipeline", "NAME", "sentiment", *keys_of(ludwig_fields()), *keys_of(schema_of(Pipeline)["fields"])})
OF_OTHERS = sorted(
    {
        *other_tools.KEY_ALIASES,
        *other_tools.REPLACEMENTS,
        *other_tools.NO_COUNTERPART,
        "_component_",
        "warmup",
        "warmup_min",
        "loss_balance",
        "combiner",
        "category",
        "encoder",
        "decoder",
        "features",
        "hyperopt",
        "goal",
        "executor",
        "search_alg",
        "lora_qkv_kernel",
        "unfrozen_parameters",
    }
)
ODD = ["", " ", "é", "\u202e", "a" * 300, "a.b", "a b", "{x}", "1", "yes", "null", "~", "<<x", "-", "\x1b[31m"]
KEYS = st.one_of(
    st.sampled_from(KNOWN),
    st.sampled_from(KNOWN),
    st.sampled_from(OF_OTHERS),
    st.sampled_from(ODD),
    st.text(max_size=4),
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.just(10**400),
    st.just(-(2**70)),
    st.floats(),
    st.dates(),
    st.just(datetime.datetime(2024, 1, 2, 3)),
    st.sampled_from(
        [
            "",
            "auto",
            "none",
            "lora",
            "adamw",
            "cosine",
            "ewc",
            "full",
            "yes",
            "1e-4",
            "0x10",
            "12:30",
            "{label}",
            "{",
            "local",
            "ray",
            "ewc+si",
        ]
    ),
    st.sampled_from(KNOWN + OF_OTHERS),
    st.text(max_size=6),
)
NESTED = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=5)),
    max_leaves=12,
)


@settings(FUZZ, max_examples=400)
@given(
    st.dictionaries(KEYS, NESTED, min_size=1, max_size=8),
    st.sampled_from(["alone", "pipeline", "shipped", "shared"]),
    st.lists(KEYS, max_size=3),
)
def test_no_yaml_ends_check_in_a_traceback(tmp_path, monkeypatch, config, where, path):
    monkeypatch.chdir(tmp_path)
    if where == "pipeline":
        config = {"pipeline": config, "base_model": "x/y"}
    elif where == "shared":  # written with an anchor and aliases
        config = {"pipeline": config, "trainer": config, "adapter": config, **config}
    elif where == "shipped":
        shipped = yaml.safe_load(CONFIGS[0].read_text(encoding="utf-8"))
        parent = shipped
        for key in path:
            parent[key] = parent[key] if isinstance(parent.get(key), dict) else {}
            parent = parent[key]
        parent.update(config)
        config = shipped
    Path("job.yaml").write_text(
        yaml.safe_dump(config, allow_unicode=True, sort_keys=False), encoding="utf-8", errors="replace"
    )
    done = CliRunner().invoke(main, ["check", "job.yaml"])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code in (0, 2) and (done.exit_code == 0 or done.stderr.startswith("error: job.yaml"))
    assert all(line.isprintable() and len(line) < 1000 for line in done.stderr.splitlines())


@settings(FUZZ, max_examples=200)
@given(
    st.lists(KEYS, min_size=1, max_size=5),
    st.one_of(SCALARS.map(str), st.text(max_size=9), st.sampled_from(["{", "[", "*a", "&a [*a]", "!!x y"])),
)
def test_no_override_ends_in_a_traceback(path, value):
    try:
        load_job(CONFIGS[0], [f"{'.'.join(path)}={value}"])
    except ConfigError as error:
        assert all(str(problem).strip() and "\n" not in str(problem) for problem in error.problems)


@pytest.mark.parametrize(
    "path", ["adapter.rank_pattern" + ".a" * 3000, "a" + ".a" * 3000, "pipeline.tasks" + ".a" * 3000]
)
def test_an_override_of_any_depth_is_refused(path):
    with pytest.raises(ConfigError, match="names .* keys below each other"):
        load_job(CONFIGS[0], [f"{path}=1"])


@pytest.mark.parametrize("depth", [20, 40, 200, 2000])
@pytest.mark.parametrize("key", ["adapter: {type: lora, rank_pattern: ", "x: {y: ", "pipeline: {tasks: "])
def test_a_config_of_any_depth_loads_or_is_refused(tmp_path, key, depth):
    (tmp_path / "job.yaml").write_text(f"base_model: x/y\n{key}{'{a: ' * depth}1{'}' * depth}}}\n", encoding="utf-8")
    with pytest.raises(ConfigError):
        load_job(tmp_path / "job.yaml")


ROWS = {
    "rows.jsonl": b'{"q": "is 1 odd", "a": "yes", "n": [1, null], "split": "train"}\n{"q": "is 2 odd", "a": "no"}\n',
    "rows.csv": b'q,a,split\n"is 1, odd",yes,train\nis 2 odd,no,test\n',
}


@FUZZ
@given(
    st.sampled_from(sorted(ROWS)),
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 9), st.binary(max_size=9)), max_size=4),
)
def test_rows_with_other_bytes_are_read_or_refused(tmp_path, name, edits):
    raw = ROWS[name] * 3
    for place, length, put in edits:
        place %= len(raw) + 1
        raw = raw[:place] + put + raw[place + length :]
    path = tmp_path / name
    path.write_bytes(raw)
    try:
        assert all(isinstance(row, dict) for row in read_rows(path))
    except DataError as error:
        one_line_each(error, path)
    config = {
        "base_model": "x/y",
        "pipeline": {
            "tasks": {"t": {"data": str(path), "prompt": "{q}", "completion": "{a}", "metric": "exact_match"}}
        },
    }
    (tmp_path / "job.yaml").write_text(json.dumps(config))
    job = load_job(tmp_path / "job.yaml")
    try:
        assert list(load_examples(job.pipeline))
    except DataError as error:
        one_line_each(error, path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(categories=None)),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(st.text(st.characters(categories=None), max_size=3), children, max_size=3)
    ),
    max_leaves=5,
)


@FUZZ
@given(
    st.lists(
        st.fixed_dictionaries({"q": JSON | st.just("q"), "other": JSON, "a": st.just("yes")}), min_size=4, max_size=6
    ),
    st.booleans(),
)
def test_rows_of_any_values_are_refused_or_come_out_as_strict_json(tmp_path, rows, escaped):
    """Python's own writer makes NaN, halves of characters (as escapes) and whole numbers of any size."""
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=escaped) + "\n" for row in rows), encoding="utf-8", errors="surrogatepass"
    )
    config = {
        "base_model": "x/y",
        "pipeline": {
            "tasks": {"t": {"data": str(path), "prompt": "{q}", "completion": "{a}", "metric": "exact_match"}}
        },
    }
    (tmp_path / "job.yaml").write_text(json.dumps(config))
    try:
        examples = list(load_examples(load_job(tmp_path / "job.yaml").pipeline))
    except DataError as error:
        one_line_each(error, path)
        return
    assert len(examples) == len(rows)
    for example in examples:
        example.prompt.encode()
        json.loads(dump(example.fields).encode(), parse_constant=pytest.fail)


@FUZZ
@given(st.binary(max_size=60), st.sampled_from(["multiple_choice", "text_nll", "kl"]))
def test_guards_of_any_bytes_are_read_or_refused(tmp_path, raw, kind):
    path = tmp_path / "guard.jsonl"
    path.write_bytes(raw)
    guards = {"g": {"kind": kind, "data": str(path)}}
    config = {
        "base_model": "x/y",
        "pipeline": {
            "tasks": {"t": {"data": "d.jsonl", "prompt": "{q}", "completion": "{a}", "metric": "exact_match"}},
            "forgetting": {"strategy": "none", "evals": guards},
        },
    }
    (tmp_path / "job.yaml").write_text(json.dumps(config))
    try:
        check_retention_evals(load_job(tmp_path / "job.yaml").pipeline.forgetting)
    except AlfineError as error:
        one_line_each(error, path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model") / "m")


@settings(FUZZ, max_examples=60)
@given(
    st.sampled_from(["config.json", "tokenizer.json", "tokenizer_config.json"]),
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 30), st.binary(max_size=8)), min_size=1, max_size=3),
)
def test_a_model_folder_with_other_bytes_is_read_or_refused(tmp_path, folder, name, edits):
    import shutil

    place_of = tmp_path / "edited"
    shutil.rmtree(place_of, ignore_errors=True)
    shutil.copytree(folder, place_of)
    raw = (place_of / name).read_bytes()
    for place, length, put in edits:
        place %= len(raw) + 1
        raw = raw[:place] + put + raw[place + length :]
    (place_of / name).write_bytes(raw)
    try:
        found = find_base_model(str(place_of))
        fingerprint(found)
        load_tokenizer(found)
    except ModelError as error:
        one_line_each(error, name)
