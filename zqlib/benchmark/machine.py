"""The machine during a measurement: processors, memory, and who else was using them (Linux)."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from zqlib.errors import InputError

__all__ = ["CpuTimes", "bind", "busy_reasons", "choose_cpus", "forget_peak_rss", "rss_mb"]

_PROC = Path("/proc")
_OTHERS_PCT = 5.0
_STEAL_PCT = 2.0
_SPREAD = 1.2


def choose_cpus(threads: int) -> tuple[int, ...]:
    """The processors for so many threads: the last ones, since the first takes most interrupts.

    Raises:
        InputError: there are fewer, or the system cannot bind a process to a processor.
    """
    if not hasattr(os, "sched_getaffinity") or not (_PROC / "stat").is_file():
        raise InputError("A benchmark binds processes to processors and needs Linux for that.")
    available = sorted(os.sched_getaffinity(0))
    if threads > len(available):
        raise InputError(
            f"{threads} threads need as many processors, and {len(available)} can be used; "
            "give fewer."
        )
    return tuple(available[-threads:])


def bind(cpus: Iterable[int]) -> None:
    """Bind this process, and the threads that it will start, to processors."""
    os.sched_setaffinity(0, set(cpus))


def forget_peak_rss() -> None:
    """Let the peak of this process's memory start from what it holds now."""
    (_PROC / "self" / "clear_refs").write_text("5")


def rss_mb(peak: bool = False) -> float:
    """Resident memory of this process in 10^6 bytes: now, or at its peak."""
    key = "VmHWM:" if peak else "VmRSS:"
    lines = (_PROC / "self" / "status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(key)]
    return int(line.split()[1]) * 1024 / 1e6


@dataclass(frozen=True)
class CpuTimes:
    """Seconds of processors since some start, summed over those that this process may use.

    All of them, because what runs on others takes memory's bandwidth.

    Attributes:
        total, busy, stolen: of the processors; `stolen` is what a hypervisor gave to others.
        own: of the processes of the benchmark.
    """

    total: float
    busy: float
    stolen: float
    own: float

    @classmethod
    def read(cls, processes: Iterable[int]) -> "CpuTimes":
        """The times until now, of `processes` (ids) those of the benchmark."""
        tick = os.sysconf("SC_CLK_TCK")
        rows = [line.split() for line in (_PROC / "stat").read_text().splitlines()]
        by_name = {row[0]: [int(field) for field in row[1:9]] for row in rows if row}
        # user nice system idle iowait irq softirq steal
        times = [by_name[f"cpu{cpu}"] for cpu in os.sched_getaffinity(0)]
        total = sum(map(sum, times))
        idle = sum(row[3] + row[4] for row in times)
        stolen = sum(row[7] for row in times)
        own = 0
        for process in processes:
            # the name, in parentheses, may hold spaces; utime and stime are fields 14 and 15
            fields = (_PROC / str(process) / "stat").read_text().rpartition(")")[2].split()
            own += int(fields[11]) + int(fields[12])
        return cls(total / tick, (total - idle - stolen) / tick, stolen / tick, own / tick)

    def others_pct(self, earlier: "CpuTimes") -> float:
        """Share of the processors' time that other processes took since, per cent."""
        others = (self.busy - earlier.busy) - (self.own - earlier.own)
        return 100 * max(0.0, others) / max(self.total - earlier.total, 1e-9)

    def stolen_pct(self, earlier: "CpuTimes") -> float:
        """Share that the hypervisor gave to others since, per cent."""
        return 100 * (self.stolen - earlier.stolen) / max(self.total - earlier.total, 1e-9)


def busy_reasons(others_pct: float, stolen_pct: float, spread: float) -> tuple[str, ...]:
    """Why a measurement is not to be trusted fully; nothing on a quiet machine.

    Args:
        others_pct, stolen_pct: see `CpuTimes`.
        spread: the 90 % quantile of the latency over its median.
    """
    reasons = []
    if others_pct > _OTHERS_PCT:
        reasons.append(f"others took {others_pct:.0f} % of the processors")
    if stolen_pct > _STEAL_PCT:
        reasons.append(f"the hypervisor took {stolen_pct:.0f} % of the processors")
    if spread > _SPREAD:
        reasons.append(f"p90 is {spread:.2f} times the median")
    return tuple(reasons)
