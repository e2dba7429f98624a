"""The leaderboard as a page: what it links and draws, in a browser, and of a sweep at work."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import ENTER, Browser, chromium, need_axe
from sweeps import QUICK, SLOTS, quickly_begun, until

from xfer.core.errors import XferError
from xfer.core.log import log
from xfer.sweep.leaderboard import write, write_live
from xfer.sweep.leaderboard.html_page import bars
from xfer.sweep.leaderboard.importance import Importance
from xfer.sweep.ledger import Ledger
from xfer.sweep.objective import Objective
from xfer.sweep.scheduler import Scheduler

VALUES = (0.5, 0.9, 0.7, 0.85)
RATES = (0.001, 0.1, 0.01, 1.0)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Four handmade jobs that have ended, the third without a run card, and one that failed."""
    goal = {"metric": "val_acc", "direction": "maximize"}
    facts = {"format": 1, "experiment": "hand", "objectives": [goal], "baseline": None, "jobs": 6}
    (tmp_path / "sweep.json").write_text(json.dumps({**facts, "command": "python -m xfer -m"}))
    for number, (value, lr) in enumerate(zip(VALUES, RATES, strict=True)):
        job(tmp_path / str(number), number, value, lr)
    (tmp_path / "2" / "report.html").unlink()
    job(tmp_path / "4", 4, None, 10.0)
    return tmp_path


def job(folder: Path, number: int, value: float | None, lr: float) -> None:
    folder.mkdir()
    named = {"optim.lr": lr, "freeze": "none" if number % 2 else "head_only"}
    texts = [f"{key}={value}" for key, value in named.items()]
    facts = {"job": number, "overrides": texts, "parameters": named}
    (folder / "job.json").write_text(json.dumps(facts))
    state = {"state": "failed" if value is None else "finished", "code": 701, "message": "NaN"}
    (folder / "status.json").write_text(json.dumps(state))
    if value is None:
        return
    best = {"metric": "val_acc", "value": value, "epoch": 3}
    result = {"best": best, "scores": {"val": {"n": 100, "acc": value}}, "command": "python"}
    (folder / "result.json").write_text(
        json.dumps({**result, "params": {"total": 10 ** (number + 2)}})
    )
    rows = [f"{epoch},{1 / epoch},{value * epoch / 3}" for epoch in (1, 2, 3)]
    (folder / "metrics.csv").write_text("\n".join(["epoch,val_loss,val_acc", *rows, ""]))
    (folder / "report.html").write_text("<title>card</title>")


def figures(page: str) -> dict[str, str]:
    return dict(re.findall(r"<h3>([^<]+)</h3>\s*<svg[^>]*>(.*?)</svg>", page, re.S))


def test_jobs_link_to_the_run_cards_that_are_there(sweep: Path) -> None:
    (sweep / "0" / "report.html").unlink()
    (sweep / "0" / "report.html").symlink_to("/etc/hostname")
    page = write(sweep).read_text()
    links = re.findall(r'href="([^"]+)"', page)
    assert links == ["1/report.html", "3/report.html"]
    assert all((sweep / link).read_text() == "<title>card</title>" for link in links)


def test_intervals_are_drawn_on_one_scale(sweep: Path) -> None:
    page = write(sweep).read_text()
    drawn = re.findall(
        r'<path d="M([\d.]+) 7H([\d.]+)" class="reach"/><circle cx="([\d.]+)".*?</svg>\s*'
        r"<bdi>([\d.]+) to ([\d.]+)</bdi>",
        page,
    )
    ends = np.array(drawn, float)
    assert len(ends) == 4
    low, high = ends[:, 3].min(), ends[:, 4].max()
    assert ends[:, 0] == pytest.approx(np.interp(ends[:, 3], [low, high], [5, 95]), abs=0.3)
    assert ends[:, 1] == pytest.approx(np.interp(ends[:, 4], [low, high], [5, 95]), abs=0.3)
    values = sorted(VALUES, reverse=True)
    assert ends[:, 2] == pytest.approx(np.interp(values, [low, high], [5, 95]), abs=0.3)


