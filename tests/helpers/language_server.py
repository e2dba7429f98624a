"""A language server, spoken to as an editor does: JSON over its standard input and output."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_MARKED = "textDocument/publishDiagnostics"


class LanguageServer:
    """A server that has been greeted."""

    def __init__(self, to: IO[bytes], of: IO[bytes]) -> None:
        self._to, self._of, self._number = to, of, 0
        self._ask("initialize", processId=None, rootUri=None, capabilities={})
        self._send(method="initialized", params={})

    def marked(self, file: Path, text: str) -> list[str]:
        """Open ``file`` with ``text``; what the server marks in it."""
        document = {"uri": file.as_uri(), "languageId": "yaml", "version": 1, "text": text}
        self._send(method="textDocument/didOpen", params={"textDocument": document})
        while True:
            said = self._receive()
            about = said.get("params") or {}
            if said.get("method") == _MARKED and about["uri"] == file.as_uri():
                return [mark["message"] for mark in about["diagnostics"]]

    def completions(self, file: Path, line: int, character: int) -> set[str]:
        """What the server offers at a place of an open file, both counted from 0."""
        place = {"line": line, "character": character}
        document = {"uri": file.as_uri()}
        found = self._ask("textDocument/completion", textDocument=document, position=place)
        return {item["label"] for item in found["items"]}

    def _ask(self, method: str, **params: object) -> Any:
        self._number += 1
        self._send(id=self._number, method=method, params=params)
        while (said := self._receive()).get("id") != self._number or "method" in said:
            pass
        return said["result"]

    def _send(self, **facts: object) -> None:
        body = json.dumps({"jsonrpc": "2.0", **facts}).encode()
        self._to.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        self._to.flush()

    def _receive(self) -> dict[str, Any]:
        length = 0
        while line := self._of.readline().strip():
            if line.lower().startswith(b"content-length"):
                length = int(line.partition(b":")[2])
        said: dict[str, Any] = json.loads(self._of.read(length))
        if {"id", "method"} <= said.keys():  # it asks for settings: there are none
            self._send(id=said["id"], result=[{}])
        return said


@contextmanager
def language_server(*command: str) -> Iterator[LanguageServer]:
    """The server that ``command`` starts; it ends with the block."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdin and process.stdout
        yield LanguageServer(process.stdin, process.stdout)
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream:
                stream.close()
