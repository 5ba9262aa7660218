# tests/python/test_capsule.py: result files are checked when written and when read.
from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from zmlx.bench import capsule

SETTINGS = {}
DOCS = Path(__file__).parents[2] / "docs" / "capsule.schema.json"


def doctor(**fields):
    document = capsule.envelope("doctor", None, SETTINGS, ["zmlx", "doctor"])
    rest = {"checks": [], "read_bandwidth_bytes_per_s": 1e9, "launch_s": None, "barrier_s": None}
    return {**document, **rest, **fields}


def test_the_schema_is_one_and_the_documentation_has_the_same():
    schema = json.loads(capsule.SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    assert json.loads(DOCS.read_text()) == schema
    assert schema["properties"]["schema_version"] == {"const": capsule.SCHEMA_VERSION}


def test_what_is_written_is_read_again(tmp_path):
    path = tmp_path / "result.json"
    document = doctor()
    with capsule.recording(document, lambda: capsule.write(path, document)):
        document["launch_s"] = 1e-6
    assert capsule.read(path) == document
    assert document["complete"]
    assert document["stopped"] is None


@pytest.mark.parametrize(
    ("error", "stopped"),
    [(KeyboardInterrupt(), "interrupted"), (RuntimeError("no plan"), "RuntimeError: no plan")],
)
def test_what_was_measured_before_an_end_is_on_disk_and_incomplete(tmp_path, error, stopped):
    path = tmp_path / "result.json"
    document = doctor()

    def fail():
        raise error

    with (
        pytest.raises(type(error)),
        capsule.recording(document, lambda: capsule.write(path, document)),
    ):
        fail()
    assert capsule.read(path)["stopped"] == stopped
    assert not capsule.read(path)["complete"]


def test_a_result_from_a_newer_schema_is_refused(tmp_path):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(doctor(schema_version=capsule.SCHEMA_VERSION + 1)))
    with pytest.raises(ValueError, match=r"has schema version 2, but .* written by a newer zmlx"):
        capsule.read(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"launch_s": "fast"}, "launch_s: 'fast' is not"),
        ({"extra": 1}, "'extra' was unexpected"),
        ({"kind": "poem"}, "kind: 'poem' is not one of"),
        ({"kind": "inference"}, "'patch' is a required property"),
        ({"checks": [{"name": "x"}]}, "checks/0: 'status' is a required property"),
        ({"schema_version": "1"}, "schema_version: 1 was expected"),
    ],
)
def test_what_the_schema_does_not_know_is_neither_written_nor_read(tmp_path, fields, message):
    path = tmp_path / "result.json"
    with pytest.raises(ValueError, match=message):
        capsule.write(path, doctor(**fields))
    assert not path.exists()
    path.write_text(json.dumps(doctor(**fields)))
    with pytest.raises(ValueError, match=message):
        capsule.read(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not JSON"), ("[]", "has no schema version"), ("{}", "has no schema version")],
)
def test_other_files_are_refused(tmp_path, text, message):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        capsule.read(path)
