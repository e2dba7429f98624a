"""The page of the stage audit: as a file, and in headless Chromium by keyboard and on a phone."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from browser import SPACE, WIDTHS, Browser, chromium, need_axe
from pictures import picture

from xfer.core.types import InputSpec, Samples
from xfer.evaluation.leave_one_out import coordinates, leave_one_out
from xfer.evaluation.multilabel_leave_one_out import labels_left_out
from xfer.evaluation.multilabel_wrong_labels import judge_labels
from xfer.evaluation.neighbours import directions
from xfer.evaluation.wrong_labels import judge
from xfer.report import audit_page
from xfer.report.audit_files import facts, lines, reasons, table
from xfer.report.inputs import Work
from xfer.training.image_audit import Audited, Twin

CLASSES = ("dogs", "wolves </script><b>", 'an "odd", name')
ODD = 'train/wolves/a "quoted", name </script>.jpg'
SPEC = InputSpec((32, 32), None, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Pictures:
    """Patterns in memory as the images of a split."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return picture(index, (60, 48))


def audited(count: int = 60) -> Audited:
    """Three classes of Gaussian features; some labels are wrong, one name is odd."""
    draw = np.random.default_rng(0)
    true = np.arange(count) % 3
    features = draw.normal(size=(count, 12)) + 4 * np.eye(3, 12)[true]
    labels = true.copy()
    labels[:5] = (true[:5] + 1) % 3
    at = coordinates(features.astype(np.float32))
    left_out = leave_one_out(at, labels, 3)
    names = [f"train/dogs/{i:03}.jpg" for i in range(count)]
    names[1] = ODD
    strongest = np.argsort(-left_out.effect)[:4].tolist()
    return Audited(
        names=tuple(names),
        splits=("train",) * (count - 9) + ("val",) * 9,
        labels=labels,
        classes=CLASSES,
        judged=judge(left_out.held_out(labels), labels),
        twins=[Twin(10, count - 1, 0.97, "alike features"), Twin(11, 12, 0.9, "same bytes")],
        outliers=np.array([20, 21]),
        influential=dict(zip(strongest, left_out.changed(strongest), strict=True)),
        left_out=left_out,
        vectors=directions(at)[0],
        facts={"near_duplicate": {"cosine": 0.85}, "groups": None},
        features={},
        device="cpu",
        seconds=(1.0, 0.1),
        warnings=["audit: a remark <of> the audit"],
    )


def several(count: int = 80) -> Audited:
    """Three labels that do not exclude each other, some wrong, some unknown, one oddly named."""
    draw = np.random.default_rng(1)
    true = (draw.random((count, 3)) < 0.4).astype(np.int64)
    features = draw.normal(size=(count, 12)) + 6 * true @ np.eye(3, 12)
    labels = true.copy()
    labels[:3, 0] = 1 - labels[:3, 0]
    labels[20 + np.flatnonzero(true[20:, 1])[:2], 1] = 0
    labels[2, 1], labels[3, 2] = 1 - labels[2, 1], -1
    at = coordinates(features.astype(np.float32))
    left_out = labels_left_out(at, labels)
    judged = judge_labels(left_out.held_out, labels)
    strongest = np.argsort(-left_out.effect)[:4].tolist()
    changed = left_out.changed(strongest, judged.cuts)
    return replace(
        audited(60),
        names=tuple(f"train/{i:03}.jpg" for i in range(count)),
        splits=("train",) * (count - 9) + ("val",) * 9,
        labels=labels,
        judged=judged,
        twins=[Twin(50, 51, 0.97, "alike features")],
        outliers=np.array([20, 21]),
        influential=dict(zip(strongest, changed, strict=True)),
        left_out=left_out,
        vectors=directions(at)[0],
    )


