# tests/python/test_bench_micro.py: the micro benchmark compares first, and writes what it prints.
import json
from dataclasses import replace

import mlx.core as mx
import pytest
from click.testing import CliRunner

from zmlx.bench import micro
from zmlx.cli import cli


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro, "WORKS", tuple(replace(work, rows=5) for work in micro.WORKS))


@pytest.mark.usefixtures("small")
def test_every_operation_agrees_with_mlx_and_is_reported(tmp_path) -> None:
    out = tmp_path / "micro.json"
    result = CliRunner().invoke(cli, ["bench", "micro", "--seconds", "0.001", "--json", str(out)])
    assert result.exit_code == 0, result.output
    document = json.loads(out.read_text())
    assert len(document["rows"]) == len(micro.WORKS) * len(micro.DTYPES) * 2
    for row in document["rows"]:
        assert 0 < row["zmlx_min_us"] <= row["zmlx_us"] <= row["zmlx_max_us"]
        assert row["name"] in result.output
    assert document["machine"]["cores"] >= 1


def test_a_wrong_kernel_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    work = next(work for work in micro.WORKS if work.name == "sum")
    wrong = replace(work, rows=4, fused=lambda x: mx.sum(x, axis=-1) + 1)
    monkeypatch.setattr(micro, "WORKS", (wrong,))
    with pytest.raises(ValueError, match="sum, float32: zmlx and MLX differ by"):
        list(micro.measure(["float32"], 0.001))
