"""What is logged cannot steer a terminal."""

from __future__ import annotations

from xfer.log import LINES, close_log, log, open_log


def test_control_characters_are_written_out_on_the_terminal_and_in_the_file(tmp_path, capsys):
    open_log(tmp_path)
    log.info("two\nlines, \x1b[31mred\u202e and a \udcff", extra=LINES)
    log.info("one\nline")
    close_log()
    for text in (capsys.readouterr().out, (tmp_path / "run.log").read_text()):
        assert "two\nlines, \\x1b[31mred\\u202e and a \\udcff\n" in text
        assert "one\\nline\n" in text