def work(folder: Path, result: Audited) -> Work:
    """As much of a run as the page looks at."""
    splits = {
        name: Samples(
            tuple(n for n, s in zip(result.names, result.splits, strict=True) if s == name),
            result.labels[[s == name for s in result.splits]],
            Pictures(result.splits.count(name)),
            "",
        )
        for name in ("train", "val")
    }
    plan = SimpleNamespace(
        dataset=SimpleNamespace(splits=splits, classes=CLASSES),
        card=SimpleNamespace(input=SPEC, classes=CLASSES),
        specs=SimpleNamespace(experiment="wolves", overrides=(), facts={"data": {"root": "x"}}),
        facts={"config": {"data": {"root": "my images"}}, "experiment": "wolves"},
    )
    return cast("Work", SimpleNamespace(plan=plan, folder=folder, audited=result))


def written(folder: Path, result: Audited | None = None) -> Path:
    result = result or audited()
    audit_page.write_page(work(folder, result), result, table(result))
    return folder / "audit.html"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("audit"))


@pytest.fixture(scope="module")
def labels_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("several"), several())


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


def embedded(page: Path) -> dict[str, Any]:
    text = page.read_text()
    inside = re.search(r'id="table">(.*?)</script>', text, re.DOTALL)
    assert inside
    return dict(json.loads(inside[1]))


def test_the_page_fetches_nothing_and_has_the_whole_table(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", text) and "default-src 'none'" in text
    rows = embedded(page)
    assert len(rows["rows"]) == 60 and rows["classes"] == list(CLASSES)
    assert ODD in {row[0] for row in rows["rows"]}
    assert text.count("</script>") == 2, "a name has ended a script"


def test_each_listed_image_is_there_with_its_neighbours(page: Path) -> None:
    result, text = audited(), page.read_text()
    listed = reasons(result)
    assert text.count('<article class="find"') == len(listed)
    kinds = re.findall(r'data-kinds="([^"]*)"', text)
    assert kinds == [" ".join(kinds) for kinds in listed.values()]
    accused = sum("label" in kinds for kinds in listed.values())
    assert 5 <= accused < len(listed) and text.count(", looks like <b>") == accused
    assert text.count("nearest labelled") == 2 * len(listed)
    assert html.escape("audit: a remark <of> the audit") in text


def test_what_does_not_fit_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_page, "MOST", 3)
    text = written(tmp_path).read_text()
    assert text.count('<article class="find"') == 3
    assert f"Listed in audit.csv alone: {len(reasons(audited())) - 3} more images." in text


def test_an_audit_without_a_finding_says_so(tmp_path: Path) -> None:
    result = audited()
    judged = replace(result.judged, p_wrong=np.zeros(60), fdr=np.ones(60), rate=0.0)
    calm = replace(result, judged=judged, twins=[], outliers=np.empty(0, np.int64), influential={})
    audit_page.write_page(work(tmp_path, calm), calm, table(calm))
    text = (tmp_path / "audit.html").read_text()
    assert "None of 60 labels is more likely wrong than right" in text
    assert "Nothing stands out." in text
    assert facts(calm)["counts"]["fdr"] is None
    said = dict(lines(work(tmp_path, calm)))
    assert (
        said["labels"] == "none of 60 is more likely wrong than right; the highest p_wrong is 0.00"
    )
    assert (
        said["influence"]
        == "0 move the answers most; none of them decides the class of another image"
    )


def test_the_last_lines_count_one_as_one(tmp_path: Path) -> None:
    result = replace(audited(), twins=audited().twins[:1], influential={7: 0, 8: 2})
    said = dict(lines(work(tmp_path, result)))
    assert said["near-duplicates"].startswith("1 pair, ")
    assert said["influence"].startswith("2 move the answers most; 1 of them decides the class")


def test_what_is_not_listed_begins_with_the_label_that_is_most_likely_wrong() -> None:
    result = audited()
    result = replace(result, judged=replace(result.judged, p_wrong=np.linspace(0, 0.4, 60)))
    rest = [float(row["p_wrong"]) for row in table(result)][len(reasons(result)) :]
    assert rest == sorted(rest, reverse=True) and rest[0] > rest[-1]


def test_the_page_says_where_the_saved_table_belongs(page: Path) -> None:
    assert f"Move it to <bdi>{page.parent / 'audit.csv'}</bdi>" in page.read_text()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_nothing_serious(browser: Browser, page: Path, width: int, dark: bool) -> None:
    axe = need_axe()
    browser.look(width, dark)
    browser.open(page)
    assert browser.faults(axe) == [] and browser.errors() == []
    assert browser.run("return document.documentElement.scrollWidth") <= width


