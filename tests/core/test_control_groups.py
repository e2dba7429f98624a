"""What control groups leave a process: files of the system as they look, and a real group."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from xfer.core.control_groups import available, busy_cores, processors_left


def machine(root, kilobytes, groups=(), strict=None):
    """A folder that looks like the system's files: free memory, and ``groups`` of (path, most,
    taken)."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/sys/vm").mkdir(parents=True)
    (root / "proc/sys/vm/overcommit_memory").write_text("0\n" if strict is None else "2\n")
    committed = f"CommitLimit: {strict or 0} kB\nCommitted_AS: 0 kB\n"
    (root / "proc/meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable: {kilobytes} kB\n{committed}")
    (root / "proc/self/cgroup").write_text("0::/job/step\n")
    for path, most, taken in groups:
        folder = root / "sys/fs/cgroup" / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(most)
        (folder / "memory.current").write_text(taken)
        (folder / "memory.stat").write_text("anon 5\ninactive_file 0\n")
    return root


def test_available_is_what_the_system_has_or_a_container_leaves(tmp_path):
    free = 1024 * 1000
    assert available(machine(tmp_path / "a", 1000)) == free
    unlimited = [("job", "max\n", "5\n")]
    assert available(machine(tmp_path / "b", 1000, unlimited)) == free
    outer = [("job", "9000\n", "2000\n"), ("job/step", "max\n", "5\n")]
    assert available(machine(tmp_path / "c", 1000, outer)) == 7000
    full = [("job/step", "10\n", "20\n")]
    assert available(machine(tmp_path / "d", 1000, full)) == 0
    assert available(machine(tmp_path / "e", 1000, strict=300)) == 300 * 1024
    for text in (None, "nothing that is known\n"):
        root = machine(tmp_path / f"f{text is None}", 1000, outer)
        stat = root / "sys/fs/cgroup/job/memory.stat"
        stat.unlink() if text is None else stat.write_text(text)
        assert available(root) == 7000  # a limit holds whether or not its details can be read


@pytest.mark.parametrize("place", ["job/step", "job", ""])  # the last is what a container sees
def test_available_is_what_groups_of_version_1_leave_as_well(tmp_path, place):
    root = machine(tmp_path, 1000)
    groups = "9:name=systemd:/job\n4:memory:/job/step\n1:cpu,cpuacct:/job\n0::/\n"
    (root / "proc/self/cgroup").write_text(groups)
    (root / "sys/fs/cgroup/memory" / place).mkdir(parents=True)
    stat = "total_inactive_file 500\ntotal_unevictable 0\n"
    (root / "sys/fs/cgroup/memory" / place / "memory.stat").write_text(stat)
    for name, value in (("limit", "9000\n"), ("usage", "2500\n")):
        file = root / "sys/fs/cgroup/memory" / place / f"memory.{name}_in_bytes"
        file.write_text(value)
    assert available(root) == 7000


@pytest.mark.parametrize(
    "files,left",
    [
        ({"": "max 100000"}, None),
        ({"job": "50000 100000", "job/step": "max 100000"}, 0.5),
        ({"job": "90000000 100000"}, None),  # more than the machine has
    ],
)
def test_processors_are_those_that_the_groups_leave(tmp_path, monkeypatch, files, left):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    root = machine(tmp_path, 1000)
    for place, text in files.items():
        folder = root / "sys/fs/cgroup" / place
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cpu.max").write_text(text + "\n")
    assert processors_left(root) == left


@pytest.mark.parametrize("quota,left", [(-1, None), (150_000, 1.5)])
def test_processors_are_those_that_groups_of_version_1_leave(tmp_path, monkeypatch, quota, left):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(32, 64)), raising=False)
    root = machine(tmp_path, 1000)
    (root / "proc/self/cgroup").write_text("4:memory:/job\n1:cpu,cpuacct:/job\n0::/\n")
    folder = root / "sys/fs/cgroup/cpu,cpuacct/job"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    assert processors_left(root) == left
    assert busy_cores(root) == (32 if left is None else 2)


@pytest.fixture
def half_a_core() -> Iterator[Path]:
    """The list of processes of a real group that may use half a processor's time."""
    if processors_left() is not None:
        pytest.skip("the groups around this process limit it")
    first = Path("/sys/fs/cgroup/cpu")
    folder = (first if first.is_dir() else first.parent) / f"xfer-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    try:
        if (folder / "cpu.max").is_file():
            (folder / "cpu.max").write_text("50000 100000")
        elif (folder / "cpu.cfs_quota_us").is_file():
            (folder / "cpu.cfs_quota_us").write_text("50000")
        else:
            pytest.skip("groups here limit no processor time")
        probe = f"echo $$ > {folder}/cgroup.procs && cat /proc/self/cgroup"
        done = subprocess.run(["sh", "-c", probe], capture_output=True, text=True, check=False)
        if f":/{folder.name}\n" not in done.stdout:
            pytest.skip("a process cannot be put into it, or sees another path of it")
        yield folder / "cgroup.procs"
    finally:
        folder.rmdir()


def test_a_process_in_a_real_group_computes_with_as_many_threads(half_a_core: Path) -> None:
    script = (
        "import os, pathlib, sys\n"
        "pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))\n"
        "from xfer.core import control_groups as groups\n"
        "groups.compute_on_busy_cores()\n"
        "print(groups.processors_left(), os.environ.get('OMP_NUM_THREADS'))\n"
        "groups.leave_threads_open()\n"
        "print(os.environ.get('OMP_NUM_THREADS'))\n"
    )
    for asked, said in ((None, "0.5 1\nNone"), ("2", "0.5 2\n2")):
        environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
        environment |= {"OMP_NUM_THREADS": asked} if asked else {}
        done = subprocess.run(
            [sys.executable, "-c", script, str(half_a_core)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == said
