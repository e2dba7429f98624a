"""What a container or a job of a scheduler leaves this process: memory and processors."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

THREADS = "OMP_NUM_THREADS"
_SYSTEM = Path("/")
_chosen_here: list[str] = []


def usable_cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def busy_cores(root: Path = _SYSTEM) -> int:
    """How many of these cores the processor time of the process's control groups
    (``docker run --cpus``, a pod's limit) keeps busy."""
    cores, left = len(usable_cores()), processors_left(root)
    return cores if left is None else min(cores, math.ceil(left))


def processors_left(root: Path = _SYSTEM) -> float | None:
    """How many processors' time the process's control groups leave it; ``None`` without a limit
    below what the machine has."""
    left = min(_processors_of_groups(root), default=math.inf)
    return left if left < (os.cpu_count() or 1) else None


def compute_on_busy_cores() -> None:
    """Have OpenMP start a thread a core that is kept busy, where groups leave fewer than the
    machine has and ``OMP_NUM_THREADS`` says nothing. It knows the affinity alone, and the threads
    beyond would stop all of them until the next period. To be called before torch is imported."""
    if processors_left() is not None and THREADS not in os.environ:
        os.environ[THREADS] = str(busy_cores())
        _chosen_here.append(THREADS)


def leave_threads_open() -> None:
    """Take that back, for what this process starts on other machines: Slurm gives a job the
    environment of who submits it."""
    while _chosen_here:
        os.environ.pop(_chosen_here.pop(), None)


def available(root: Path = _SYSTEM) -> int:
    """Bytes of memory that can still be taken: what the system says, or what the limits of the
    process's control groups (a container, a Slurm job) leave where that is less."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        words = [line.split() for line in lines if line.endswith(" kB")]
        facts = {name: int(kilobytes) * 1024 for name, kilobytes, _ in words}
        free = facts["MemAvailable:"]
        # In its mode 2 the system counts what is asked for, not what is filled.
        if (root / "proc/sys/vm/overcommit_memory").read_text().strip() == "2":
            free = min(free, facts["CommitLimit:"] - facts["Committed_AS:"])
    except (OSError, KeyError, ValueError):
        # Not Linux: nothing says what is available, and half of it all is a careful guess.
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return max(0, min([free, *_left_in_groups(root)]))


def _left_in_groups(root: Path) -> list[int]:
    """What the memory limits of the process's control group and of those around it leave."""
    left = []
    for folder, first in _groups("memory", root):
        names = ("limit_in_bytes", "usage_in_bytes") if first else ("max", "current")
        try:
            most, taken = (int((folder / f"memory.{name}").read_text()) for name in names)
        except (OSError, ValueError):  # no limit: the root has no file, others say "max"
            continue
        left.append(max(0, most - max(0, taken - _inactive(folder, first))))
    return left


def _inactive(group: Path, first: bool) -> int:
    """Bytes of files that were read, which the kernel keeps until somebody asks for more memory;
    none where it does not say."""
    try:
        lines = (group / "memory.stat").read_text().splitlines()
        facts = dict(line.split() for line in lines)
        return int(facts["total_inactive_file" if first else "inactive_file"])
    except (OSError, KeyError, ValueError):
        return 0


def _processors_of_groups(root: Path) -> list[float]:
    """The processors that the limits of the process's control group and of those around it are
    worth; none where there is no limit."""
    worth = []
    for folder, first in _groups("cpu", root):
        names = ("cfs_quota_us", "cfs_period_us") if first else ("max",)
        try:
            words = [word for n in names for word in (folder / f"cpu.{n}").read_text().split()]
            quota, period = map(int, words)
        except (OSError, ValueError):
            continue
        if quota > 0:  # -1 is none in version 1
            worth.append(quota / period)
    return worth


def _groups(kind: str, root: Path) -> Iterator[tuple[Path, bool]]:
    """The folders of the process's control group and of those around it, and whether they are of
    version 1, which has a folder for each ``kind`` and names of its own."""
    mount = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for _, kinds, path in (line.split(":", 2) for line in lines):
        if kinds and kind not in kinds.split(","):
            continue
        folder = mount / kinds / path.strip("/")
        for group in (folder, *folder.parents):
            if group.is_relative_to(mount):
                yield group, bool(kinds)
