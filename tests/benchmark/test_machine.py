"""What /proc says of the machine, read from files of the test's own."""

import os
from pathlib import Path

import pytest

from zqlib.benchmark import machine
from zqlib.benchmark.machine import CpuTimes, busy_reasons, choose_cpus
from zqlib.errors import InputError


def write_proc(folder: Path, cpu0: str, cpu1: str, ticks: int) -> None:
    (folder / "stat").write_text(f"cpu 0 0 0 0 0 0 0 0 0 0\ncpu0 {cpu0} 0 0\ncpu1 {cpu1} 0 0\n")
    (folder / "7").mkdir(exist_ok=True)
    times = f"{ticks} {ticks}"
    (folder / "7" / "stat").write_text(f"7 (a (b) c) S 1 1 1 0 -1 0 0 0 0 0 {times} 0 0 20 0")


def test_what_is_neither_idle_nor_ours_is_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_PROC", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1})  # not for processor 0
    hertz = os.sysconf("SC_CLK_TCK")
    # user nice system idle iowait irq softirq steal
    write_proc(tmp_path, "0 0 0 0 0 0 0 0", "0 0 0 0 0 0 0 0", 0)
    before = CpuTimes.read((7,))
    write_proc(tmp_path, "99 99 0 0 0 0 0 0", "50 5 5 20 10 0 0 10", 20)
    after = CpuTimes.read((7,))
    assert after == CpuTimes(100 / hertz, 60 / hertz, 10 / hertz, 40 / hertz)
    assert after.others_pct(before) == pytest.approx(20)
    assert after.stolen_pct(before) == pytest.approx(10)


def test_this_process_is_seen() -> None:
    times = CpuTimes.read((os.getpid(),))
    assert 0 < times.own and 0 < times.busy <= times.total
    assert 1 < machine.rss_mb() <= machine.rss_mb(peak=True)


def test_a_quiet_machine_gives_no_reason() -> None:
    assert busy_reasons(1, 0, 1.05) == ()


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ((30, 0, 1), "others took 30 %"),
        ((0, 4, 1), "the hypervisor took 4 %"),
        ((0, 0, 1.5), "p90 is 1.50 times"),
    ],
)
def test_each_disturbance_is_named(figures: tuple[float, float, float], message: str) -> None:
    (reason,) = busy_reasons(*figures)
    assert message in reason


def test_processors_are_counted() -> None:
    available = os.sched_getaffinity(0)
    assert set(choose_cpus(len(available))) == available
    with pytest.raises(InputError, match=f"{len(available)} can be used; give fewer"):
        choose_cpus(len(available) + 1)
