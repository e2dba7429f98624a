"""Pages as a browser shows them: headless Chromium, at a width, light or dark.

Debian's ``chromium`` and ``chromium-driver``; axe-core from npm, in ``node_modules`` of the
checkout (``npm install --no-save axe-core``) or where ``XFER_AXE`` says.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
AXE = Path(os.environ.get("XFER_AXE", ROOT / "node_modules/axe-core/axe.min.js"))
WIDTHS = (360, 800, 1280)


def need_axe() -> str:
    """The text of axe-core; the test is skipped where it is absent."""
    if not AXE.is_file():
        pytest.skip(f"no axe-core in {AXE}: npm install --no-save axe-core, or set XFER_AXE")
    return AXE.read_text("utf-8")


class Browser:
    """One page at a time, from the disk."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def look(self, width: int, dark: bool = False, media: str = "") -> None:
        """Show pages at this width in CSS pixels, as on a phone where it is narrow."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"media": media, "features": [scheme]}
        )

    def scripts(self, on: bool) -> None:
        """Whether pages may run scripts; those of a test run at any rate."""
        self.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not on})

    def open(self, page: Path) -> None:
        """Load a page."""
        self.driver.get(page.resolve().as_uri())

    def run(self, script: str, *args: Any) -> Any:
        """What ``script`` returns inside the page."""
        return self.driver.execute_script(script, *args)

    def press(self, *keys: str) -> None:
        """Type keys where the focus is."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def shoot(self, path: Path) -> None:
        """The whole page as a PNG."""
        import base64

        height = self.run("return document.documentElement.scrollHeight")
        width = self.run("return document.documentElement.clientWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        asked = {"captureBeyondViewport": True, "clip": clip}
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", asked)
        path.write_bytes(base64.b64decode(shot["data"]))

    def faults(self, axe: str) -> list[str]:
        """What axe-core finds serious or critical, a line each."""
        # By the protocol of the developer tools: the page's own policy allows no other script.
        self.driver.execute_cdp_cmd("Runtime.evaluate", {"expression": axe})
        found = self.driver.execute_async_script(
            "const done = arguments[0]; axe.run().then(r => done(r.violations))"
        )
        return [
            f"{rule['id']}: {node['target']} {node.get('failureSummary', '')}"
            for rule in found
            if rule["impact"] in ("serious", "critical")
            for node in rule["nodes"]
        ]

    def errors(self) -> list[str]:
        """What the console has of errors: scripts that failed, and what the policy refused."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser; the test is skipped with the reason where there is none."""
    pytest.importorskip("selenium", reason="no selenium: pip install '.[dev]'")
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("no chromium and chromedriver: apt-get install chromium chromium-driver")
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = str(programs[0])
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=Service(str(programs[1])))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
