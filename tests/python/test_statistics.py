# tests/python/test_statistics.py: verdicts on simulated noise, where the truth is known.
from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from zmlx.bench.statistics import (
    CONFIDENCE,
    LOOKS,
    Change,
    is_equal,
    paired_change,
    paired_trial,
    unpaired_change,
    verdict,
)

SIMULATIONS = 1000
# One run in a hundred simulations more than the share may fall in by chance.
SHARE = 1 - CONFIDENCE + 3 * math.sqrt((1 - CONFIDENCE) * CONFIDENCE / SIMULATIONS)


class Machine:
    """Run times around one second: noise of a single run, and a drift that both sides share."""

    def __init__(self, seed: int, noise: float, drift: float = 0.0) -> None:
        self.random = np.random.default_rng(seed)
        self.noise = noise
        self.drift = drift
        self.runs = 0

    def run(self, cost: float = 1.0) -> float:
        self.runs += 1
        return cost * math.exp(self.random.normal(0, self.noise) + self.drift * self.runs)


def share_of(simulate, outcome):
    """In how many of the simulations, as a share, the outcome comes out."""
    return sum(simulate(seed) in outcome for seed in range(SIMULATIONS)) / SIMULATIONS


def trial(seed, cost, noise, drift=0.0, tolerated=0.0):
    machine = Machine(seed, noise, drift)
    return paired_trial(machine.run, lambda: machine.run(cost), tolerated).verdict


def compare(seed, cost, noise, runs):
    machine = Machine(seed, noise)
    a, b = ([machine.run(c) for _ in range(runs)] for c in (1.0, cost))
    return verdict(unpaired_change(a, b), "lower")


@pytest.mark.parametrize("noise", [0.01, 0.2])
def test_paired_runs_of_equal_sides_differ_in_at_most_the_stated_share(noise):
    assert share_of(lambda seed: trial(seed, 1.0, noise), {"faster", "slower"}) <= 1 - CONFIDENCE


def test_a_drifting_machine_does_not_make_a_difference():
    found = share_of(lambda seed: trial(seed, 1.0, 0.02, drift=0.01), {"faster", "slower"})
    assert found <= 1 - CONFIDENCE


@pytest.mark.parametrize("runs", [3, 5])
def test_separate_runs_of_equal_sides_differ_in_at_most_the_stated_share(runs):
    assert share_of(lambda seed: compare(seed, 1.0, 0.05, runs), {"faster", "slower"}) <= SHARE


def test_paired_runs_find_five_percent_with_the_stated_power():
    assert share_of(lambda seed: trial(seed, 0.95, 0.03, tolerated=0.01), {"faster"}) >= 0.9
    assert share_of(lambda seed: trial(seed, 1.05, 0.03, tolerated=0.01), {"slower"}) >= 0.9


def test_separate_runs_find_five_percent_with_the_stated_power():
    assert share_of(lambda seed: compare(seed, 0.95, 0.02, 10), {"faster"}) >= 0.9


def test_equal_sides_of_a_quiet_machine_are_shown_to_be_equal():
    found = share_of(lambda seed: trial(seed, 1.0, 0.005, tolerated=0.01), {"no difference"})
    assert found >= 0.9


def test_intervals_are_scipys():
    random = np.random.default_rng(5)
    a, b = (random.lognormal(0, 0.1, n).tolist() for n in (8, 8))
    logs = np.log(b) - np.log(a)
    low, high = scipy.stats.ttest_1samp(logs, 0).confidence_interval(0.9)
    found = paired_change(a, b, 0.9)
    assert (found.low, found.high) == pytest.approx((math.exp(low), math.exp(high)))
    assert found.ratio == pytest.approx(math.exp(logs.mean()))
    b += [1.5, 0.7, 1.1]
    test = scipy.stats.ttest_ind(np.log(b), np.log(a), equal_var=False)
    low, high = test.confidence_interval(0.9)
    found = unpaired_change(a, b, 0.9)
    assert (found.low, found.high) == pytest.approx((math.exp(low), math.exp(high)))


def test_runs_without_any_spread_give_an_interval_without_width():
    change = paired_change([1.0, 2.0], [2.0, 4.0])
    assert (change.low, change.ratio, change.high) == pytest.approx((2, 2, 2))
    assert unpaired_change([3.0, 3.0], [3.0, 3.0]) == Change(1, 1, 1)


@pytest.mark.parametrize(
    ("change", "better", "expected"),
    [
        (Change(1.1, 1.02, 1.2), "higher", "faster"),
        (Change(1.1, 1.02, 1.2), "lower", "slower"),
        (Change(0.9, 0.8, 0.98), "higher", "slower"),
        (Change(0.9, 0.8, 0.98), "lower", "faster"),
        (Change(1.1, 1.005, 1.2), "lower", "no difference"),
        (Change(0.9, 0.8, 0.995), "lower", "no difference"),
        (Change(1.0, 0.5, 2.0), "lower", "no difference"),
    ],
)
def test_a_verdict_needs_the_whole_interval_beyond_the_noise(change, better, expected):
    assert verdict(change, better, 0.01) == expected


def test_equal_means_within_the_noise_and_not_merely_undecided():
    assert is_equal(Change(1.0, 0.995, 1.005), 0.01)
    assert not is_equal(Change(1.0, 0.9, 1.1), 0.01)


def test_pairs_alternate_and_stop_at_the_first_look_that_is_plain():
    order = []
    found = paired_trial(lambda: order.append("a") or 1.0, lambda: order.append("b") or 0.5)
    assert "".join(order) == "abba"
    assert found.verdict == "faster"
    assert len(found.before) == LOOKS[0]


def test_a_trial_without_time_left_is_undecided_and_keeps_what_it_measured():
    left = iter([True, False])
    found = paired_trial(lambda: 1.0, lambda: 1.0, may_go_on=lambda: next(left))
    assert found.verdict == "undecided"
    assert (found.before, found.after) == ([1.0], [1.0])
    assert found.change is None


def test_single_runs_are_refused():
    with pytest.raises(ValueError, match="two or more, but got 1 and 1"):
        paired_change([1.0], [1.0])
    with pytest.raises(ValueError, match="two or more runs of each are needed but got 1 and 2"):
        unpaired_change([1.0], [1.0, 2.0])
