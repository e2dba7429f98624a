"""``report.html`` of runs at work: in time, whole after a kill, no reload once they have ended."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import warm
from browser import chromium, need_axe
from sweeps import until
from test_report import Page

import xfer
from xfer.core.errors import OutputError
from xfer.core.files import write_text
from xfer.report import live

RUN = ("experiment=digits_sgd", "freeze=none", "features=never", "run.dir=run", "optim.lr=0.001")
SHORT = ("stages=[fit,report]", "trainer.max_epochs=5")
RELOADS = re.compile(r'<meta http-equiv="refresh" content="(\d+)">')


@pytest.fixture
def run(tmp_path: Path) -> Iterator[warm.Run]:
    process = warm.start(tmp_path, *RUN, "trainer.max_epochs=500")
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


TEXT = "return document.getElementById('live').textContent"
BUTTON = "return document.querySelector('#live button').textContent"


def aged(html: str, seconds: int) -> str:
    """The page as if it had been written so long ago."""
    return re.sub(r'data-written="\d+"', f'data-written="{int(time.time()) - seconds}"', html)


def epochs_on(page: Path) -> int:
    """How many epochs the page tells of; 0 where it is still to come."""
    found = (
        re.search(r"Running: fit, (\d+) of 500", page.read_text("utf-8")) if page.exists() else 0
    )
    return int(found[1]) if found else 0


def waited_for(page: Path, epochs: int, process: warm.Run) -> str:
    until(lambda: epochs_on(page) >= epochs, process)
    return page.read_text("utf-8")


def test_the_page_follows_the_run_and_a_kill_leaves_it_whole(run: warm.Run, tmp_path: Path) -> None:
    page = tmp_path / "run" / "report.html"
    first = waited_for(page, 1, run)
    later = waited_for(page, epochs_on(page) + 2, run)
    for html in (first, later):
        assert RELOADS.search(html) and html.rstrip().endswith("</html>")
        assert "<h2>Training</h2>" in html and "<svg" in html
        assert "Nothing was exported" not in html and "This run did not train" not in html
    os.kill(run.pid, signal.SIGKILL)
    run.wait(600)
    html = page.read_text("utf-8")
    assert html.rstrip().endswith("</html>") and "section" in Page(html).tags
    with chromium() as browser:
        browser.look(360)
        page.write_text(aged(html, 0), "utf-8")  # however long the browser took to start
        browser.open(page)
        assert "Nothing has been written" not in browser.run(TEXT)
        assert browser.run(BUTTON) == "Pause"
        # As it is opened after a quarter of an hour, and after hours, in which nothing is written.
        for age, words, offered in ((900, "15 min", "Pause"), (7300, "2 h", "Reload again")):
            page.write_text(aged(html, age), "utf-8")
            browser.open(page)
            said = browser.run(TEXT)
            assert f"Nothing has been written here for {words}, and an epoch took at most" in said
            assert "has probably been killed. To finish it, type xfer resume run" in said
            assert browser.run("return document.title").startswith(f"Silent for {words}: ")
            assert browser.run(BUTTON) == offered
            assert browser.run("return document.documentElement.scrollWidth") <= 360
            assert browser.faults(need_axe()) == [] and browser.errors() == []


def test_a_run_that_is_stopped_says_so_and_reloads_no_more(run: warm.Run, tmp_path: Path) -> None:
    page = tmp_path / "run" / "report.html"
    waited_for(page, 1, run)
    os.kill(run.pid, signal.SIGTERM)
    assert run.wait(600) == 143
    html = page.read_text("utf-8")
    assert re.search(r"Interrupted in fit, \d+ of 500 epochs done", html)
    assert not RELOADS.search(html) and "reloads itself" not in html


def test_the_finished_card_does_not_reload_and_axe_minds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    write = live.render_live

    def watch(folder: Path, *rest: object) -> None:
        write(folder, *rest)  # type: ignore[arg-type]
        seen.append((folder / "report.html").read_text("utf-8"))

    monkeypatch.setattr(live, "render_live", watch)
    monkeypatch.setattr(live, "PAUSE", 0.0)
    monkeypatch.chdir(tmp_path)
    folder = xfer.run(overrides=[*RUN, "trainer.max_epochs=3", "export=safetensors"]).folder
    leads = [re.search(r'class="lead">([^<]*)', html)[1] for html in seen]  # type: ignore[index]
    assert leads == [
        "Running: fit",
        *(f"Running: fit, {done} of 3 epochs done" for done in (1, 2, 3)),
        *(f"Running: {stage}" for stage in ("evaluate", "export", "report")),
    ]
    assert all(RELOADS.search(html) for html in seen)
    assert "<h2>Scores</h2>" in seen[-1] and "<h2>Scores</h2>" not in seen[3]
    card = (folder / "report.html").read_text("utf-8")
    assert not RELOADS.search(card) and "Running" not in card and "val accuracy" in card
    assert card.count('class="heat-map"') == 24
    # Drawn anew without heat maps, the card is vouched for again.
    anew = [*RUN, "trainer.max_epochs=3", "export=safetensors", "checkpoint.resume=run"]
    xfer.run(overrides=[*anew, "stages=[report]", "report.maps=0"])
    again = (folder / "report.html").read_text("utf-8")
    assert 'class="heat-map"' not in again and 'name="right"' in card
    assert again.count("<details name") == card.count("<details name") - 8
    assert xfer.run(overrides=anew).facts is None, "it is not finished any more"
    axe, page = need_axe(), tmp_path / "live.html"
    # While axe looks at a page, that must not be read again.
    fresh = aged(seen[3], 0)
    late, soon = (re.sub(r'data-again="\d+"', f'data-again="{s}"', fresh) for s in (99, 1))
    page.write_text(late, "utf-8")
    with chromium() as browser:
        browser.look(360)
        browser.open(page)
        assert browser.faults(axe) == []
        assert browser.run("return document.documentElement.scrollWidth") <= 360
        page.write_text(soon, "utf-8")
        browser.open(page)
        write_text(page, soon.replace("3 of 3", "the next look"))  # at once: it is read meanwhile
        until(lambda: "the next look" in browser.run("return document.body.textContent"))


def test_without_the_stage_report_there_is_no_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = xfer.run(overrides=[*RUN, "trainer.max_epochs=1", "stages=[fit]"]).folder
    assert not (folder / "report.html").exists()


def test_a_failure_ends_the_page_with_its_reason_and_stays_the_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    full = OutputError(Path("somewhere"), "the disk is full", "make room", 1)

    def fails(*_: object) -> None:
        raise full

    monkeypatch.setattr("xfer.evaluation.predict.write_predictions", fails)
    with pytest.raises(OutputError, match="the disk is full"):
        xfer.run(overrides=[*RUN, "trainer.max_epochs=1", "stages=[fit,evaluate,report]"])
    html = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "Failed in evaluate: somewhere: the disk is full" in html and not RELOADS.search(html)
    # Where even the page cannot be written, the failure is the first one.
    monkeypatch.setattr(live, "render_live", fails)
    with pytest.raises(OutputError, match="the disk is full"):
        xfer.run(overrides=[*RUN, "trainer.max_epochs=1", "run.dir=other"])


def test_the_page_costs_little_of_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pages: list[live.LivePage] = []
    begin = live.LivePage.__init__

    def watch(page: live.LivePage, *args: object) -> None:
        begin(page, *args)  # type: ignore[arg-type]
        pages.append(page)

    monkeypatch.setattr(live.LivePage, "__init__", watch)
    # Of this process alone, whatever else the machine does.
    monkeypatch.setattr("time.perf_counter", time.process_time)
    done = xfer.run(overrides=[*RUN, *SHORT])
    assert done.facts is not None
    trained = sum(done.facts["timing"]["epoch_s"])
    print(f"{pages[0].spent:.3f} s of {trained:.1f} s in epochs")
    assert 0 < pages[0].spent < 0.05 * trained + 0.5  # the first page reads the templates
