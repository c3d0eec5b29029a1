"""Randomly edited configs and overrides either load or end in a ConfigError."""

import copy
import datetime
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.cli import main
from pipelines.config import other_tools
from pipelines.config.job import load_job
from pipelines.config.pipeline import PipelineSettings
from pipelines.config.pydantic_errors import schema_of
from pipelines.config.schema import ludwig_fields
from pipelines.errors import ConfigError
from tests.fuzzing import FUZZ, assert_one_line_each, edit_bytes

CONFIGS = sorted((Path(__file__).parents[2] / "ludwig_configs").glob("*.yaml"))

ODD_VALUES = [
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


def all_paths(value, path=()):
    """The path of every value in a config."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from all_paths(child, (*path, key))


@st.composite
def edited_config(draw):
    """A shipped config with up to four edits: a key is removed, renamed, nested in itself, or gets another value."""
    config = yaml.safe_load(draw(st.sampled_from(CONFIGS)).read_text(encoding="utf-8"))
    for _ in range(draw(st.integers(1, 4))):
        path = draw(st.sampled_from([path for path in all_paths(config) if path]))
        parent = config
        for key in path[:-1]:
            parent = parent[key]
        key, kind = path[-1], draw(st.sampled_from(["drop", "odd", "rename", "nest", "text", "number", "swap"]))
        if kind == "drop":
            del parent[key]
        elif kind == "odd":
            parent[key] = copy.deepcopy(draw(st.sampled_from(ODD_VALUES)))
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


@FUZZ
@given(edited_config())
def test_an_edited_config_loads_or_is_refused(tmp_path, config):
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(config, allow_unicode=True, sort_keys=False), encoding="utf-8", errors="replace")
    try:
        job = load_job(path)
    except ConfigError as error:
        assert_one_line_each(error, path)
        return
    reloaded_path = tmp_path / "again.yaml"
    reloaded_path.write_text(yaml.safe_dump(job.resolved(), allow_unicode=True), encoding="utf-8")
    assert load_job(reloaded_path).pipeline == job.pipeline


@FUZZ
@given(
    st.sampled_from(CONFIGS),
    st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 40), st.binary(max_size=12)), min_size=1, max_size=4),
)
def test_a_config_with_edited_bytes_loads_or_is_refused(tmp_path, shipped, edits):
    raw = edit_bytes(shipped.read_bytes(), edits)
    path = tmp_path / "job.yaml"
    path.write_bytes(raw)
    try:
        load_job(path)
    except ConfigError as error:
        assert_one_line_each(error, path)


def all_keys(fields):
    """Every key of a schema, at any depth."""
    for name, node in fields.items():
        yield name
        for children in [
            node.get("fields", {}),
            *node.get("variants", {}).values(),
            node.get("entries", {}).get("fields", {}),
        ]:
            yield from all_keys(children)


KNOWN_KEYS = sorted(
    {"pipeline", "NAME", "sentiment", *all_keys(ludwig_fields()), *all_keys(schema_of(PipelineSettings)["fields"])}
)
FOREIGN_KEYS = sorted(
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
ODD_KEYS = ["", " ", "é", "\u202e", "a" * 300, "a.b", "a b", "{x}", "1", "yes", "null", "~", "<<x", "-", "\x1b[31m"]
KEYS = st.one_of(
    st.sampled_from(KNOWN_KEYS),
    st.sampled_from(KNOWN_KEYS),
    st.sampled_from(FOREIGN_KEYS),
    st.sampled_from(ODD_KEYS),
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
    st.sampled_from(KNOWN_KEYS + FOREIGN_KEYS),
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
    st.sampled_from(["top", "pipeline", "shipped", "aliases"]),
    st.lists(KEYS, max_size=3),
)
def test_check_never_ends_in_a_traceback(tmp_path, monkeypatch, config, where, path):
    monkeypatch.chdir(tmp_path)
    if where == "pipeline":
        config = {"pipeline": config, "base_model": "x/y"}
    elif where == "aliases":  # dumped with an anchor and aliases
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
    result = CliRunner().invoke(main, ["check", "job.yaml"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in (0, 2) and (result.exit_code == 0 or result.stderr.startswith("error: job.yaml"))
    assert all(line.isprintable() and len(line) < 1000 for line in result.stderr.splitlines())


@settings(FUZZ, max_examples=200)
@given(
    st.lists(KEYS, min_size=1, max_size=5),
    st.one_of(SCALARS.map(str), st.text(max_size=9), st.sampled_from(["{", "[", "*a", "&a [*a]", "!!x y"])),
)
def test_an_override_never_ends_in_a_traceback(path, value):
    try:
        load_job(CONFIGS[0], [f"{'.'.join(path)}={value}"])
    except ConfigError as error:
        assert all(str(problem).strip() and "\n" not in str(problem) for problem in error.problems)


@pytest.mark.parametrize(
    "path", ["adapter.rank_pattern" + ".a" * 3000, "a" + ".a" * 3000, "pipeline.tasks" + ".a" * 3000]
)
def test_an_override_of_any_depth_is_refused(path):
    with pytest.raises(ConfigError, match="the key has [0-9,]+ levels"):
        load_job(CONFIGS[0], [f"{path}=1"])


@pytest.mark.parametrize("depth", [20, 40, 200, 2000])
@pytest.mark.parametrize("key", ["adapter: {type: lora, rank_pattern: ", "x: {y: ", "pipeline: {tasks: "])
def test_a_config_of_any_depth_loads_or_is_refused(tmp_path, key, depth):
    (tmp_path / "job.yaml").write_text(f"base_model: x/y\n{key}{'{a: ' * depth}1{'}' * depth}}}\n", encoding="utf-8")
    with pytest.raises(ConfigError):
        load_job(tmp_path / "job.yaml")
