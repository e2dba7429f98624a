"""Out of memory ends with exit 8 and a batch size that was tried."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
import warm

from xfer.core.errors import OutOfMemory
from xfer.core.memory import ran_out, too_large


def allocate(images: int) -> None:
    torch.empty(images << 50)


def test_torchs_own_errors_are_known():
    with pytest.raises(RuntimeError) as caught:
        allocate(1)
    assert ran_out(caught.value) and ran_out(MemoryError()) and ran_out(torch.OutOfMemoryError())
    assert ran_out(RuntimeError("could not create a primitive"))
    assert not ran_out(RuntimeError("could not create a primitive descriptor for a convolution"))
    assert not ran_out(RuntimeError("shapes differ"))


def test_the_batch_is_halved_until_it_fits():
    tried: list[int] = []

    def step(size: int) -> None:
        tried.append(size)
        if size > 9:
            raise MemoryError

    error = too_large("data.batch_size", 100, step)
    assert tried == [50, 25, 12, 6]
    assert error.exit == 8 and "data.batch_size=6" in error.fix


def test_when_nothing_fits_that_is_said_and_other_errors_are_not_hidden():
    error = too_large("data.batch_size", 8, allocate)
    assert "so does one image" in error.what and isinstance(error, OutOfMemory)
    with pytest.raises(RuntimeError, match="inconsistent"):
        too_large("data.batch_size", 8, lambda size: torch.ones(2) @ torch.ones(3))


LIMITED = """
import resource, sys, torch
from xfer.__main__ import main
sys.argv = ["xfer", *sys.argv[1:]]
import xfer.training.fit, timm, torchvision, sklearn.datasets, torchmetrics
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (ROOM << 20),) * 2)
main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs limits of the address space")
def test_a_batch_that_is_too_large_ends_with_the_size_that_fits_and_that_one_trains(tmp_path: Path):
    def run(size: int) -> tuple[int, str]:
        options = ["experiment=digits_finetune", "stages=[fit]", "trainer.max_epochs=1"]
        options += [f"data.batch_size={size}", "backbone.image_size=64"]
        process = warm.start(tmp_path, *options, script=LIMITED.replace("ROOM", "800"))
        said, _ = process.communicate()
        return process.wait(0), said

    code, said = run(700)
    assert code == 8, said[-2000:]
    (line,) = [line for line in said.splitlines() if line.startswith("xfer: error")]
    size = re.search(r"E801: data\.batch_size: .*700.*type data\.batch_size=(\d+),", line)
    assert size, line
    assert run(int(size[1]))[0] == 0
