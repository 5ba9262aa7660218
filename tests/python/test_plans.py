"""The launches of a step on a GPU that need not be there, held against golden files.

A change of a kernel's choice, grid or order shows up here as a change of text. When it is meant,
`ZMLX_UPDATE_PLANS=1 pytest tests/python/test_plans.py` writes the files anew.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from zmlx import presets
from zmlx.patch import explain

FOLDER = Path(__file__).parent / "plans"
# One layer stands for all: they are alike in every supported geometry.
MODELS: dict[str, dict[str, Any]] = {
    "qwen3-30b-a3b": {},
    "qwen3-30b-a3b-8bit": {"name": "qwen3-30b-a3b", "bits": 8, "group_size": 32},
    "small": {},
    "dense-small": {},
    "tiny-llama": {},
    "tiny-llama-float16": {"name": "tiny-llama", "dtype": "float16"},
}
STEPS = {"decode": (1, 1), "batch_of_4": (1, 4), "batch_of_16": (1, 16), "prompt_of_512": (512, 1)}


@pytest.fixture(scope="module")
def model() -> Iterator[Callable[[str], Any]]:
    """The model of a row of MODELS, all zeros; one at a time is kept."""
    kept: dict[str, Any] = {}

    def zeros(tensor: Any, settings: presets.Settings, _: int) -> mx.array:
        codes = tensor.kind == "codes"
        return mx.zeros(tensor.shape, mx.uint32 if codes else presets.DTYPES[settings.dtype])

    def of(row: str) -> Any:
        if row not in kept:
            kept.clear()
            settings = presets.Settings(**{"name": row, "layers": 1} | MODELS[row])
            kept[row] = presets.draw(settings)[0]
        return kept[row]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(presets, "_draw_on_device", zeros)
        # A plan needs no tokenizer, and those of large vocabularies take seconds.
        patched.setattr(presets, "_write_tokenizer", lambda folder, config: None)
        patched.setattr("mlx_lm.utils.load_tokenizer", lambda folder: None)
        yield of


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("row", MODELS)
def test_the_launches_are_those_of_the_golden_file(
    row: str, step: str, model: Callable[[str], Any]
) -> None:
    tokens, batch = STEPS[step]
    text = explain(model(row), tokens, batch, target="cuda")
    plan = text.split("== plan ==\n")[1]
    assert "not planned" not in plan
    path = FOLDER / f"{row}_{step}.txt"
    if os.environ.get("ZMLX_UPDATE_PLANS"):
        path.write_text(plan)
    assert plan == path.read_text()


def test_every_golden_file_has_its_test() -> None:
    wanted = {f"{row}_{step}.txt" for row in MODELS for step in STEPS}
    assert {path.name for path in FOLDER.iterdir()} == wanted