@pytest.mark.parametrize("strengths", [1, 2])
def test_a_strength_that_is_given_is_no_curve(strengths: int, sweep: Path) -> None:
    for number in range(4):
        rows = [f"{i + 1},{0.1 * 10**i},0.4,0.8" for i in range(strengths)]
        text = "\n".join(["epoch,l2,cv_loss,val_acc", *rows, ""])
        (sweep / str(number) / "metrics.csv").write_text(text)
    drawn = figures(write(sweep).read_text())
    assert ("cv_loss by strength of the penalty" in drawn) == (strengths > 1)


def test_curves_are_overlaid_and_parameters_are_parallel_coordinates(sweep: Path) -> None:
    drawn = figures(write(sweep).read_text())
    for title in ("val_acc by epoch", "val_loss by epoch"):
        names = re.findall(r"<title>([^<]+)</title>", drawn[title])
        assert sorted(names) == ["job 0", "job 1", "job 2", "job 3"]
    lines = {
        name: np.array([pair.split() for pair in path.split("L")], float)
        for path, name in re.findall(r'd="M([^"]+)"><title>(job \d)', drawn["Parameters"])
    }
    assert len(lines) == 4 and {len(points) for points in lines.values()} == {3}
    first = [lines[f"job {n}"][0, 0] for n in range(4)]
    wide_ = np.interp(np.log10(RATES), [-3, 0], [min(first), max(first)])
    assert first == pytest.approx(wide_, abs=0.1), "an axis over decades is logarithmic"
    last = [lines[f"job {n}"][-1, 0] for n in range(4)]
    ends = [min(last), max(last)]
    assert last == pytest.approx(np.interp(VALUES, [0.5, 0.9], ends), abs=0.1)
    assert ">optim.lr (log)<" in drawn["Parameters"] and ">head_only<" in drawn["Parameters"]


def dots(drawn: str) -> dict[str, tuple[float, float]]:
    """The places of the circles by what they say when they are pointed at."""
    found = re.findall(
        r'<circle class="\w+" cx="([\d.]+)" cy="([\d.]+)" r="[\d.]+"><title>([^<]+)<', drawn
    )
    return {title: (float(x), float(y)) for x, y, title in found}


def test_values_lie_over_the_jobs_with_the_best_so_far(sweep: Path) -> None:
    drawn = figures(write(sweep).read_text())["val_acc by job"]
    found = dots(drawn)
    assert list(found) == [f"job {n}: {value:.4g}" for n, value in enumerate(VALUES)]
    x, y = np.array([*found.values()]).T
    assert x == pytest.approx(np.interp(range(4), [0, 3], x[[0, 3]]), abs=0.1) and x[0] < x[3]
    assert y == pytest.approx(np.interp(VALUES, [0.5, 0.9], y[[0, 1]]), abs=0.1) and y[1] < y[0]
    (best,) = re.findall(r'<path class="t2" d="([^"]+)"', drawn)
    assert best == f"M{x[0]:.1f} {y[0]:.1f}" + "".join(f"H{at:.1f}V{y[1]:.1f}" for at in x[1:])
    assert "job 4, no value" in drawn


def test_the_pareto_front_is_a_line_through_its_jobs(sweep: Path) -> None:
    facts = json.loads((sweep / "sweep.json").read_text())
    facts["objectives"].append({"metric": "params.total", "direction": "minimize"})
    (sweep / "sweep.json").write_text(json.dumps(facts))
    drawn = figures(write(sweep).read_text())["val_acc over params.total"]
    totals = [100, 1000, 10000, 100000]
    found = dots(drawn)
    names = [f"job {n} ({VALUES[n]:.4g} at {totals[n]:,.4g})" for n in range(4)]
    assert {*found} == {*names}
    front = [found[names[n]] for n in (0, 1)]
    (line,) = re.findall(r'<path class="t0" d="([^"]+)"', drawn)
    (x0, y0), (x1, y1) = front
    assert line == f"M{x0:.1f} {y0:.1f}H{x1:.1f}V{y1:.1f}"
    x = [found[name][0] for name in names]
    assert x == pytest.approx(np.interp(totals, [100, 100000], x[::3]), abs=0.1)
    assert re.findall(r'<circle class="rest"', drawn) == ['<circle class="rest"'] * 2


