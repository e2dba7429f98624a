"""A card that is drawn anew says what the card of the run said."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import xfer


@pytest.mark.parametrize(
    "options", [[], ["data.folds=2", "certificate.coverage=0.9"]], ids=["calibrated", "folds"]
)
def test_a_redrawn_card_has_the_sections_and_charts_of_the_first(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folded = bool(options)
    options = [*options, "report.maps=3"]
    run = xfer.run("digits_freeze", ["stages=[fit,evaluate,report]", *options]).folder
    first = (run / "report.html").read_text()
    (run / "report.html").unlink()
    xfer.run("digits_freeze", ["stages=[report]", f"checkpoint.resume={run}", *options])
    again = (run / "report.html").read_text()

    def shown(page: str) -> tuple[list[str], list[str], int]:
        headings = re.findall(r"<h2[^>]*>(.*?)</h2>", page, re.S)
        return headings, re.findall(r"<svg[^>]*aria-label=\"([^\"]*)\"", page), page.count("<img")

    assert shown(again) == shown(first)
    assert ("before calibration" in again) == (not folded)
    assert ("are those of the folds" in again) == folded
    assert "Drawn anew from what was on disk" in again
