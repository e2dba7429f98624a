"""Pages as a browser shows them: headless Chromium, at a width, light or dark.

Debian's ``chromium`` and ``chromium-driver``; axe-core from npm, in ``node_modules`` of the
checkout (``npm install --no-save axe-core``) or where ``XFER_AXE`` says.
"""

from __future__ import annotations

import atexit
import base64
import json
import os
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
AXE = Path(os.environ.get("XFER_AXE", ROOT / "node_modules/axe-core/axe.min.js"))
WIDTHS = (360, 800, 1280)
LOOKS = ((360, False), (360, True), (1280, True), (1280, False))
"""Widths, and whether the page is dark."""
OPEN_ALL = (
    "for (const d of document.querySelectorAll('details')) {"
    " d.removeAttribute('name'); d.open = true; }"
)
_PATIENCE = 900
"""Seconds for a page to be loaded or a script to end; by itself WebDriver gives up a script after
30, in which axe does not look through a large page on a busy machine."""
ENTER, ESCAPE, RIGHT, SPACE = "\ue007", "\ue00c", "\ue014", " "


def need_axe() -> str:
    """The text of axe-core; the test is skipped where it is absent."""
    if not AXE.is_file():
        pytest.skip(f"no axe-core in {AXE}: npm install --no-save axe-core, or set XFER_AXE")
    return AXE.read_text("utf-8")


class Browser:
    """One page at a time, from the disk; chromedriver is spoken to in W3C WebDriver."""

    def __init__(self, port: int, program: str) -> None:
        self.root = f"http://127.0.0.1:{port}/session"
        flags = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": {"binary": program, "args": flags},
            "goog:loggingPrefs": {"browser": "ALL"},
            "timeouts": {"pageLoad": 1000 * _PATIENCE, "script": 1000 * _PATIENCE},
        }
        begun = self._ask("", {"capabilities": {"alwaysMatch": wanted}})
        self.root += f"/{begun['sessionId']}"

    def _ask(self, path: str, body: Any = None, method: str = "POST") -> Any:
        data = json.dumps(body or {}).encode() if method == "POST" else None
        request = urllib.request.Request(self.root + path, data, method=method)
        request.add_header("Content-Type", "application/json")
        try:
            # No proxy stands between this machine and itself.
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(request, timeout=_PATIENCE) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(json.load(error)["value"]["message"]) from None

    def _tell(self, command: str, **parameters: Any) -> Any:
        return self._ask("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def look(self, width: int, dark: bool = False, media: str = "") -> None:
        """Show pages at this width in CSS pixels, as on a phone where it is narrow."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self._tell("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._tell("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def scripts(self, on: bool) -> None:
        """Whether pages may run scripts; those of a test run at any rate."""
        self._tell("Emulation.setScriptExecutionDisabled", value=not on)

    def open(self, page: Path) -> None:
        """Load a page."""
        self._ask("/url", {"url": page.resolve().as_uri()})

    def run(self, script: str, *args: Any) -> Any:
        """What ``script`` returns inside the page."""
        return self._ask("/execute/sync", {"script": script, "args": args})

    def press(self, key: str) -> None:
        """Type a key where the focus is."""
        actions = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
        self._ask("/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def shoot(self, path: Path) -> None:
        """The whole page as a PNG."""
        height = self.run("return document.documentElement.scrollHeight")
        width = self.run("return document.documentElement.clientWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        shot = self._tell("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))

    def faults(self, axe: str) -> list[str]:
        """What axe-core finds serious or critical, a line each."""
        # By the protocol of the developer tools: the page's own policy allows no other script.
        if not self.run("return 'axe' in window"):
            self._tell("Runtime.evaluate", expression=axe)
        # What it finds nothing wrong with, it need not list.
        asked = "axe.run({resultTypes: ['violations']})"
        run = f"const done = arguments[0]; {asked}.then(r => done(r.violations))"
        found = self._ask("/execute/async", {"script": run, "args": []})
        return [
            f"{rule['id']}: {node['target']} {node.get('failureSummary', '')}"
            for rule in found
            if rule["impact"] in ("serious", "critical")
            for node in rule["nodes"]
        ]

    def errors(self) -> list[str]:
        """What the console has of errors: scripts that failed, and what the policy refused."""
        return [entry["message"] for entry in self._ask("/se/log", {"type": "browser"})]

    def close(self) -> None:
        """End the browser."""
        self._ask("", method="DELETE")


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser of this process, which takes longer to start than most pages to look at; the
    test is skipped with the reason where there is none."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no chromium and chromedriver: apt-get install chromium chromium-driver")
    browser = _started(program, driver)
    browser.errors()  # those of the pages before are of no concern
    yield browser


@cache
def _started(program: str, driver: str) -> Browser:
    process = subprocess.Popen(
        [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    atexit.register(process.wait)
    atexit.register(process.terminate)
    assert process.stdout is not None
    said = (re.search(r"successfully on port (\d+)", line) for line in process.stdout)
    browser = Browser(next(int(found[1]) for found in said if found), program)
    atexit.register(browser.close)  # the last to be registered, so the first to be called
    return browser


def check_page(page: Path) -> None:
    """Nothing on ``page`` is serious for axe-core, too wide or an error, folded and unfolded, on a
    phone and on a screen, light and dark; skipped without a browser or axe-core."""
    axe = need_axe()
    with chromium() as browser:
        for width, dark in LOOKS:
            browser.look(width, dark)
            browser.open(page)
            for _ in ("folded", "unfolded"):
                assert browser.faults(axe) == [], (width, dark)
                assert browser.run("return document.documentElement.scrollWidth") <= width
                browser.run(OPEN_ALL)
        assert browser.errors() == []