def test_a_bar_is_as_long_as_what_the_forest_loses() -> None:
    drawn = bars(Importance({"a": (0.6, 0.1), "b": (-0.05, 0.02)}))
    assert drawn is not None
    rects = re.findall(r'<rect class="bar" x="([\d.]+)" y="\d+" width="([\d.]+)"', str(drawn.svg))
    (left, wide), (_, small) = np.array(rects, float)
    assert wide == pytest.approx(12 * small, rel=0.02)
    (reach,) = re.findall(r'd="M([\d.]+) 24H([\d.]+)"', str(drawn.svg))
    ends = np.array(reach, float)
    assert ends.mean() == pytest.approx(left + wide, abs=0.1)
    assert np.ptp(ends) == pytest.approx(wide / 3, rel=0.01)
    assert "a 0.600, sd 0.100; b -0.050" in drawn.alt
    assert bars(Importance({}, why="nothing varies")) is None


def test_a_curve_that_is_none_is_left_out_and_the_job_is_not(sweep: Path) -> None:
    (sweep / "0" / "metrics.csv").write_text("epoch,val_acc\n1,much\n")
    (sweep / "1" / "metrics.csv").write_text("epoch,val_acc\n1,0.5,7,8\n2\n")
    page = write(sweep).read_text()
    assert "job 0" not in figures(page)["val_acc by epoch"]
    assert "5 jobs" not in page and "6 jobs: 4 finished, 1 failed, 1 not started" in page


def test_a_page_of_a_sweep_at_work_says_so_and_the_last_one_does_not(sweep: Path) -> None:
    write_live(sweep)
    page = (sweep / "leaderboard.html").read_text()
    assert "The sweep is at work: 5 of 6 jobs have ended." in page
    assert '<noscript><meta http-equiv="refresh" content="5"></noscript>' in page
    assert "val_acc by epoch" in page and "val_acc by job" not in page
    page = write(sweep).read_text()
    assert 'id="live"' not in page and "refresh" not in page and "val_acc by job" in page
    assert "data:image" not in page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


def column(browser: Browser, name: str) -> list[str]:
    """The texts of a column of the first table."""
    cells = "return [...document.querySelector('table').querySelectorAll(arguments[0])]"
    found: list[str] = browser.run(
        f"{cells}.map(cell => cell.innerText)", f'td[data-name="{name}"]'
    )
    return found


def click(browser: Browser, name: str, then: str = "click") -> None:
    """Press the button of a column of the first table that has one, or do what ``then`` says."""
    script = """
      const buttons = [...document.querySelectorAll("th button")];
      const named = buttons.find(button => button.innerText === arguments[0]);
      named[arguments[1]]()"""
    browser.run(script, name, then)


def test_columns_are_sorted_by_a_click_and_by_the_keyboard(browser: Browser, sweep: Path) -> None:
    browser.look(1280)
    browser.open(write(sweep))
    assert column(browser, "rank")[:4] == ["1", "2", "3", "4"]
    click(browser, "parameters")
    assert column(browser, "parameters")[:4] == ["100", "1,000", "10,000", "100,000"]
    click(browser, "parameters")
    assert column(browser, "parameters")[:4] == ["100,000", "10,000", "1,000", "100"]
    # What has no number comes last either way.
    assert column(browser, "parameters")[4:] == ["–", "–"]
    head = "return document.querySelector('th[aria-sort=\"descending\"]').innerText"
    assert browser.run(head) == "parameters"
    click(browser, "parameters", "focus")
    browser.press(ENTER)
    assert column(browser, "parameters")[0] == "100"
    click(browser, "optim.lr")
    assert column(browser, "job")[:4] == ["0", "2", "1", "3"]
    assert browser.errors() == []


