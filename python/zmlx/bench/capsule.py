# zmlx/bench/capsule.py: result files of all kinds: one envelope, checked when written and read.
"""Capsules: one JSON file a run, in the format of `capsule.schema.json`.

Each holds what is needed to believe and repeat it: machine, versions, commit, command line,
settings, every raw run.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from zmlx.bench import machine
from zmlx.files import write_json

SCHEMA_VERSION = 1
SCHEMA = Path(__file__).parent / "capsule.schema.json"


def envelope(
    kind: str,
    model: dict[str, Any] | None,
    settings: dict[str, Any],
    command: list[str] | None = None,
) -> dict[str, Any]:
    """What every capsule begins with. It is incomplete until `recording` has ended well."""
    return {
        "kind": kind,
        "schema_version": SCHEMA_VERSION,
        "complete": False,
        "stopped": "running",
        "started": now(),
        "finished": now(),
        "command": command if command is not None else command_line(),
        "environment": machine.environment(),
        "machine": machine.machine(),
        "versions": machine.versions(),
        "commit": machine.commit(),
        "model": model,
        "settings": settings,
    }


@contextlib.contextmanager
def recording(document: dict[str, Any], save: Callable[[], None]) -> Iterator[None]:
    """Saves the document at the end, marked complete, or incomplete with what stopped it."""
    try:
        yield
        document["complete"] = True
        document["stopped"] = None
    except KeyboardInterrupt:
        document["stopped"] = "interrupted"
        raise
    except Exception as error:
        document["stopped"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        document["finished"] = now()
        save()


def write(path: Path, document: dict[str, Any]) -> None:
    """Writes a capsule whole or not at all. Raises ValueError for what the schema does not know."""
    # As it will be read: tuples become lists.
    problem = _problem(json.loads(json.dumps(document)))
    if problem:
        raise ValueError(f"this is no capsule and was not written: {problem}.")
    write_json(path, document)


def read(path: Path) -> dict[str, Any]:
    """Reads a capsule. Raises ValueError, in one line, for a file that is none or is newer."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(document, dict) or "schema_version" not in document:
        raise ValueError(f"{path} is not a result of zmlx: it has no schema version.")
    version = document["schema_version"]
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema version {version}, but this zmlx knows versions up to "
            f"{SCHEMA_VERSION}: it was written by a newer zmlx. Update zmlx to read it."
        )
    problem = _problem(document)
    if problem:
        raise ValueError(f"{path} is not a result of zmlx: {problem}.")
    return document


def command_line() -> list[str]:
    """The command as the user gave it, without the program's folder."""
    program = Path(sys.argv[0]).name
    return ["zmlx" if program == "__main__.py" else program, *sys.argv[1:]]


def now() -> str:
    """This moment, UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _problem(document: Any) -> str | None:
    """The first thing that the schema does not allow, in one line; None when all is well."""
    from jsonschema.exceptions import best_match

    errors = list(_validator().iter_errors(document))
    if not errors:
        return None
    # Every field counts as unevaluated where its kind has any other error.
    known = [error for error in errors if error.validator != "unevaluatedProperties"]
    error = best_match(known or errors)
    place = "/".join(str(part) for part in error.absolute_path)
    return f"{place or 'the document'}: {error.message.splitlines()[0][:200]}"


@functools.cache
def _validator() -> Any:
    import jsonschema

    return jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
