"""What is logged cannot steer a terminal."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from xfer.core.log import LINES, close_log, flush, log, open_log, say


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