@pytest.mark.parametrize("look", ["light", "dark"])
def test_on_a_narrow_screen_every_column_is_there(browser: Browser, sweep: Path, look: str) -> None:
    path = write(sweep)
    browser.look(360, dark=look == "dark")
    browser.open(path)
    size = "return [document.documentElement.scrollWidth, getComputedStyle(document.body).color]"
    assert browser.run(size) == [
        360,
        "rgb(34, 34, 34)" if look == "light" else "rgb(232, 232, 232)",
    ]
    names = re.findall(r"<th[^>]*>([^<]+)</th>", path.read_text().partition("</thead>")[0])
    assert len(names) > 6
    visible = """
      return [...document.querySelector("tbody tr").cells].map((cell) => {
        const box = cell.getBoundingClientRect();
        return box.left >= 0 && box.right <= 360 && box.height > 0
          ? getComputedStyle(cell, "::before").content : "hidden";
      });"""
    assert browser.run(visible) == [f'"{name}"' for name in names]
    click(browser, "optim.lr")
    assert column(browser, "job")[0] == "0"
    assert browser.faults(need_axe()) == []


def test_no_number_beside_an_axis_is_cut(browser: Browser, sweep: Path) -> None:
    """As large ones were, whose margin was that of accuracies."""
    facts = json.loads((sweep / "sweep.json").read_text())
    facts["objectives"].insert(0, {"metric": "params.total", "direction": "minimize"})
    (sweep / "sweep.json").write_text(json.dumps(facts))
    for number in range(4):
        file = sweep / str(number) / "result.json"
        held = json.loads(file.read_text())
        file.write_text(json.dumps(held | {"params": {"total": 86_000_000 + 10**7 * number}}))
    browser.look(360)
    browser.open(write(sweep))
    left = "return [...document.querySelectorAll('.chart text')].map(e => [e.textContent, "
    found = browser.run(f"{left}e.getBBox().x])")
    assert {"100,000,000"} <= {text for text, _ in found}
    assert [text for text, x in found if x < 0] == []


def test_without_its_script_the_page_is_whole(browser: Browser, sweep: Path) -> None:
    browser.look(1280)
    browser.scripts(on=False)
    try:
        browser.open(write(sweep))
        assert column(browser, "rank")[:4] == ["1", "2", "3", "4"]
        assert browser.run("return document.querySelectorAll('button').length") == 0
    finally:
        browser.scripts(on=True)


