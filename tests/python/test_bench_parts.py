# tests/python/test_bench_parts.py: statistics, order of runs, comparison of tokens, facts, files.
from __future__ import annotations

import json

import mlx.core as mx
import pytest

from zmlx.bench import machine
from zmlx.bench.fidelity import TOP, compare_tokens, top_logits
from zmlx.bench.report import number
from zmlx.bench.statistics import Summary, alternate, differ, summarize
from zmlx.files import write_json


def test_a_summary_is_median_minimum_and_maximum():
    assert summarize([3.0, 1.0, 2.0]) == Summary(median=2.0, min=1.0, max=3.0, runs=3)
    assert summarize([4.0, 1.0]) == Summary(median=2.5, min=1.0, max=4.0, runs=2)


def test_runs_without_the_metric_do_not_count():
    assert summarize([None, 5.0, None]) == Summary(median=5.0, min=5.0, max=5.0, runs=1)
    assert summarize([None]) is None
    assert summarize([]) is None


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1, 2], [3, 4], True),
        ([3, 4], [1, 2], True),
        ([1, 3], [2, 4], False),
        ([1, 4], [2, 3], False),
        ([1, 2], [2, 3], False),
        ([1.0], [1.04], False),
        ([1.0], [1.2], True),
        ([1.0, 1.0], [1.04], False),
        ([1.0, 1.0], [1.04, 1.04], True),
    ],
)
def test_two_sides_differ_only_when_their_ranges_do_not_touch(a, b, expected):
    assert differ(summarize(a), summarize(b)) is expected


def test_runs_go_a_b_b_a():
    assert "".join(variant[0] for variant in alternate(4, 4)) == "sppsspps"
    assert "".join(variant[0] for variant in alternate(3, 3)) == "sppssp"
    assert "".join(variant[0] for variant in alternate(1, 3)) == "sppp"
    assert "".join(variant[0] for variant in alternate(2, 1)) == "sps"


def test_equal_tokens_are_equal_over_what_both_have():
    assert compare_tokens([1, 2, 3], [1, 2, 3, 4]) == {
        "compared": 3,
        "equal": True,
        "first_difference": None,
    }
    assert compare_tokens([], [1])["compared"] == 0


def test_the_first_difference_comes_with_stocks_margin_and_gap():
    top = [[(1, -0.5), (7, -1.0)], [(2, -0.25), (9, -0.5), (8, -2.25)]]
    found = compare_tokens([1, 2, 3], [1, 8, 5], top)
    assert not found["equal"]
    assert found["first_difference"] == {
        "position": 1,
        "stock_token": 2,
        "patched_token": 8,
        "margin": 0.25,
        "gap": 2.0,
    }


def test_a_patched_token_far_down_has_no_gap():
    top = [[(1, -0.5), (7, -1.0)]]
    first = compare_tokens([1], [3], top)["first_difference"]
    assert first["margin"] == 0.5
    assert first["gap"] is None


def test_a_difference_without_known_logits_has_no_margin():
    first = compare_tokens([1, 2], [1, 3], [[(1, 0.0), (2, -1.0)]])["first_difference"]
    assert (first["position"], first["margin"], first["gap"]) == (1, None, None)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_the_top_logits_come_largest_first_and_ties_by_token(dtype):
    values = mx.array([0.0, 2.0, -1.0, 4.0, 2.0, 1.0, 0.5], dtype)
    assert top_logits(values) == [(3, 4.0), (1, 2.0), (4, 2.0), (5, 1.0), (6, 0.5)]
    assert len(top_logits(values)) == TOP


def test_the_environment_keeps_what_can_change_a_figure_and_nothing_else():
    variables = {"ZMLX_NUM_THREADS": "2", "HOME": "/home/someone", "OMP_NUM_THREADS": "1"}
    assert machine.environment(variables) == {"OMP_NUM_THREADS": "1", "ZMLX_NUM_THREADS": "2"}


def test_the_peak_of_resident_memory_can_be_started_anew():
    resident = machine.ResidentPeak()
    before = resident.bytes()
    if before is None:
        pytest.skip("this system does not tell a process's peak, or cannot start a new one")
    block = bytearray(b"x" * (64 << 20))
    peak = resident.bytes()
    del block
    assert peak >= before + (60 << 20)
    assert machine.ResidentPeak().bytes() < peak


def test_a_peak_from_before_is_not_told(monkeypatch):
    peaks = {"VmHWM": 5 << 30, "VmRSS": 1 << 30}
    monkeypatch.setattr(machine, "_status_bytes", peaks.get)
    monkeypatch.setattr(machine.Path, "write_text", lambda *_: None)
    assert machine.ResidentPeak().bytes() is None
    peaks["VmRSS"] = peaks["VmHWM"]
    assert machine.ResidentPeak().bytes() == 5 << 30


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "results" / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(12345.6, "12,346"), (123.4, "123"), (12.34, "12.3"), (1.234, "1.23"), (0.01234, "0.0123")],
)
def test_numbers_show_three_digits(value, text):
    assert number(value) == text
