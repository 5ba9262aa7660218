"""The batch benchmark: what it counts, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from zmlx.bench import capsule
from zmlx.bench.batch import command, measure, numbers, prompts_of, same_share
from zmlx.patch import is_patched


def test_rows_count_all_sequences_and_find_the_same_tokens(load: Any) -> None:
    model, _ = load("tiny-qwen3", dtype="float32")
    rows = list(measure(model, 512, [1, 3], prompt_tokens=8, max_tokens=6, runs=1))
    assert [row.batch for row in rows] == [1, 3]
    for row in rows:
        assert row.same_tokens == 1.0
        assert row.stock_calls == 0
        assert min(row.stock_prompt_tps, row.patched_prompt_tps) > 0
        assert min(row.stock_generation_tps, row.patched_generation_tps) > 0
    assert not is_patched(model)


def test_prompts_differ_in_length_so_that_there_is_padding() -> None:
    assert [len(p) for p in prompts_of(3, 8, 512, 0)] == [8, 6, 8]
    assert [len(p) for p in prompts_of(2, 1, 512, 0)] == [1, 1]


def test_tokens_after_the_first_difference_do_not_count() -> None:
    assert same_share([[1, 2, 3, 4]], [[1, 2, 9, 4]]) == 0.5
    assert same_share([[1, 2], [3, 4]], [[1, 2], [5, 4]]) == 0.5
    assert same_share([[1, 2, 3]], [[1, 2]]) == 2 / 3
    assert same_share([], []) == 1.0


@pytest.mark.parametrize("text", ["", "0", "1,x", "2,-1"])
def test_batch_sizes_are_positive_numbers(text: str) -> None:
    with pytest.raises(click.BadParameter, match="must be numbers of 1 or more"):
        numbers(text)


def test_the_command_prints_a_table_and_writes_rows(preset_folder: Any, tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    folder = preset_folder("tiny-llama", dtype="float32")
    arguments = ["--model", folder, "--batch", "2", "--prompt-tokens", "4", "--max-tokens", "3"]
    result = CliRunner().invoke(command, [*arguments, "--runs", "1", "--json", str(out)])
    assert result.exit_code == 0, result.output
    assert "100%" in result.output
    document = capsule.read(out)
    assert document["complete"]
    assert document["settings"]["batches"] == [2]
    (row,) = document["rows"]
    assert row["batch"] == 2
    assert row["stock_calls"] == 0