def test_each_accused_label_is_said_with_images_that_have_it_and_that_lack_it(
    labels_page: Path,
) -> None:
    result, text = several(), labels_page.read_text()
    pairs = [pair for pair in result.judged.pairs if pair[0] < 4]
    assert {(0, 0), (1, 0), (2, 0), (2, 1)} <= set(pairs)
    cards = text.split('<article class="find"')[1:]
    assert len(cards) == len(reasons(result))
    for image in result.judged.accused.tolist():
        [card] = [card for card in cards if f"<bdi>train/{image:03}.jpg</bdi></h3>" in card]
        mine = [label for one, label in result.judged.pairs if one == image]
        for label in mine:
            name = html.escape(CLASSES[label], quote=True).replace("&quot;", "&#34;")
            has = result.labels[image, label]
            said = "has it, and it looks as if it had not" if has else "has it not, and it looks"
            assert f"<b><bdi>{name}</bdi></b>: the data says the image {said}" in card
            assert f"nearest with <bdi>{name}" in card and f"nearest without <bdi>{name}" in card
        assert card.count("the data says the image") == len(mine)
    assert "labelled <b><bdi>dogs" in text and f"?{html.escape(CLASSES[2])[:3]}" in text
    listed = len(result.judged.pairs)
    assert f"{listed} of 239 known labels of 80 images are probably wrong" in text


@pytest.mark.parametrize("width", [360, 1400])
def test_axe_finds_nothing_serious_where_labels_are_several(
    browser: Browser, labels_page: Path, width: int
) -> None:
    axe = need_axe()
    browser.look(width)
    browser.open(labels_page)
    assert browser.faults(axe) == [] and browser.errors() == []
    assert browser.run("return document.documentElement.scrollWidth") <= width


def choose(browser: Browser, card: int, which: str, value: str) -> None:
    browser.run(
        "const s = document.querySelectorAll('.find')[arguments[0]].querySelector(arguments[1]);"
        "s.value = arguments[2]; s.dispatchEvent(new Event('change', { bubbles: true }))",
        card,
        which,
        value,
    )


def test_labels_are_changed_one_by_one(browser: Browser, labels_page: Path) -> None:
    """Accused ones are turned already; another one is turned when it is chosen, and any may be
    unknown. What nothing is changed of is not relabelled."""
    browser.look(1280)
    browser.open(labels_page)
    table = embedded(labels_page)
    before = [dict(zip(table["head"], row, strict=True)) for row in table["rows"]]
    plain = next(i for i, row in enumerate(before) if row["label"] == row["suggested"])
    browser.press("j")
    browser.press("r")
    first, second = (labels_of(before[i]["suggested"]) for i in (0, 1))
    asked = ".asked select"
    choose(browser, 1, asked, "?")
    free = next(
        name for name in CLASSES if f"?{name}" not in second and name not in turned(before[1])
    )
    choose(browser, 1, "fieldset span > select", free)
    added = next(i for i, row in enumerate(before) if i > 1 and gains(row))
    choose(browser, added, asked, "0")
    browser.run(
        f"document.querySelectorAll('.find')[{plain}].querySelector('[value=relabel]').click()"
    )
    rows = saved(browser)
    assert rows[0]["decision"] == rows[1]["decision"] == "relabel"
    assert labels_of(rows[0]["suggested"]) == first != labels_of(rows[0]["label"])
    now = labels_of(rows[1]["suggested"])
    [name] = list(turned(before[1]))[:1]
    assert f"?{name}" in now and (free in now) != (free in second)
    assert {row["decision"] for row in rows[2:]} == {"accept"}
    assert turned(rows[added]) == [], "what is put back is no change"
    assert [row["label"] for row in rows] == [row["label"] for row in before]


def labels_of(cell: str) -> set[str]:
    return {*cell.split("|")} - {""}


def gains(row: dict[str, str]) -> bool:
    """Whether one class is suggested otherwise, which the image lacks."""
    return len(turned(row)) == 1 and turned(row)[0] in labels_of(row["suggested"])


