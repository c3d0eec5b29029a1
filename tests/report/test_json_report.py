"""report.json: its schema and format version."""

import hashlib
import json
from pathlib import Path

import jsonschema

from pipelines.report import analyse, json_report
from tests.report.run_folder import demo_run

ROOT = Path(__file__).parents[2]
SCHEMAS = {8: "cb9e7ecc2b9159173a756c2e650021dc858763bfe6c40ffca63e088bbca664dc"}
"""The SHA-256 of the schema per format_version: a change of the schema without a new version fails here."""


def test_the_schema_is_the_shipped_one_and_a_change_raises_the_version():
    assert (ROOT / "docs" / "report.schema.json").read_text() == json_report.schema()
    known = hashlib.sha256(json_report.schema().encode()).hexdigest()
    assert SCHEMAS[json_report.FORMAT_VERSION] == known, (
        "raise FORMAT_VERSION, then python -m pipelines.report.json_report"
    )


def test_every_report_fits_the_schema(tmp_path):
    schema = json.loads(json_report.schema())
    jsonschema.validate(json.loads(json_report.render(analyse(demo_run(tmp_path / "r", rows=40)))), schema)
