"""The run card in headless Chromium: what axe-core finds, keyboard, filter, widths, no scripts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import ENTER, ESCAPE, OPEN_ALL, RIGHT, SPACE, WIDTHS, Browser, chromium, need_axe
from card_pages import NAMES, write_card, write_label_card


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_card(tmp_path_factory.mktemp("card"), 160, NAMES, figures=True, maps=6)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = [f"golden retriever {i}" for i in range(30)]
    return write_card(tmp_path_factory.mktemp("many"), 300, names)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_nothing_serious(browser: Browser, card: Path, width: int, dark: bool) -> None:
    axe = need_axe()
    browser.look(width, dark)
    browser.open(card)
    assert browser.faults(axe) == []
    browser.run(OPEN_ALL)
    browser.run("document.querySelector('#heats').click()")
    assert browser.faults(axe) == []
    assert browser.errors() == []


def test_axe_finds_nothing_serious_with_many_classes(browser: Browser, many: Path) -> None:
    axe = need_axe()
    browser.look(360)
    browser.open(many)
    assert browser.faults(axe) == []


def test_axe_finds_what_is_wrong(browser: Browser, tmp_path: Path) -> None:
    axe = need_axe()
    wrong = tmp_path / "wrong.html"
    wrong.write_text("<html lang=en><title>x</title><main><h1>x</h1><img src=x></main></html>")
    browser.open(wrong)
    assert any(line.startswith("image-alt") for line in browser.faults(axe))
    browser.errors()


@pytest.mark.parametrize("page", ["card", "many"])
def test_nothing_scrolls_sideways_on_a_phone(
    browser: Browser, page: str, request: pytest.FixtureRequest
) -> None:
    browser.look(360)
    browser.open(request.getfixturevalue(page))
    browser.run(OPEN_ALL)
    wide = "return document.documentElement.scrollWidth"
    assert browser.run(wide) <= 360
    # Nothing is cut off either, but what scrolls inside a region of its own.
    out = browser.run(
        "return [...document.querySelectorAll('main *')].filter(e => !e.closest('.wide, svg')"
        " && e.getBoundingClientRect().right > 361).map(e => e.outerHTML.slice(0, 80))"
    )
    assert out == []
    scrolled = browser.run(
        "return [...document.querySelectorAll('.wide')].filter(e => !e.closest('figure')"
        " && e.scrollWidth > e.clientWidth + 1).map(e => e.textContent.slice(0, 80))"
    )
    assert scrolled == [], "a table has columns out of sight"


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("width", [800, 1400])
def test_no_word_of_a_class_is_broken_beside_its_chart(
    browser: Browser, tmp_path: Path, several: bool, width: int
) -> None:
    names = ["photographs_of_golden_retrievers", "Enlarged Cardiomediastinum", "cat"]
    if several:
        known = {f"{i}.png": [i % 2, 1, 0] for i in range(8)}
        said = {f"{i}.png": [0.7, 0.2 + 0.1 * (i % 3), 0.4] for i in range(8)}
        page = write_label_card(tmp_path, known, said, names)
    else:
        page = write_card(tmp_path, 30, names)
    browser.look(width)
    browser.open(page)
    lines = """
      const found = {};
      for (const cell of document.querySelectorAll("td.word:first-child bdi")) {
        const text = cell.firstChild;
        for (const word of text.data.matchAll(/\\S+/g)) {
          const range = document.createRange();
          range.setStart(text, word.index);
          range.setEnd(text, word.index + word[0].length);
          found[word[0]] = Math.max(found[word[0]] ?? 0, range.getClientRects().length);
        }
      }
      return found;"""
    found = browser.run(lines)
    assert {*" ".join(names).split()} <= {*found}
    assert {word: n for word, n in found.items() if n > 1} == {}
    assert browser.run("return document.documentElement.scrollWidth") <= width


def test_on_a_phone_a_row_is_a_card_with_the_name_of_every_column(
    browser: Browser, card: Path
) -> None:
    browser.look(360)
    browser.open(card)
    browser.run(OPEN_ALL)
    lost = browser.run(
        "return [...document.querySelectorAll('table:not(.few) td')].filter(td => {"
        " const box = td.getBoundingClientRect();"
        " const name = getComputedStyle(td, '::before').content;"
        " return box.width < 100 || box.right > 360 || name.length < 3; }).length"
    )
    assert lost == 0
    columns = "return document.querySelectorAll('table:not(.few) td').length"
    assert browser.run(columns) > 300


def test_a_mistake_is_opened_and_closed_by_keyboard(browser: Browser, card: Path) -> None:
    browser.look(800)
    browser.open(card)
    width = (
        "return Math.round(document.querySelector('#mistakes img').getBoundingClientRect().width)"
    )
    small = browser.run(width)
    browser.run("document.querySelector('#mistakes summary').focus()")
    opened = "return [...document.querySelectorAll('#mistakes details')].findIndex(d => d.open)"
    assert browser.run(opened) == -1
    browser.press(ENTER)
    assert browser.run(opened) == 0 and browser.run(width) > 2 * small
    browser.press(RIGHT)
    assert browser.run(opened) == 1
    browser.press(ESCAPE)
    assert browser.run(opened) == -1
    at = (
        "return [...document.querySelectorAll('#mistakes summary')].indexOf(document.activeElement)"
    )
    assert browser.run(at) == 1, "the focus is lost"
    browser.press(SPACE)
    assert browser.run(opened) == 1
    browser.press(SPACE)
    assert browser.run(opened) == -1
    browser.run("document.querySelector('#mistakes summary').click()")
    assert browser.run(opened) == 0


SEEN = "return [...document.querySelectorAll('.heat-map')].filter(e => e.checkVisibility()).length"


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])
def test_heat_maps_are_shown_and_hidden_by_click_and_by_key(
    browser: Browser, card: Path, scripts: bool
) -> None:
    browser.look(800)
    browser.scripts(scripts)
    try:
        browser.open(card)
        assert browser.run(SEEN) == 0
        browser.run("document.querySelector('.heats').click()")
        assert browser.run(SEEN) == 12
        browser.run("document.querySelector('#heats').focus()")
        browser.press(SPACE)
        assert browser.run(SEEN) == 0
        browser.run("document.querySelector('#mistakes summary').focus()")
        browser.press("h")
        assert browser.run(SEEN) == (12 if scripts else 0)
        # Outside of the pictures the key means nothing.
        browser.run("document.activeElement.blur()")
        browser.press("h")
        assert browser.run(SEEN) == (12 if scripts else 0)
    finally:
        browser.scripts(True)


def test_a_heat_map_covers_its_picture(browser: Browser, card: Path) -> None:
    browser.look(360)
    browser.open(card)
    browser.run("document.querySelector('#heats').click()")
    for opened in (False, True):
        browser.run("document.querySelector('#mistakes details').open = arguments[0]", opened)
        boxes = browser.run(
            "return [...document.querySelector('#mistakes .seen').querySelectorAll('img')]"
            ".map(e => e.getBoundingClientRect()).map(b => [b.x, b.y, b.width, b.height])"
        )
        assert boxes[0] == boxes[1] and boxes[0][2] > 100


def test_a_long_file_name_is_cut_in_its_middle(browser: Browser, card: Path) -> None:
    """Its number and ending are seen; opened, all of it is."""
    browser.look(1280)
    browser.open(card)
    names = (
        "return [...document.querySelectorAll('#mistakes .file')].map(row => {"
        " const [first, last] = row.querySelectorAll('span'), end = last.getBoundingClientRect();"
        " return [row.textContent, last.textContent, first.scrollWidth > first.clientWidth,"
        "  end.right <= row.getBoundingClientRect().right && end.width > 60]; })"
    )
    found = browser.run(names)
    assert len(found) > 20
    for whole, last, cut, seen in found:
        assert whole.endswith(last) and re.fullmatch(r"_\d{5}\.jpg", last[-10:]), whole
        assert cut and seen, whole
    browser.run("document.querySelector('#mistakes details').open = true")
    first = browser.run(names)[0]
    assert not first[2] and first[0] == found[0][0]


CHOOSE = (
    "const [name, kind] = document.querySelectorAll('#mistakes select');"
    "name.value = arguments[0]; kind.value = arguments[1];"
    "name.dispatchEvent(new Event('change'));"
    "return [...document.querySelectorAll('#mistakes details:not([hidden])')]"
    ".map(d => [d.dataset.label, d.dataset.prediction, d.dataset.kinds])"
)


def test_the_filter_shows_what_fits_and_says_how_many(browser: Browser, card: Path) -> None:
    browser.look(1280)
    browser.open(card)
    every = browser.run(CHOOSE, "", "")
    name = "שלום עולם"
    either = [row for row in every if name in row[:2]]
    assert 0 < len(either) < len(every)
    assert browser.run(CHOOSE, name, "") == either
    assert browser.run(CHOOSE, name, "missed") == [row for row in every if row[0] == name]
    assert browser.run(CHOOSE, name, "alarm") == [row for row in every if row[1] == name]
    sure = [row for row in every if "sure" in row[2].split()]
    assert 0 < len(sure) < len(every) and browser.run(CHOOSE, "", "sure") == sure
    second = [row for row in every if "second" in row[2].split()]
    assert 0 < len(second) < len(every) and browser.run(CHOOSE, "", "second") == second
    said = browser.run("return document.querySelector('#mistakes output').textContent")
    assert said == f"{len(second)} of {len(every)} shown"
    hostile = browser.run(CHOOSE, '" onerror="alert(1)', "")
    assert hostile and all('" onerror="alert(1)' in row[:2] for row in hostile)


LONG = "a label of many words that no row of this width has room for"
KNOWN = {"extra.png": [1, 0, 0], "missed.png": [0, 1, 1], "open.png": [0, -1, 1]}
SAID = {"extra.png": [0.9, 0.95, 0.1], "missed.png": [0.1, 0.8, 0.2], "open.png": [0.7, 0.9, 0.99]}


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_label_card(
        tmp_path_factory.mktemp("several"), KNOWN, SAID, ["ants", LONG, "wolves"]
    )


def test_of_several_labels_the_filter_takes_those_that_are_wrong(
    browser: Browser, several: Path
) -> None:
    """A label that is unknown is no false alarm, and without a class any wrong label counts."""
    browser.look(1280)
    browser.open(several)

    def chosen(name: str, kind: str) -> set[str]:
        browser.run(CHOOSE, name, kind)
        shown = "[...document.querySelectorAll('#mistakes details:not([hidden]) .file')]"
        return set(browser.run(f"return {shown}.map(e => e.textContent)"))

    assert chosen("", "") == set(KNOWN)
    assert chosen(LONG, "") == set(KNOWN)
    assert chosen("", "missed") == chosen("wolves", "missed") == {"missed.png"}
    assert chosen("", "alarm") == {"extra.png", "open.png"}
    assert chosen(LONG, "alarm") == {"extra.png"} and chosen("ants", "alarm") == {"open.png"}
    assert chosen(LONG, "missed") == set()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1400])
def test_of_several_labels_all_are_seen_and_the_wrong_ones_stand_out(
    browser: Browser, several: Path, width: int, dark: bool
) -> None:
    browser.look(width, dark)
    browser.open(several)
    cut = (
        "[...document.querySelectorAll('#mistakes .names')]"
        ".filter(e => e.scrollWidth > e.clientWidth || getComputedStyle(e).whiteSpace === 'nowrap')"
    )
    assert browser.run(f"return {cut}.length") == 0
    rows = browser.run(
        "const ink = getComputedStyle(document.body).color;"
        "return [...document.querySelectorAll('#mistakes .names')].map(row =>"
        " [row.innerText.trim(), [...row.querySelectorAll('bdi')]"
        ".filter(e => getComputedStyle(e).color !== ink).map(e => e.innerText)])"
    )
    assert rows == [
        ["true ants", []],
        [f"predicted ants, {LONG}", [LONG]],
        [f"surest wrong {LONG}", []],
        [f"true {LONG}, wolves", ["wolves"]],
        [f"predicted {LONG}", []],
        ["surest wrong no wolves", []],
        [f"true wolves, ?{LONG}", []],
        [f"predicted ants, {LONG}, wolves", ["ants"]],
        ["surest wrong ants", []],
    ]
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.faults(need_axe()) == [] and browser.errors() == []


def test_the_page_is_whole_without_scripts(browser: Browser, card: Path) -> None:
    browser.look(800)
    browser.scripts(False)
    try:
        browser.open(card)
        html = card.read_text("utf-8")
        shown = "return [...document.querySelectorAll('#mistakes details')]"
        seen = browser.run(f"{shown}.filter(d => d.getBoundingClientRect().height > 100).length")
        assert seen == html.count('<details name="mistake"') > 20
        assert not browser.run("return document.querySelector('.filter').checkVisibility()")
        browser.run("document.querySelector('#mistakes summary').click()")
        assert browser.run(f"{shown}.findIndex(d => d.open)") == 0
    finally:
        browser.scripts(True)


def test_nothing_is_asked_of_anybody(browser: Browser, card: Path) -> None:
    browser.open(card)
    asked = "return performance.getEntriesByType('resource').map(e => e.name)"
    assert [name for name in browser.run(asked) if not name.startswith("data:")] == []


def test_print_is_light_and_shows_what_is_folded(browser: Browser, card: Path) -> None:
    browser.look(800, dark=True, media="print")
    browser.open(card)
    ground = "return getComputedStyle(document.body).backgroundColor"
    ink = "return getComputedStyle(document.body).color"
    assert (browser.run(ground), browser.run(ink)) == ("rgb(255, 255, 255)", "rgb(31, 35, 40)")
    high = "return document.querySelector('.part dl, .part table').getBoundingClientRect().height"
    assert browser.run(high) > 10
    browser.look(800)


def test_charts_follow_the_look(browser: Browser, card: Path) -> None:
    fill = "return getComputedStyle(document.querySelector('svg text')).fill"
    colours = []
    for dark in (False, True):
        browser.look(800, dark)
        browser.open(card)
        colours.append(re.findall(r"\d+", browser.run(fill)))
    light, darker = (sum(map(int, colour)) for colour in colours)
    assert light < 320 < 450 < darker