def turned(row: dict[str, str]) -> list[str]:
    """The classes that are suggested otherwise than they are, in their order."""
    given, suggested = labels_of(row["label"]), labels_of(row["suggested"])
    return [name for name in CLASSES if (name in given) != (name in suggested)]


FOCUS = "return [...document.querySelectorAll('.find')].indexOf(document.activeElement)"


def test_decisions_are_made_by_keyboard_and_saved(browser: Browser, page: Path) -> None:
    browser.look(1280)
    browser.open(page)
    browser.press("r")
    browser.press("k")
    assert browser.run(FOCUS) == -1
    browser.press("j")
    assert browser.run(FOCUS) == 0, "j goes to the first image of a page that was just opened"
    browser.press("r")
    browser.press("j")
    assert browser.run(FOCUS) == 1
    browser.press("d")
    browser.press("j")
    browser.press("d")
    browser.press("a")
    browser.press("k")
    assert browser.run(FOCUS) == 1
    said = browser.run("return document.querySelectorAll('#bar output')[1].textContent")
    assert said == "1 to relabel, 1 to drop"
    rows = saved(browser)
    before = embedded(page)["rows"]
    assert [row["decision"] for row in rows[:3]] == ["relabel", "drop", "accept"]
    assert all(row["decision"] == "accept" for row in rows[3:])
    assert [list(row.values())[:9] for row in rows] == [row[:9] for row in before]


def saved(browser: Browser) -> list[dict[str, str]]:
    """What a press of the button saves, as a CSV reader reads it."""
    text = browser.run(
        "let blob; URL.createObjectURL = (b) => { blob = b; return '#'; };"
        "HTMLAnchorElement.prototype.click = function () { window.saved = this.download; };"
        "document.querySelector('#bar button').click(); return blob.text()"
    )
    assert browser.run("return window.saved") == "audit.csv"
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_another_class_than_the_suggested_one_can_be_chosen(browser: Browser, page: Path) -> None:
    browser.look(800)
    browser.open(page)
    browser.run(
        "const s = document.querySelector('.find select'); s.selectedIndex = 1 - s.selectedIndex;"
        "s.dispatchEvent(new Event('change', { bubbles: true }))"
    )
    first, before = saved(browser)[0], embedded(page)["rows"][0]
    assert first["decision"] == "relabel"
    assert first["suggested"] in set(CLASSES) - {before[1], before[2]}


def test_the_filters_hide_the_others(browser: Browser, page: Path) -> None:
    browser.look(800)
    browser.open(page)
    shown = "return [...document.querySelectorAll('.find')].filter(c => !c.hidden).length"
    whole = browser.run(shown)

    def choose(which: int, value: str) -> int:
        browser.run(
            "const s = document.querySelectorAll('#bar select')[arguments[0]];"
            "s.value = arguments[1]; s.dispatchEvent(new Event('change'))",
            which,
            value,
        )
        return int(browser.run(shown))

    assert choose(0, "duplicate") == 4 < whole
    assert choose(0, "") == whole
    assert choose(2, "other") == 0
    browser.run("document.querySelectorAll('.find')[0].querySelector('[value=drop]').click()")
    assert choose(2, "other") == 1
    browser.press(SPACE)


def test_print_has_the_images_and_nothing_to_press(browser: Browser, page: Path) -> None:
    browser.look(800, dark=True, media="print")
    browser.open(page)
    seen = "return [...document.querySelectorAll('.find, button, input, select')]"
    names = browser.run(f"{seen}.filter(e => e.checkVisibility()).map(e => e.className)")
    assert set(names) == {"find"}
    assert browser.run("return getComputedStyle(document.body).color") == "rgb(31, 35, 40)"
    browser.look(800)


def test_without_scripts_the_images_are_there(browser: Browser, page: Path) -> None:
    browser.look(800)
    browser.scripts(False)
    try:
        browser.open(page)
        assert browser.run("return document.querySelectorAll('.find img').length") > 10
        assert browser.run("return document.querySelector('#bar').hidden") is True
    finally:
        browser.scripts(True)
