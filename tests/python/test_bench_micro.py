# tests/python/test_bench_micro.py: the micro benchmark compares first, and writes what it prints.
from dataclasses import replace

import mlx.core as mx
import pytest
from click.testing import CliRunner

from zmlx.bench import capsule, micro
from zmlx.cli import cli


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro, "WORKS", tuple(replace(work, rows=5) for work in micro.WORKS))


@pytest.mark.usefixtures("small")
def test_every_operation_agrees_with_mlx_and_is_reported(tmp_path) -> None:
    out = tmp_path / "micro.json"
    result = CliRunner().invoke(cli, ["bench", "micro", "--seconds", "0.001", "--json", str(out)])
    assert result.exit_code == 0, result.output
    document = capsule.read(out)
    assert document["complete"]
    assert len(document["rows"]) == len(micro.WORKS) * len(micro.DTYPES) * 2
    for row in document["rows"]:
        assert 0 < row["zmlx"]["min_us"] <= row["zmlx"]["median_us"] <= row["zmlx"]["max_us"]
        assert row["name"] in result.output
        assert (row["share"] is None) == (row["rows"] == 1)


@pytest.mark.usefixtures("small")
def test_parts_of_the_table_can_be_measured_one_after_the_other(tmp_path) -> None:
    out = tmp_path / "micro.json"
    usual = [
        "bench",
        "micro",
        "--seconds",
        "0.001",
        "--json",
        str(out),
        "--append",
        "--size",
        "row",
    ]
    for only, dtype in (("sum", "float32"), ("cumsum", "float16"), ("cumsum", "float16")):
        result = CliRunner().invoke(cli, [*usual, "--only", only, "--dtype", dtype])
        assert result.exit_code == 0, result.output
    document = capsule.read(out)
    rows = [(row["name"], row["dtype"]) for row in document["rows"]]
    assert rows == [("sum", "float32"), ("cumsum", "float32"), ("cumsum", "float16")]
    assert len(document["parts"]) == 3
    other = CliRunner().invoke(cli, [*usual, "--only", "sum", "--threads", "1"])
    assert other.exit_code == 2
    assert "was measured with another setting" in other.output


def test_a_wrong_kernel_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    work = next(work for work in micro.WORKS if work.name == "sum")
    wrong = replace(work, rows=4, fused=lambda x: mx.sum(x, axis=-1) + 1)
    monkeypatch.setattr(micro, "WORKS", (wrong,))
    with pytest.raises(ValueError, match="sum, float32: zmlx and MLX differ by"):
        list(micro.measure(["float32"], 0.001))
