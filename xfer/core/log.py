"""The log of a run: plain lines on the terminal, the same with times in ``run.log``."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from xfer.core.errors import printable
from xfer.core.files import open_to_append
from xfer.core.live_line import aside

log = logging.getLogger("xfer")
LINES = {"lines": True}


def _escaped(record: logging.LogRecord) -> bool:
    """A file name must not steer the terminal, or forge a line: control characters are written
    out. Only what is logged with ``extra=LINES`` is of several lines."""
    text = record.getMessage()
    lines = text.split("\n") if hasattr(record, "lines") else [text]
    record.msg, record.args = "\n".join(map(printable, lines)), None
    return True


class _Terminal(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to the ``sys.stdout`` of the moment, so that notebooks and tests can take it over."""

    def __init__(self) -> None:
        super().__init__(sys.stdout)

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stdout
        with aside():
            super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        return wrapped(super().format(record), sys.stdout)

    def handleError(self, record: logging.LogRecord) -> None:
        """A terminal that is full, or that nobody reads any more, is no matter of the run."""
        if not isinstance(sys.exc_info()[1], OSError | ValueError):
            super().handleError(record)


class _RunLog(logging.FileHandler):
    """``run.log``; a disk that is full costs its lines, which the terminal has, and not the run."""

    def _open(self) -> Any:
        return open_to_append(Path(self.baseFilename))  # never through a link

    def handleError(self, record: logging.LogRecord) -> None:
        pass

    def close(self) -> None:
        with suppress(OSError):
            super().close()


def open_standard() -> None:
    """Have standard input, output and error where whoever started this process has closed one:
    else the next file that is opened takes its number, and what is printed goes into it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123  # for good


def say(text: object, error: bool = False) -> None:
    """Print a line, as far as it can be: a terminal that is full or gone changes nothing of what
    has happened, nor of the exit code."""
    stream = sys.stderr if error else sys.stdout
    with aside(), suppress(OSError, ValueError):
        print(wrapped(str(text), stream), file=stream, flush=True)


def flush() -> None:
    """What is printed, as far as it can be."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            if stream is not None:
                stream.flush()


def open_log(folder: Path | None) -> None:
    """Log to the terminal and, with a run folder, to its ``run.log``."""
    close_log()
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addFilter(_escaped)
    log.addHandler(_Terminal())
    if folder is not None:
        handler = _RunLog(folder / "run.log", encoding="utf-8", errors="backslashreplace")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)


def hush_hub_client() -> None:
    """Have the client of the Hugging Face hub log no request that failed: it does so with the
    address, which may be signed. What cannot be had is raised, and told once."""
    from huggingface_hub.utils import logging as client

    client.set_verbosity(logging.CRITICAL)


def close_log() -> None:
    """Detach and close every handler."""
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()


_COMMAND = re.compile(r"(?:^|(?<=  )|(?<=: )|(?<=type ))(?:\$ )?(?:(?:python -m )?xfer|srun) \S.*")
"""What is to be copied into a shell: a line break inside would end the command there."""
_NAMED = re.compile(r" {2,}|\S+(?: \S+){0,2} {2,}")
"""The name of a row and the space after it, or the space alone of a row that continues one."""
_LITTLE, _NARROWEST = 2, 20


def wrapped(text: str, stream: TextIO | None) -> str:
    """``text`` with each line as wide as the terminal that ``stream`` is; as it is where that is
    none. What continues a row of a table stands below what it continues. Commands are not broken;
    what is longer than the terminal is left for it to break."""
    with suppress(OSError, ValueError):
        if stream is not None and stream.isatty():
            width = shutil.get_terminal_size().columns
            if width >= _NARROWEST:
                return "\n".join(_broken(line, width) for line in text.split("\n"))
    return text


def _broken(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    command = _COMMAND.search(line)
    end = command.start() if command else len(line)
    words = re.findall(r"( *)(\S+)", line[:end])
    if command:
        words.append((line[len(line[:end].rstrip()) : end], line[end:]))
    name = _NAMED.match(line)
    indent = name.end() if name and name.end() <= width // 2 else _LITTLE
    lines, used = [""], 0
    for gap, word in words:
        # A word that has a line of its own may begin further left than the others.
        begins = next((i for i in (indent, _LITTLE) if i + len(word) <= width), None)
        if used + len(gap) + len(word) <= width or begins is None or not used:
            lines[-1] += gap + word
            used = (used + len(gap) + len(word) - 1) % width + 1
        else:
            lines.append(" " * begins + word)
            used = begins + len(word)
    return "\n".join(lines)
