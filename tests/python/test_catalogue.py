# tests/python/test_catalogue.py: docs/catalogue.md against the functions that it lists.
from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest

from zmlx import kernels

PAGE = (Path(__file__).parents[2] / "docs" / "catalogue.md").read_text()


def section(title: str) -> list[str]:
    """First cells of the table below a heading."""
    text = PAGE.split(f"### `{title}`\n", 1)[1].split("\n#", 1)[0]
    return re.findall(r"^\| `([^`]*)` \|", text, re.MULTILINE)


def signature(function: Any) -> str:
    """Names and defaults, without types."""
    parameters = inspect.signature(function).parameters.values()
    return str(inspect.Signature([p.replace(annotation=p.empty) for p in parameters]))


def modules() -> list[str]:
    return re.findall(r"^### `(zmlx\.kernels\.\S+)`$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("name", modules())
def test_the_page_has_the_signature_of_every_function(name: str) -> None:
    module = importlib.import_module(name)
    have = [f"{f}{signature(getattr(module, f))}" for f in module.__all__]
    assert section(name) == have


def test_the_page_has_every_module() -> None:
    listed = {name.removeprefix("zmlx.kernels.").split(".")[0] for name in modules()}
    assert listed == {*kernels.__all__} - {"activations_dsl"}
    folder = Path(kernels.__file__).parent
    files = {p.stem for p in folder.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert files - {"__init__", "options"} == {*kernels.__all__}


def test_what_stands_beside_the_catalogue_exists() -> None:
    table = PAGE.split("## Beside the catalogue\n", 1)[1]
    rows = re.findall(r"^\| (`zmlx.*?) \| (.*) \|$", table, re.MULTILINE)
    assert len(rows) > 15
    for _, here in rows:
        for path in re.findall(r"`(zmlx(?:\.\w+)+)`", here):
            assert pkgutil.resolve_name(path) is not None, path


def test_the_example_runs() -> None:
    example = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert example
    values: dict[str, Any] = {}
    exec(example[1], values)
    assert values["experts"].shape == (4, 8)
