"""What the shell, the container or the queue refuses a process is told as such, and is no bug."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from xfer.core.errors import LimitReached
from xfer.core.run_status import as_xfer

# As much above what Python itself takes as numpy and Hydra need, and no room for torch.
LITTLE_ROOM = """
import resource, sys
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (250 << 20),) * 2)
sys.argv = ["xfer", "experiment=digits_freeze", "stages=[]"]
from xfer.__main__ import main
main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_library_that_has_no_room_is_told(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LITTLE_ROOM]
    end = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert end.returncode == 8
    assert "E709" in end.stderr and "raise ulimit -v" in end.stderr


@pytest.mark.parametrize(
    "refused",
    [
        RuntimeError("can't start new thread"),
        BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
    ],
)
def test_a_thread_or_process_that_may_not_be_started_is_told(refused: Exception) -> None:
    told = as_xfer(refused)
    assert isinstance(told, LimitReached) and told.exit == 8
    assert "raise ulimit -u" in str(told) and "data.workers=0" in str(told)