def test_print_is_light_and_cuts_no_column_off(browser: Browser, sweep: Path) -> None:
    browser.look(1280, dark=True, media="print")
    browser.open(write(sweep))
    looks = (
        "const look = getComputedStyle(document.body); return [look.color, look.backgroundColor]"
    )
    assert browser.run(looks) == ["rgb(34, 34, 34)", "rgb(255, 255, 255)"]
    # A sheet of A4 between its margins; what is beside it is not printed.
    browser.look(718, media="print")
    browser.open(write(sweep))
    out = "return [...document.querySelectorAll('td')].filter(e => e.getBoundingClientRect().right"
    assert browser.run(f"{out} > 718).length") == 0
    browser.look(1280)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages that read themselves again after a second."""
    monkeypatch.setattr("xfer.sweep.leaderboard._RELOAD_S", 1)


def test_the_page_reads_itself_again_until_the_sweep_is_over(
    browser: Browser, sweep: Path, soon: None
) -> None:
    browser.look(1280)
    write_live(sweep)
    browser.open(sweep / "leaderboard.html")
    click(browser, "optim.lr")
    job(sweep / "5", 5, 0.95, 0.0001)
    write(sweep)

    # The title is that of whichever page is there, also between two of them.
    until(lambda: "job 5, val_acc 0.95" in browser.run("return document.title"))
    # Sorted as it was, by the script, which runs behind the title; and no longer at work.
    until(lambda: column(browser, "job")[:2] == ["5", "0"])
    assert browser.run("return document.getElementById('live')") is None
    assert browser.errors() == []


def test_reading_again_can_be_paused(browser: Browser, sweep: Path, soon: None) -> None:
    browser.look(1280)
    write_live(sweep)
    browser.open(sweep / "leaderboard.html")
    # At the worst moment: when it is being read already.
    begun = "document.body.dataset.same = 'yes'; location.reload();"
    browser.run(f"{begun} document.querySelector('#live button').click()")
    time.sleep(2)
    assert browser.run("return document.body.dataset.same") == "yes"
    assert browser.run("return document.querySelector('#live button').innerText") == "Reload again"


def test_a_page_that_is_not_written_any_more_says_so(browser: Browser, sweep: Path) -> None:
    browser.look(360)
    write_live(sweep, within=300)
    path = sweep / "leaderboard.html"
    browser.open(path)
    assert "The sweep is at work" in browser.run("return document.body.innerText")
    then = f'data-written="{int(time.time()) - 400}"'
    path.write_text(re.sub(r'data-written="\d+"', then, path.read_text()))
    browser.open(path)
    said = browser.run("return document.getElementById('live').innerText")
    assert said.startswith("Nothing has been written here for 7 min: the sweep has probably been")
    assert "The sweep is at work" not in browser.run("return document.body.innerText")
    assert browser.faults(need_axe()) == [] and browser.errors() == []


def test_the_page_of_a_long_job_is_written_all_the_same(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = Scheduler(Ledger(sweep), None, (Objective("val_acc"),), (), 6, None)  # type: ignore[arg-type]
    clock = [1000.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    written = []
    monkeypatch.setattr(
        "xfer.sweep.leaderboard.write_live", lambda _folder, *rest, **more: written.append(more)
    )
    for _ in range(100):
        scheduler.beat()
        clock[0] += 2.0
    # At once, and then every minute; it is silent when five of these have been left out.
    assert written == [{"within": 300}] * 4


def live_line(folder: Path) -> str:
    try:
        page = (folder / "leaderboard.html").read_text()
    except FileNotFoundError:
        return ""
    return "".join(re.findall(r'<p id="live"[^>]*>(.*?)</p>', page))


def test_a_sweep_at_work_writes_its_page_whenever_a_job_ends(tmp_path: Path) -> None:
    typed = [*QUICK, "optim.lr=0.1,0.05,0.02,0.01", SLOTS, "sweep.dir=s"]
    seen = []

    def further() -> bool:
        line = live_line(tmp_path / "s")
        if line and line not in seen:
            seen.append(line)
        return process.poll() is not None

    with quickly_begun(tmp_path, *typed) as process:
        until(further)
        output, _ = process.communicate()
    assert process.returncode == 0, output
    counts = [
        int(re.findall(r"at work: (\d) of 4 jobs ha(?:s|ve) ended", line)[0]) for line in seen
    ]
    assert counts[0] == 0 and counts == sorted(counts) and max(counts) >= 2, seen
    assert live_line(tmp_path / "s") == ""
    assert "4 jobs: 4 finished" in (tmp_path / "s" / "leaderboard.html").read_text()


def test_a_page_that_cannot_be_written_stops_no_sweep(
    sweep: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log.propagate = True
    (sweep / "leaderboard.html").mkdir()
    with pytest.raises(XferError):
        write_live(sweep)
    scheduler = Scheduler(Ledger(sweep), None, (Objective("val_acc"),), (), 6, None)  # type: ignore[arg-type]
    scheduler.show()
    assert "the leaderboard is not up to date: xfer: error E9" in caplog.text
