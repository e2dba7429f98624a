"""Memory that a training step frees stays for the next one."""

import os
import subprocess
import sys

import pytest

import xfer

FAULTS = """
import resource, sys, torch
from xfer.core.memory import free, keep_freed

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        # Freed together, as a backward pass frees what the forward pass kept.
        held = [torch.ones(10_000_000) for _ in range(4)]
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

faults()
anew, said = faults(), keep_freed()
faults()
kept, held = faults(), resident()
free()
print(anew, said, kept, held - resident())
"""


def measured(limit="", **more):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", limit + FAULTS],
        capture_output=True,
        text=True,
        env={**clean, **more},
    )
    assert done.returncode == 0, done.stderr
    anew, said, kept, given_back = done.stdout.split()
    return int(anew), said == "True", int(kept), int(given_back)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_a_step_gets_no_new_pages_for_what_the_last_one_freed():
    anew, said, kept, given_back = measured()
    if not said:
        pytest.skip("no glibc")
    assert kept < anew / 10
    assert given_back > 100_000_000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_what_the_user_set_for_malloc_wins():
    assert measured(MALLOC_ARENA_MAX="4")[1] is False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_a_limit_of_the_address_space_counts_what_is_kept_and_so_nothing_is():
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))\n"
    assert measured(limit)[1] is False


def test_a_fit_on_the_cpu_keeps_memory_and_gives_it_back(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("xfer.training.fit.keep_freed", lambda: calls.append("keep"))
    monkeypatch.setattr("xfer.training.fit.free", lambda: calls.append("free"))
    xfer.run(
        "digits_freeze",
        [
            *("stages=[fit]", "trainer.max_epochs=1", "data.workers=0", "trainer=cpu"),
            f"run.dir={tmp_path}/run",
        ],
    )
    assert calls == ["keep", "free"]
