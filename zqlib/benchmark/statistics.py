"""What a series of latencies says, and how sure one is of it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["Ratio", "Summary", "speed_ratio", "summarise"]

Rounds = Sequence[Sequence[float]]
"""Latencies in ms: the measured runs of every round."""

_RESAMPLES = 2000


class Summary(NamedTuple):
    """Latencies in ms: the median, and the 10 % and 90 % quantiles."""

    median: float
    p10: float
    p90: float


class Ratio(NamedTuple):
    """How many times faster than a baseline, with the ends of the 95 % interval."""

    value: float
    low: float
    high: float


def summarise(rounds: Rounds) -> Summary:
    """Quantiles over all runs of all rounds."""
    runs = np.concatenate([np.asarray(one, dtype=float) for one in rounds])
    p10, median, p90 = np.quantile(runs, [0.1, 0.5, 0.9])
    return Summary(float(median), float(p10), float(p90))


def speed_ratio(baseline: Rounds, rounds: Rounds, seed: int = 0) -> Ratio:
    """Median latency of the baseline over that of an engine.

    The interval is a percentile bootstrap (Efron 1979) that draws whole rounds: what disturbed the
    machine in one round disturbed both, and the runs of one round are not independent.

    Args:
        baseline, rounds: of the two; a round that only one of them took part in does not count.
            All rounds of a system have the same number of runs.
        seed: of the drawing.
    """
    common = min(len(baseline), len(rounds))
    ours, theirs = (np.asarray(part[:common], dtype=float) for part in (rounds, baseline))
    drawn = np.random.default_rng(seed).integers(0, common, (_RESAMPLES, common))
    medians = [np.median(part[drawn].reshape(_RESAMPLES, -1), axis=1) for part in (theirs, ours)]
    low, high = np.quantile(medians[0] / medians[1], [0.025, 0.975])
    return Ratio(float(np.median(theirs) / np.median(ours)), float(low), float(high))
