"""What is logged cannot steer a terminal, and is broken between words there."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from xfer.core import live_line
from xfer.core.live_line import working
from xfer.core.log import LINES, close_log, flush, log, open_log, say, wrapped


def test_control_characters_are_written_out_on_the_terminal_and_in_the_file(tmp_path, capsys):
    open_log(tmp_path)
    log.info("two\nlines, \x1b[31mred\u202e and a \udcff", extra=LINES)
    log.info("one\nline")
    close_log()
    for text in (capsys.readouterr().out, (tmp_path / "run.log").read_text()):
        assert "two\nlines, \\x1b[31mred\\u202e and a \\udcff\n" in text
        assert "one\\nline\n" in text


@pytest.mark.parametrize("how", ["full", "nobody reads"])
def test_a_terminal_that_is_full_or_gone_costs_its_lines_and_not_a_word(how, tmp_path, monkeypatch):
    """Where a handler of logging's fails it prints a traceback a line."""
    said = io.StringIO()
    reader, writer = os.pipe()
    os.close(reader)
    if how == "full":
        os.close(writer)
        writer = os.open("/dev/full", os.O_WRONLY)
    gone = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stderr", said)
    monkeypatch.setattr(sys, "stdout", gone)
    open_log(tmp_path)
    log.info("one")
    log.info("two")
    say("three")
    flush()
    close_log()
    with suppress(OSError):
        gone.close()
    assert said.getvalue() == ""
    assert (tmp_path / "run.log").read_text().count("two") == 1


def test_closed_standard_streams_are_opened_before_a_file_takes_their_number(tmp_path):
    script = (
        "import os, sys\nos.close(2)\nsys.stderr = None\n"
        "from xfer.core.log import open_standard\nopen_standard()\n"
        "print(open('file', 'w').fileno() > 2, sys.stderr is None)"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    assert done.stdout == b"True False\n"
    assert Path(tmp_path / "file").is_file()


class Screen(io.StringIO):
    """What a terminal is given."""

    def isatty(self):
        return True


WIDE = (
    "solved: 9 strengths, 5 folds of 64 images",
    "best model  outputs/a/b.ckpt and a path",
    "best model  outputs/digits/0077d5/best.ckpt",
    "            precision: each passes once",
    "next  xfer predict a_long_name_of_a_run more_images IMAGES",
    "read outputs/" + 40 * "x" + " and more of the very same line",
    "xfer: error E1: a: is no run. Fix: type xfer resume a_run.",
    "remark  needs a launcher: srun --nodes=2 --ntasks-per-node=4 python -m xfer",
)
BROKEN = (
    "solved: 9 strengths, 5 folds of 64\n  images",
    "best model  outputs/a/b.ckpt and a\n            path",
    "best model\n  outputs/digits/0077d5/best.ckpt",
    "            precision: each passes\n            once",
    WIDE[4],
    "read outputs/" + 40 * "x" + " and more of the\n  very same line",
    "xfer: error E1: a: is no run. Fix:\n  type xfer resume a_run.",
    WIDE[7],
)


@pytest.mark.parametrize(("line", "broken"), [*zip(WIDE, BROKEN, strict=True)])
def test_a_terminal_breaks_no_word_and_no_command(line, broken, monkeypatch):
    monkeypatch.setenv("COLUMNS", "35")
    assert wrapped(f"{line}\nshort", Screen()) == f"{broken}\nshort"
    assert wrapped(line, io.StringIO()) == line


def test_lines_are_broken_on_the_terminal_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "35")
    screens = Screen(), Screen()
    monkeypatch.setattr(sys, "stdout", screens[0])
    monkeypatch.setattr(sys, "stderr", screens[1])
    open_log(tmp_path)
    log.info(WIDE[0])
    close_log()
    say(WIDE[1], error=True)
    assert [screen.getvalue() for screen in screens] == [f"{BROKEN[0]}\n", f"{BROKEN[1]}\n"]
    assert WIDE[0] in (tmp_path / "run.log").read_text()


def test_a_terminal_of_no_width_is_taken_for_one_of_eighty_columns(monkeypatch):
    """As serial consoles and some containers report it."""
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(os, "get_terminal_size", lambda *_: os.terminal_size((0, 0)))
    lines = wrapped(" ".join(30 * ["words"]), Screen()).split("\n")
    assert [len(line) for line in lines] == [77, 79, 25] and lines[1].startswith("  words")
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with working("epoch 1/2", 358) as advance:
        advance(100)
        live_line._open[-1].draw()
    (drawn,) = re.findall(r"epoch 1/2.*?left", re.sub(r"\x1b\[[\d;]*m", "", screen.getvalue()))
    assert "100/358" in drawn and 40 < len(drawn) < 80


@pytest.mark.parametrize(
    "told",
    [{"JPY_PARENT_PID": "1"}, {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}],
)
def test_what_a_notebook_starts_has_no_live_line(told, monkeypatch):
    """Jupyter runs ``!xfer`` in a pseudo-terminal."""
    monkeypatch.setattr(sys, "stderr", Screen())
    monkeypatch.setenv("TERM", "xterm-color")
    for name in ("JPY_PARENT_PID", "MPLBACKEND"):
        monkeypatch.delenv(name, raising=False)
    assert live_line.is_live()
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert not live_line.is_live()
