"""A run in a real terminal: the live line, the finished lines, and what is there at its end."""

from __future__ import annotations

import itertools
import os
import pty
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not shutil.which("tmux"), reason="tmux is not installed")
# So many steps that an epoch takes long enough to be seen.
RUN = ["experiment=digits_sgd", "trainer.max_epochs=2", "data.batch_size=2", "export=safetensors"]
RUN += ["freeze=none", "optim.lr=0.01"]  # an epoch must last, or it needs no live line
STEPS = 358


ROOT = str(Path(__file__).parents[2])


class Terminal:
    """A terminal of its own: what has been on its screen, line by line."""

    def __init__(self, cwd: Path, width: int) -> None:
        # A server that ends may still have its name when the next one begins.
        self._tmux = ["tmux", "-L", f"xfer-{uuid.uuid4().hex}", "-f", "/dev/null"]
        env = {**os.environ, "PS1": ">", "OMP_NUM_THREADS": "1", "PYTHONPATH": ROOT}
        for size in ("COLUMNS", "LINES"):  # readline, which pytest imports, leaves them to workers
            env.pop(size, None)
        start = [*self._tmux, "new-session", "-d", "-x", str(width), "-y", "60", "bash", "--norc"]
        subprocess.run(start, cwd=cwd, env=env, check=True)
        self.seen: set[str] = set()
        # What is typed before the shell asks is shown twice: by the terminal and by the shell.
        end = time.monotonic() + 600
        while ">" not in self._capture():
            assert time.monotonic() < end, "the shell has no prompt"
            time.sleep(0.02)

    def type(self, line: str) -> None:
        subprocess.run([*self._tmux, "send-keys", line, "Enter"], check=True)

    def resize(self, width: int) -> None:
        subprocess.run([*self._tmux, "resize-window", "-x", str(width)], check=True)

    def screen(self) -> list[str]:
        """The lines that are there now, those that the terminal has broken joined."""
        lines = [line.rstrip() for line in self._capture().splitlines() if line.strip(" >")]
        self.seen.update(lines)
        return lines

    def _capture(self) -> str:
        show = [*self._tmux, "capture-pane", "-p", "-J", "-S", "-200"]
        return subprocess.run(show, capture_output=True, text=True, check=True).stdout

    def until(self, holds: Callable[[list[str]], object], seconds: float = 600) -> list[str]:
        """Look again and again until ``holds`` of the screen."""
        end = time.monotonic() + seconds
        while not holds(lines := self.screen()):
            assert time.monotonic() < end, "\n".join(lines)
            time.sleep(0.05)
        return lines

    def close(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], check=False)


@pytest.fixture
def terminal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Terminal]:
    made = Terminal(tmp_path, request.param)
    yield made
    made.close()


def whole(*options: str) -> str:
    return f"{sys.executable} -m xfer {' '.join([*RUN, *options])}; echo ENDED $?"


def ended(lines: list[str]) -> bool:
    return any(line.startswith("ENDED") for line in lines[1:])


@pytest.mark.parametrize(
    "terminal", [40, *(pytest.param(n, marks=pytest.mark.slow) for n in (80, 200))], indirect=True
)
def test_one_line_an_epoch_becomes_the_finished_line(terminal: Terminal) -> None:
    terminal.type(whole())
    lines = terminal.until(ended)
    assert lines[-1] == "ENDED 0"
    live = {line for line in terminal.seen if re.match(rf"epoch \d/2 .*\d+/{STEPS}", line)}
    assert live, "no epoch was seen at work"
    assert {"reading the configuration ...", "planning ..."} & terminal.seen
    # What was live has left no trace, and each epoch has its line once.
    assert not live & set(lines) and not [line for line in lines if line.endswith(" ...")]
    assert [line[:9] for line in lines if line.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]
    # Lines are broken between words, and what continues one is indented.
    rows = [line.split()[0] for line in lines if line[0] != " "]
    assert rows.index("whole") - rows.index("run") < 12
    last = rows[-6:]
    assert last == ["val", "best", "report", "next", "everything", "ENDED"]


SHOWN = """
import pathlib, time
from xfer.core.live_line import working
from xfer.core.log import say
with working("the stage around"), working("epoch 1/1", 10_000) as advance:
    while not pathlib.Path("enough").exists():
        time.sleep(0.02)
        advance(1)
        if pathlib.Path("said").exists():
            pathlib.Path("said").unlink()
            say("one line of the log")
say("finished")
"""


