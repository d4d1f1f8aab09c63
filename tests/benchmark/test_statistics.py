"""Quantiles and ratios of latencies, with numbers that can be checked by hand."""

import numpy as np
import pytest

from zqlib.benchmark.statistics import speed_ratio, summarise


def test_a_summary_is_over_all_runs() -> None:
    runs = [[float(i + 3 * j) for i in range(3)] for j in range(7)]  # 0 to 20
    assert summarise(runs) == (10.0, 2.0, 18.0)


def test_a_ratio_says_how_many_times_faster() -> None:
    assert speed_ratio([[6.0, 6.0]] * 5, [[2.0, 2.0]] * 5) == (3.0, 3.0, 3.0)


def test_a_round_of_one_alone_does_not_count() -> None:
    assert speed_ratio([[6.0], [6.0], [600.0]], [[2.0], [2.0]]) == (3.0, 3.0, 3.0)


def test_an_interval_holds_the_ratio_and_narrows_with_rounds() -> None:
    generator = np.random.default_rng(0)
    widths = []
    for rounds in (5, 20, 80):
        slow = generator.normal(10, 1, (rounds, 3)).tolist()
        fast = generator.normal(5, 0.5, (rounds, 3)).tolist()
        value, low, high = speed_ratio(slow, fast)
        assert low <= value <= high and low < 2 < high
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)


def test_what_disturbs_a_round_disturbs_both_and_not_their_ratio() -> None:
    noise = np.random.default_rng(0).uniform(1, 3, (20, 1))
    slow, fast = (10 * noise).tolist(), (5 * noise).tolist()
    assert speed_ratio(slow, fast) == pytest.approx((2, 2, 2))
    _, low, high = speed_ratio(slow, fast[::-1])  # not of the same rounds any more
    assert high - low > 0.1


def test_the_same_runs_give_the_same_interval() -> None:
    runs = np.random.default_rng(1).uniform(1, 2, (6, 3)).tolist()
    assert speed_ratio(runs, runs[::-1]) == speed_ratio(runs, runs[::-1])