@pytest.mark.parametrize("terminal", [120], indirect=True)
@pytest.mark.parametrize("above", [5, 70])
def test_a_terminal_that_is_resized_keeps_no_fragment_of_the_live_line(
    terminal: Terminal, tmp_path: Path, above: int
) -> None:
    (tmp_path / "shown.py").write_text(SHOWN)
    terminal.type(f"seq {above}; {sys.executable} shown.py; echo ENDED $?")

    # How far the line is; 0 unless all of it is there. Where it is the first of the screen, tmux
    # itself moves what it breaks off into its history: hence some lines above.
    def counted(lines: list[str]) -> int:
        found = re.search(r"epoch 1/1 .*?(\d+)/10000 .* left$", "".join(lines[-1:]))
        return int(found[1]) if found else 0

    for width in (60, 40, 200, 120):
        before = counted(terminal.until(counted))
        terminal.resize(width)
        has_bar = width > 55
        terminal.until(lambda x: counted(x) > before and ("━" in x[-1]) == has_bar)  # noqa: B023
        (tmp_path / "said").touch()
    (tmp_path / "enough").touch()
    lines = terminal.until(ended)
    behind = lines.index(str(above)) + 1
    assert set(lines[behind:]) == {"one line of the log", "finished", "ENDED 0"}


@pytest.mark.slow
@pytest.mark.parametrize("terminal", [120], indirect=True)
def test_a_run_on_a_terminal_that_is_resized_leaves_its_finished_lines(terminal: Terminal) -> None:
    run = ["experiment=digits_finetune", "'stages=[lr_find,fit,evaluate,export,report]'"]
    terminal.type(f"{sys.executable} -m xfer {' '.join(run)} trainer.max_epochs=2; echo ENDED $?")
    widths = itertools.cycle((60, 40, 200, 120))
    while not ended(lines := terminal.screen()):
        terminal.resize(next(widths))
        time.sleep(0.2)
    assert lines[-1] == "ENDED 0"
    assert not [line for line in lines if "━" in line or line.endswith(" ...")]
    assert [line[:9] for line in lines if line.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]


@pytest.mark.parametrize("terminal", [80], indirect=True)
def test_a_terminal_that_cannot_move_its_cursor_has_finished_lines_alone_and_the_next_one_works(
    terminal: Terminal, tmp_path: Path
) -> None:
    terminal.type("export TERM=dumb NO_COLOR=1")
    terminal.type(whole("stages=[fit,evaluate]", "trainer.max_epochs=1", "data.batch_size=32"))
    lines = terminal.until(ended)
    assert lines[-1] == "ENDED 0"
    (typed,) = (line.partition("xfer ")[2] for line in lines if line.startswith("next "))
    shutil.copy(Path(__file__).parents[2] / "docs/images/digits_prediction_grid.png", tmp_path)
    images = typed.replace("IMAGES", "digits_prediction_grid.png")
    terminal.type(f"{sys.executable} -m xfer {images}; echo ENDED $?")
    lines = terminal.until(lambda found: sum(line.startswith("ENDED") for line in found) == 2)
    assert lines[-1] == "ENDED 0" and "1 prediction in outputs/digits_sgd/" in lines[-2]
    assert not [line for line in terminal.seen if line.endswith(" ...") or "━" in line]


def test_what_hydra_prints_of_several_runs_stands_on_no_live_line(tmp_path: Path) -> None:
    """However they are asked for: hydra.mode alone leaves the live line of one run."""
    words = ["hydra.mode=MULTIRUN", "hydra/sweeper=basic", "experiment=digits_sgd", "optim.lr=-1"]
    ours, theirs = pty.openpty()
    run = subprocess.Popen(
        [sys.executable, "-m", "xfer", *words],
        cwd=tmp_path,
        env={**os.environ, "TERM": "xterm", "PYTHONPATH": ROOT},
        stderr=theirs,
        stdout=subprocess.DEVNULL,
    )
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # the end of a terminal that nobody holds any more
        while part := os.read(ours, 1 << 16):
            shown += part
    os.close(ours)
    assert run.wait(timeout=600) == 2
    before, said, _ = shown.partition(b"Error executing job with overrides: ")
    assert said and b"reading the configuration" not in before
