from __future__ import annotations

import base64
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xfer.core.errors import OutputError
from xfer.core.log import close_log, open_log
from xfer.report import charts, confusion, grids, plot, sections
from xfer.report.card import verdict
from xfer.report.format import listed, name_ends, number, seconds, size, words
from xfer.report.page import render
from xfer.report.plot import draw
from xfer.report.soup_section import soup_lines
from xfer.report.teacher_section import teacher_text

ROOT = Path(__file__).parents[2]
ASSETS = Path(os.environ.get("XFER_ASSETS", ROOT.parent / "shared/assets"))
HOSTILE = (
    "<script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    '" onerror="alert(1)',
    "javascript:alert(1)",
    "$x^2$ \\frac{a}{b} $",
    "a|b \\| c",
    "line\nbreak\ttab\x1b[31m",
    "狼 犬",
    "שלום עולם",
    "\u202egnp.exe",
    "\udcff\ud800",
    "W" * 5000,
    "{{ 7 * 7 }} %s {0}",
    "![x](https://example.org/x.png) `code` *bold* [link](//example.org)",
    "",
)


@pytest.fixture(scope="module")
def photographs() -> list[np.ndarray]:
    folder = ASSETS / "Canidae/val"
    if not folder.is_dir():
        pytest.skip(f"the Canidae photographs are not in {ASSETS}")
    files = [sorted((folder / name).iterdir())[i] for i in range(12) for name in ("dogs", "wolves")]
    return [np.asarray(Image.open(f).convert("RGB").resize((224, 224))) for f in files]


def plain(count: int, colour: tuple[int, int, int] = (200, 30, 90)) -> list[np.ndarray]:
    return [np.full((16, 16, 3), colour, np.uint8) for _ in range(count)]


def pixels(path: Path | None) -> np.ndarray:
    assert path is not None
    with Image.open(path) as image:
        assert image.format == "PNG"
        found = np.asarray(image.convert("RGB"))
    assert found.std() > 5, "the picture is blank"
    return found


def history(count: int, **changes: float | None) -> list[dict[str, float | None]]:
    row = {"val_loss": 0.5, "lr": 0.1, "epoch_s": 1.0, "step_ms": 30.0}
    return [
        {"epoch": i, "step": 10 * i, "train_loss": 1 / i, "val_acc": 1 - 0.5 / i, **row, **changes}
        for i in range(1, count + 1)
    ]


def test_the_card_calls_no_tensor_of_a_new_head_missing() -> None:
    source = {"kind": "file", "coverage": 1.0, "loaded": 312, "dropped": 2, "missing": 2}
    facts = dict(sections.loaded({"source": source}, {}))
    assert facts["Initialised"] == "2" and "Missing" not in facts


def test_importing_the_report_imports_neither_torch_nor_matplotlib() -> None:
    code = "import xfer.report.write, sys; print({'torch', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "set()", done.stderr


def test_drawing_never_imports_pyplot(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, numpy as np; from xfer.report import grids, plot;"
        "grey, path = np.zeros((4, 4, 3), np.uint8), pathlib.Path(sys.argv[1], 'x.png');"
        "plot.draw(path, grids.batch, [grey], ['a']);"
        "print('matplotlib' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["True", "False"], done.stderr


def test_photographs_become_grids_of_three_rows_of_eight(
    photographs: list[np.ndarray], tmp_path: Path
) -> None:
    names = ["dogs", "wolves"] * 12
    path = draw(tmp_path / "figures" / "batch_grid.png", grids.batch, photographs, names)
    found = pixels(path)
    assert path == tmp_path / "figures" / "batch_grid.png"
    assert 1400 < found.shape[1] < 1600 and 500 < found.shape[0] < 750
    path = draw(tmp_path / "p.png", grids.predictions, photographs, names, [True] * 24, [0.5] * 24)
    assert pixels(path).shape[0] > found.shape[0]
    assert sorted(p.name for p in tmp_path.rglob("*.*")) == ["batch_grid.png", "p.png"]


def test_pictures_keep_their_true_colours(tmp_path: Path) -> None:
    found = pixels(draw(tmp_path / "x.png", grids.batch, plain(1, (200, 30, 90)), ["a"]))
    assert (found == (200, 30, 90)).all(axis=2).mean() > 0.5


def test_a_grid_draws_24_pictures_at_most() -> None:
    with plot.style():
        assert len(grids.batch(plain(30), ["a"] * 30).axes) == 24


def test_a_grid_refuses_pictures_without_titles() -> None:
    with pytest.raises(ValueError), plot.style():
        grids.batch(plain(3), ["a", "b"])


def test_pictures_do_not_overlap_and_stand_in_rows_of_eight() -> None:
    with plot.style():
        axes = grids.batch(plain(10), ["a"] * 10).axes
    boxes = [a.get_position() for a in axes]
    assert [round(b.y0, 6) for b in boxes[:8]] == [round(boxes[0].y0, 6)] * 8
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes[:8]))
    assert boxes[8].y1 < boxes[0].y0 and boxes[8].x0 == boxes[0].x0


def test_predicted_titles_are_blue_when_right_and_red_with_a_frame_when_wrong() -> None:
    right = [True, False, True]
    with plot.style():
        figure = grids.predictions(plain(3), ["dogs", "wolves", "dogs"], right, [0.98, 0.61, 0.5])
    titles = [a.texts[0] for a in figure.axes]
    assert [t.get_text() for t in titles] == ["dogs (0.98)", "wolves (0.61)", "dogs (0.50)"]
    assert [t.get_color() for t in titles] == [plot.RIGHT, plot.WRONG, plot.RIGHT]
    assert [a.spines["left"].get_visible() for a in figure.axes] == [False, True, False]
    assert [t.get_text() for t in figure.texts][:2] == ["2 right", "1 wrong"]


def test_the_red_of_a_wrong_title_reaches_the_file(tmp_path: Path) -> None:
    grey = plain(2, (90, 90, 90))
    right = pixels(draw(tmp_path / "r.png", grids.predictions, grey, ["a", "b"], [True, True]))
    wrong = pixels(draw(tmp_path / "w.png", grids.predictions, grey, ["a", "b"], [True, False]))

    def count(found: np.ndarray, channel: int) -> int:
        others = [c for c in range(3) if c != channel]
        return int(((found[..., channel] > 200) & (found[..., others] < 60).all(axis=2)).sum())

    # The legend names both colours; the frame and the title of the second picture add red.
    assert count(wrong, 0) > count(right, 0) + 500
    assert count(wrong, 2) > 0


def test_a_mistake_shows_the_true_class_above_the_predicted_one() -> None:
    with plot.style():
        figure = grids.mistakes(plain(1), [("dogs", "wolves", 0.931)])
    low, high = sorted(figure.axes[0].texts, key=lambda t: t.xyann[1])
    assert (high.get_text(), low.get_text()) == ("dogs", "wolves (0.93)")
    assert low.get_color() == plot.WRONG != high.get_color()


def test_without_mistakes_nothing_is_drawn_and_an_old_figure_goes(tmp_path: Path) -> None:
    path = tmp_path / "most_wrong.png"
    assert draw(path, grids.mistakes, plain(1), [("a", "b", 0.9)]) == path
    assert draw(path, grids.mistakes, [], []) is None
    assert not path.exists()
    assert draw(path, grids.mistakes, [], []) is None


def test_any_name_is_drawn_as_plain_text(tmp_path: Path) -> None:
    many = len(HOSTILE)
    counts = np.arange(many * many).reshape(many, many)
    wrong = [(name, name, 0.5) for name in HOSTILE]
    pixels(draw(tmp_path / "b.png", grids.batch, plain(many), HOSTILE))
    pixels(
        draw(
            tmp_path / "p.png",
            grids.predictions,
            plain(many),
            HOSTILE,
            [False] * many,
            [0.5] * many,
        )
    )
    pixels(draw(tmp_path / "w.png", grids.mistakes, plain(many), wrong))
    pixels(draw(tmp_path / "c.png", confusion.matrix, counts, HOSTILE))
    for names in (HOSTILE, HOSTILE[::-1]):  # the twelve pairs shown reach half of the names
        pixels(draw(tmp_path / "q.png", confusion.bars, counts, names))
    for name in HOSTILE[4:8]:
        pixels(draw(tmp_path / "h.png", charts.curves, history(2), 1, name))


def test_dollar_signs_are_no_mathematics() -> None:
    with plot.style():
        title = grids.batch(plain(1), ["$x^2$"]).axes[0].texts[0]
    assert title.get_text() == "$x^2$" and not title.get_parse_math()


def test_what_matplotlib_would_print_is_in_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    open_log(None)
    logging.getLogger("matplotlib.font_manager").warning("builds its cache")
    close_log()
    assert capfd.readouterr() == ("matplotlib: builds its cache\n", "")


def test_glyphs_that_no_font_has_are_escaped() -> None:
    private = "\U000f0000"  # a private plane: no font of any system has a glyph here
    assert plot.drawable(f"a{private}é") == "a\\U000f0000é"
    assert plot.drawable("a\nb") == "a\\nb"


@pytest.fixture
def fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    def use(*names: str) -> None:
        monkeypatch.setattr(plot, "FALLBACKS", names)
        plot.families.cache_clear()
        plot._glyphs.cache_clear()

    yield use
    monkeypatch.undo()
    plot.families.cache_clear()
    plot._glyphs.cache_clear()


def test_an_installed_font_is_used_for_glyphs_that_the_first_one_lacks(
    fonts: Callable[..., None], tmp_path: Path
) -> None:
    script = "\U0001d49e"  # DejaVu Sans lacks it; STIX, which comes with matplotlib too, has it
    fonts()
    assert plot.drawable(script) == "\\U0001d49e"
    fonts("No Such Font", "STIXGeneral")
    assert plot.families() == ("DejaVu Sans", "STIXGeneral")
    assert plot.drawable(script) == script
    pixels(draw(tmp_path / "x.png", grids.batch, plain(1), [script]))


@pytest.mark.parametrize("name", ["W" * 5000, "a" * 5000, "i" * 400, "golden_retriever_" * 9])
def test_long_names_are_shortened_to_their_room(name: str) -> None:
    short = plot.fit(name, 100, 9)
    assert plot.width(short, 9) <= 100 and "…" in short
    assert short[:3] == name[:3] and short[-1] == name[-1]
    assert plot.width(short, 9) > 75, "room is left unused"


def test_short_names_stay_whole() -> None:
    assert plot.fit("dogs", 100, 9) == "dogs"


def test_the_users_matplotlib_settings_change_nothing_and_are_kept(tmp_path: Path) -> None:
    import matplotlib

    before = draw(tmp_path / "before.png", grids.batch, plain(2), ["a", "b"]).read_bytes()
    with matplotlib.rc_context({"text.usetex": True, "font.size": 30, "savefig.facecolor": "r"}):
        after = draw(tmp_path / "after.png", grids.batch, plain(2), ["a", "b"]).read_bytes()
        assert matplotlib.rcParams["text.usetex"] and matplotlib.rcParams["font.size"] == 30
    assert before == after


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OutputError, match="cannot be written"):
        draw(tmp_path / "file" / "x.png", grids.batch, plain(1), ["a"])


def test_the_matrix_shows_counts_and_the_images_of_each_true_class() -> None:
    with plot.style():
        axes = confusion.matrix(np.array([[28, 2], [0, 1030]]), ["dogs", "wolves"]).axes[0]
    assert [t.get_text() for t in axes.texts] == ["28", "2", "0", "1,030"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["dogs", "wolves"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["dogs  (30)", "wolves  (1,030)"]


def test_the_colour_is_the_share_of_the_row_and_a_row_without_images_has_none() -> None:
    counts = np.array([[8, 2, 0], [0, 0, 0], [1, 0, 3]])
    with plot.style():
        shares = confusion.matrix(counts, ["a", "b", "c"]).axes[0].images[0].get_array()
    assert np.allclose(shares[0], [0.8, 0.2, 0]) and np.allclose(shares[2], [0.25, 0, 0.75])
    assert shares[1].mask.all() and not shares[0].mask.any()


@pytest.mark.parametrize(("many", "labels", "numbers"), [(1, 1, 1), (12, 12, 144), (40, 40, 41)])
def test_up_to_forty_classes_every_class_is_named(many: int, labels: int, numbers: int) -> None:
    counts = np.eye(many, dtype=int) * 5
    counts[0, -1] += many > 1
    with plot.style():
        axes = confusion.matrix(counts, [f"class {i}" for i in range(many)]).axes[0]
    assert len(axes.get_xticklabels()) == labels and len(axes.texts) == numbers


@pytest.mark.parametrize("many", [41, 100, 1000])
def test_many_classes_have_no_numbers_and_few_labels(many: int, tmp_path: Path) -> None:
    counts, names = np.eye(many, dtype=int) * 5, [f"some long class name {i}" for i in range(many)]
    with plot.style():
        axes = confusion.matrix(counts, names).axes[0]
    assert not axes.texts and 15 <= len(axes.get_yticklabels()) <= 30
    assert "one in" in axes.get_xlabel()
    assert max(pixels(draw(tmp_path / "c.png", confusion.matrix, counts, names)).shape) < 2000


@pytest.mark.parametrize(("many", "angle"), [(2, 0), (5, 45), (12, 45), (13, 90), (40, 90)])
def test_names_of_predicted_classes_are_turned_when_they_would_overlap(
    many: int, angle: int
) -> None:
    names = [f"class number {i}" for i in range(many)] if many > 2 else ["dogs", "wolves"]
    with plot.style():
        axes = confusion.matrix(np.eye(many, dtype=int), names).axes[0]
    assert {label.get_rotation() for label in axes.get_xticklabels()} == {angle}


def test_pairs_are_sorted_and_leave_out_the_diagonal() -> None:
    counts = np.array([[9, 1, 0], [4, 9, 2], [0, 0, 9]])
    assert confusion.pairs(counts) == [(1, 0, 4), (1, 2, 2), (0, 1, 1)]
    with plot.style():
        figure = confusion.bars(counts, ["a", "b", "c"])
    assert figure is not None
    axes = figure.axes[0]
    assert [bar.get_width() for bar in axes.patches] == [4, 2, 1]
    assert [t.get_text() for t in axes.texts[:4]] == ["b", "→", "a", "4 of 15"]


def test_when_nothing_is_confused_no_pairs_are_drawn(tmp_path: Path) -> None:
    path = tmp_path / "confused_pairs.png"
    assert draw(path, confusion.bars, np.array([[1, 1], [0, 1]]), ["a", "b"]) == path
    assert draw(path, confusion.bars, np.array([[3, 0], [0, 2]]), ["a", "b"]) is None
    assert not path.exists()
    assert draw(path, confusion.bars, np.array([[7]]), ["only"]) is None


def test_the_curves_mark_the_best_epoch_and_its_value(tmp_path: Path) -> None:
    rows = history(6)
    with plot.style():
        figure = charts.curves(rows, 4, "val_acc")
    assert figure is not None
    loss, score, rate = figure.axes
    assert [line.get_label() for line in loss.lines[:2]] == ["train", "val"]
    assert list(loss.lines[0].get_ydata()) == [row["train_loss"] for row in rows]
    assert loss.lines[2].get_xdata() == [4, 4]
    assert score.get_title(loc="left") == "val_acc"
    assert score.get_title(loc="right") == "best 0.875 at epoch 4"
    dot = score.lines[-1]
    assert (list(dot.get_xdata()), list(dot.get_ydata())) == ([4], [0.875])
    assert list(rate.lines[0].get_ydata()) == [0.1] * 6
    pixels(draw(tmp_path / "c.png", charts.curves, rows, 4, "val_acc"))


def test_the_curves_of_a_solved_head_mark_the_chosen_strength_and_have_plain_labels() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    others = {"val_loss": 0.4, "train_loss": 0.3, "cv_acc": 0.8, "val_acc": 0.7}
    losses = {10.0: 0.9, 0.1: 0.5, 0.001: 0.6}
    rows = [{"l2": l2, "cv_loss": loss, **others} for l2, loss in losses.items()]
    with plot.style():
        figure = charts.strengths(rows, 2)
        FigureCanvasAgg(figure).draw()
    loss, _ = figure.axes
    assert [list(line.get_xdata()) for line in loss.lines[-1:]] == [[0.1]]
    assert loss.get_title(loc="right") == "chosen 0.1: 0.500"
    shown = [label.get_text() for label in loss.get_xticklabels(which="both") if label.get_text()]
    assert {"0.001", "0.1", "10"} <= set(shown)
    assert not [text for text in shown if "$" in text]


def test_one_epoch_is_seen_as_points_over_one_tick(tmp_path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with plot.style():
        figure = charts.curves(history(1), 1, "val_acc")
        assert figure is not None
        FigureCanvasAgg(figure).draw()
        ticks = [t for t in figure.axes[0].get_xticks() if 0.5 <= t <= 1.5]
    assert ticks == [1]
    for axes in figure.axes:
        assert axes.lines[0].get_marker() in ("o", "s") and axes.lines[0].get_markersize() > 0
        assert axes.get_xlim()[0] < 1 < axes.get_xlim()[1]
    pixels(draw(tmp_path / "c.png", charts.curves, history(1), 1, "val_acc"))


def test_values_that_are_none_or_not_finite_are_left_out(tmp_path: Path) -> None:
    rows = history(4)
    rows[1]["val_loss"], rows[2]["val_loss"] = None, float("nan")
    assert charts.points(rows, "val_loss") == [(1.0, 0.5), (4.0, 0.5)]
    path = draw(
        tmp_path / "c.png", charts.curves, [{**row, "lr": None} for row in rows], None, "val_acc"
    )
    pixels(path)


def test_curves_of_nothing_are_not_drawn(tmp_path: Path) -> None:
    assert draw(tmp_path / "c.png", charts.curves, [], None, "val_acc") is None
    nothing = history(2, train_loss=None, val_loss=None, val_acc=None, lr=None)
    assert draw(tmp_path / "c.png", charts.curves, nothing, 1, "val_acc") is None
    assert not (tmp_path / "c.png").exists()


def test_a_metric_to_be_low_and_a_run_without_a_best_epoch_are_drawn(tmp_path: Path) -> None:
    pixels(draw(tmp_path / "a.png", charts.curves, history(3), 2, "val_loss"))
    pixels(draw(tmp_path / "b.png", charts.curves, history(300), None, "val_acc"))
    pixels(draw(tmp_path / "c.png", charts.curves, history(3), 9, "no_such_metric"))


# The page


class Page(HTMLParser):
    """All tags, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(key, value or "") for key, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def facts(classes: tuple[str, ...] = ("dogs", "wolves")) -> tuple[dict, dict, dict]:
    score = {
        "acc": 58 / 60,
        "loss": 0.1123,
        "macro_f1": 0.9666,
        "n": 60,
        "acc_ci95": [0.8864, 0.9908],
        "used_for_selection": True,
    }
    source = {"kind": "file", "sha256": "9f" * 32, "coverage": 1.0, "loaded": 50, "dropped": 2}
    result = {
        "experiment": "canidae_squeezenet_freeze",
        "status": "finished",
        "seed": 3,
        "best": {"metric": "val_acc", "value": 58 / 60, "epoch": 7, "step": 70},
        "scores": {"val": score},
        "params": {"total": 736450, "trainable": 1026, "frozen": 735424},
        "freeze": {"proved": None},
        "source": {**source, "missing": None, "unexpected": None},
        "timing": {"startup_s": 4.2, "fit_s": 63.0, "epoch_s": [3.0, 5.0, 4.0], "total_s": 78.4},
        "features": None,
        "export": [
            {"format": "onnx", "file": "model.onnx", "bytes": 2950123, "max_abs_diff": 3.8e-6,
             "agree": 1.0, "images": 60}
        ],
        "device": "cpu",
        "precision": "32-true",
        "versions": {"torch": "2.15.0"},
        "command": "python -m xfer experiment=canidae_squeezenet_freeze seed=3",
    }  # fmt: skip
    counts = dict.fromkeys(classes, 30)
    plan = {
        "experiment": "canidae_squeezenet_freeze",
        "classes": list(classes),
        "splits": {"val": {"n": 60, "sha256": "cd" * 32, "per_class": counts}},
        "remarks": ["a remark | with a pipe"],
    }
    row = {"n": 30, "precision": 1.0, "recall": 0.933, "f1": 0.966}
    details = {
        "per_class": {"val": dict.fromkeys(classes, row)},
        "mistakes": {"val": (0, len(classes))},
        "history": history(3),
        "wrong": [
            {"path": f"val/{c}/1.jpg", "label": c, "prediction": c, "confidence": 0.93}
            for c in classes
        ],
        "notes": ["a note"],
    }
    return result, plan, details


def page(folder: Path, result: dict, plan: dict, details: dict) -> tuple[str, str]:
    render(folder, result, plan, details)
    return (folder / "report.html").read_text("utf-8"), (folder / "report.md").read_text("utf-8")


def table_rows(markdown: str) -> list[list[list[str]]]:
    """The tables of a Markdown text as cells, split at pipes that are not escaped."""
    tables: list[list[list[str]]] = [[]]
    for line in markdown.splitlines():
        if line.startswith("|"):
            cells = re.findall(r"((?:\\.|[^\\|])*)\|", line[1:])
            tables[-1].append([cell.strip() for cell in cells])
        elif tables[-1]:
            tables.append([])
    return [table for table in tables if table]


def test_the_card_gives_the_verdict_the_command_and_the_facts(tmp_path: Path) -> None:
    html, markdown = page(tmp_path, *facts())
    for text in (html, markdown):
        assert "val accuracy 0.967 (58 of 60; 95 % interval 0.886 to 0.991), also used for " in text
        assert "python -m xfer experiment=canidae_squeezenet_freeze seed=3" in text
        assert "1,026 (0.1 %)" in text and "735,424 (99.9 %)" in text
        assert "4.0 s (median of 3)" in text
        assert "torch 2.15.0" in text and "9f" * 32 in text and "3.8e-06" in text


def test_an_exported_file_says_what_goes_in_and_what_was_compared(tmp_path: Path) -> None:
    result, plan, details = facts()
    common = {"format": "onnx", "bytes": 3_000_000, "agree": 1.0, "images": 60}
    details["exports"] = [
        common | {"file": "model.onnx", "facts": {"input": "tensor"}, "compared": "logits"}
        | {"max_abs_diff": 4e-5, "bound": 9e-3},
        common | {"file": "model_image.onnx", "facts": {"input": "image"}, "bound": 1e-3}
        | {"compared": "probabilities", "max_abs_diff": 5e-6},
        common | {"file": "model_int8.onnx", "facts": {}, "compared": "logits", "bound": None}
        | {"max_abs_diff": 0.4},
    ]  # fmt: skip
    _, markdown = page(tmp_path, result, plan, details)
    (table,) = [rows for rows in table_rows(markdown) if rows[0][0] == "format"]
    assert [row[2] for row in table[2:]] == [
        "prepared images",
        "pictures of any size",
        "prepared images",
    ]
    assert [row[4:6] for row in table[2:]] == [
        ["4.0e-05 of logits", "9.0e-03"],
        ["5.0e-06 of probabilities", "1.0e-03"],
        ["4.0e-01 of logits", "–"],
    ]


@pytest.mark.parametrize(
    ("proved", "told"), [(None, "not proved yet"), (True, "proved: every"), (False, "broken: ")]
)
def test_the_freeze_is_called_proved_only_when_it_is(
    proved: bool | None, told: str, tmp_path: Path
) -> None:
    result, plan, details = facts()
    html, markdown = page(tmp_path, {**result, "freeze": {"proved": proved}}, plan, details)
    assert told in html and told in markdown
    assert ("proved: every" in html) is (proved is True)


def test_the_test_split_comes_first_and_selection_is_told_of_val_alone() -> None:
    result = facts()[0]
    test = {**result["scores"]["val"], "used_for_selection": False, "n": 100, "acc": 0.9}
    first, second, best = verdict({**result, "scores": {**result["scores"], "test": test}})
    assert first.startswith("test accuracy 0.900 (90 of 100;") and "selecting" not in first
    assert second.startswith("val accuracy") and second.endswith("selecting the best epoch")
    assert best == "Best epoch 7, step 70, by val_acc 0.967"


def test_a_run_without_training_and_scores_says_so() -> None:
    lines = verdict({"status": "failed", "scores": {}, "best": None})
    assert lines == ["No split was scored in this run", "This run did not train", "Status: failed"]


def test_small_figures_are_embedded_whole_and_linked_relatively(tmp_path: Path) -> None:
    drawn = draw(tmp_path / "figures" / "batch_grid.png", grids.batch, plain(2), ["a", "b"])
    draw(tmp_path / "figures" / "curves.png", charts.curves, history(3), 2, "val_acc")
    html, markdown = page(tmp_path, *facts())
    found = Page(html)
    (image,) = [value for key, value in found.attributes if key == "src"]  # curves are a drawing
    assert image.startswith("data:image/png;base64,")
    assert drawn.read_bytes() == base64.b64decode(image.partition(",")[2])
    links = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", markdown)
    assert sorted(links) == ["figures/batch_grid.png", "figures/curves.png"]
    assert all((tmp_path / link).is_file() for link in links)


def test_a_figure_that_xfer_does_not_know_is_shown_last(tmp_path: Path) -> None:
    draw(tmp_path / "figures" / "lr_find.png", grids.batch, plain(1), ["a"])
    html, markdown = page(tmp_path, *facts())
    assert Page(html).tags.count("img") == 1 and "figures/lr_find.png" in markdown
    assert html.index("lr_find") > html.index("Remarks")


def test_hostile_names_come_out_as_text(tmp_path: Path) -> None:
    result, plan, details = facts(HOSTILE)
    details["mistakes"] = {HOSTILE[1]: (0, 1)}
    result |= {"experiment": HOSTILE[1], "command": HOSTILE[0], "device": HOSTILE[2]}
    result["scores"] = {HOSTILE[2]: result["scores"]["val"]}
    html, _ = page(tmp_path, result, plan, {**details, "notes": list(HOSTILE)})
    found, text = Page(html), "".join(Page(html).text)
    assert not {"script", "iframe", "object", "embed", "link", "base", "form"} & set(found.tags)
    assert found.tags.count("style") == 1 and found.tags.count("img") == 0
    assert not [key for key, _ in found.attributes if key.startswith("on")]
    assert not [v for k, v in found.attributes if k in ("href", "src", "action", "srcset")]
    for name in HOSTILE[:6]:
        assert name in text, name
    assert "line\\nbreak\\ttab\\x1b[31m" in text and "\\u202egnp.exe" in text
    assert "W" * 133 + "…" + "W" * 66 in text
    assert "\\udcff\\ud800" in text and "狼 犬" in text and "{{ 7 * 7 }}" in text


def test_the_page_forbids_everything_but_its_own_style_and_pictures(tmp_path: Path) -> None:
    draw(tmp_path / "figures" / "batch_grid.png", grids.batch, plain(1), ["a"])
    html, _ = page(tmp_path, *facts())
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    attributes = Page(html).attributes
    assert ("http-equiv", "Content-Security-Policy") in attributes
    assert ("content", policy) in attributes
    assert html.index("Content-Security-Policy") < html.index("<style")
    assert "url(" not in html and "@import" not in html and "http://" not in html
    assert "https://" not in html


def test_markdown_tables_survive_hostile_names(tmp_path: Path) -> None:
    _, markdown = page(tmp_path, *facts(HOSTILE))
    tables = table_rows(markdown)
    assert len(tables) == 6
    for table in tables:
        assert len({len(row) for row in table}) == 1, table
    names = [row[0] for row in tables[3][2:]]
    assert len(names) == len(HOSTILE)
    assert names[5] == "a\\|b \\\\\\| c"
    assert names[0] == "\\<script>alert(1)\\</script>"
    assert names[4].startswith("\\$x^2\\$")
    assert "](https" not in markdown.replace("\\](", "")


def test_a_remark_cannot_start_a_list_or_a_heading(tmp_path: Path) -> None:
    result, plan, details = facts()
    remarks = ["- item", "1. first", "# title", "    code", "0.5 of val_acc is _low_"]
    _, markdown = page(tmp_path, result, {**plan, "remarks": remarks}, details)
    told = ["\\- item", "1\\. first", "\\# title", "code", "0.5 of val_acc is \\_low\\_"]
    assert "\n".join(f"- {line}" for line in told) in markdown


def test_a_card_with_nothing_known_is_still_a_card(tmp_path: Path) -> None:
    keys = facts()[0]
    for result in ({}, dict.fromkeys(keys), {**dict.fromkeys(keys), "scores": {"val": {}}}):
        for rest in ({}, {"history": [], "wrong": None, "mistakes": {}, "exports": []}):
            html, markdown = page(tmp_path, result, {}, rest)
            assert "None" not in html + markdown and "This run did not train" in markdown
            assert "Nothing was exported" in html


def test_no_mistakes_are_said_only_when_they_were_looked_for(tmp_path: Path) -> None:
    result, plan, details = facts()
    said = "No image was classified wrongly."
    assert said in page(tmp_path, result, plan, {**details, "wrong": []})[0]
    assert said not in page(tmp_path, result, plan, {**details, "wrong": None})[0]
    assert said not in page(tmp_path, result, plan, details)[0]


def test_one_is_counted_as_one(tmp_path: Path) -> None:
    result, plan, details = facts()
    for epochs, said in ((1, "(1 row)"), (2, "(2 rows)")):
        html, _ = page(tmp_path, result, plan, {**details, "history": history(epochs)})
        assert f"Every row of metrics.csv</bdi> {said}<" in html
    alone = {"images": "val", "n": 9, "acc": 0.5, "job": 4}
    soup: dict = dict.fromkeys(("chosen_on", "judged_on", "best", "soup"), alone)
    soup |= {"jobs": [4], "members": [4, 5], "difference": {"acc": 0.0, "ci95": [-0.1, 0.1]}}
    assert "Soup of 1 of 2 members (job 4), chosen" in soup_lines(soup)[0]
    assert "Soup of 2 of 2 members (jobs 4, 5)" in soup_lines({**soup, "jobs": [4, 5]})[0]
    score = {"n": 9, "acc": 0.5, "acc_ci95": [0, 1], "agree": 0.5, "teacher_alone": 2, "p": 0.5}
    teacher = {"path": "t", "sha256": "0" * 64, "weight": 0.5, "temperature": 2.0, "hit": True}
    teacher |= {"images": 9, "seconds": 1.0}
    for count, said in ((1, "1 is right in the student alone"), (2, "2 are right in the student")):
        scores = {"val": {**score, "student_alone": count}}
        assert said in teacher_text({"teacher": {**teacher, "scores": scores}})[1]


def test_long_tables_are_folded_and_short_ones_are_open(tmp_path: Path) -> None:
    html, _ = page(tmp_path, *facts(tuple(f"class {i}" for i in range(100))))
    assert "<summary><bdi>val</bdi> (100 rows)</summary>" in html
    html, _ = page(tmp_path, *facts())
    assert html.index('class="part"') > html.index("<h2>Classes</h2>"), "a result is folded"
    assert "<summary><bdi>val</bdi>" not in html and "<h3><bdi>val</bdi></h3>" in html


def test_the_page_of_a_run_with_every_figure_names_them_in_order(
    photographs: list[np.ndarray], tmp_path: Path
) -> None:
    figures, names = tmp_path / "figures", ["dogs", "wolves"] * 12
    counts = np.array([[28, 2], [0, 30]])
    draw(figures / "batch_grid.png", grids.batch, photographs, names)
    draw(figures / "prediction_grid.png", grids.predictions, photographs, names, [True] * 24)
    draw(figures / "most_wrong.png", grids.mistakes, photographs[:2], [("dogs", "wolves", 0.9)] * 2)
    draw(figures / "confusion_matrix.png", confusion.matrix, counts, ["dogs", "wolves"])
    draw(figures / "confused_pairs.png", confusion.bars, counts, ["dogs", "wolves"])
    draw(figures / "curves.png", charts.curves, history(3), 2, "val_acc")
    html, markdown = page(tmp_path, *facts())
    order = re.findall(r"!\[([^\]]*)\]", markdown)
    assert order == [
        "curves",
        "confusion_matrix",
        "confused_pairs",
        "most_wrong",
        "prediction_grid",
        "batch_grid",
    ]
    alts = [value for key, value in Page(html).attributes if key == "alt"]
    assert len(alts) == 5 and all(len(alt.split()) > 6 for alt in alts), "an alt says too little"


def test_values_are_worded_for_readers() -> None:
    assert [number(v) for v in (None, True, 1234567, 0.96667, 0.0, 6.2e-4, float("nan"))] == [
        "–", "yes", "1,234,567", "0.967", "0.000", "6.20e-04", "nan"
    ]  # fmt: skip
    assert name_ends("short.jpg") == ("", "short.jpg")
    assert name_ends("a/some_longer_name_0012.jpg") == ("a/some_longer_n", "ame_0012.jpg")
    assert name_ends("val/شجرة تفاح/0223.jpg") == ("", "val/شجرة تفاح/0223.jpg")
    assert name_ends("狼" * 9) == ("狼" * 3, "狼" * 6)
    assert name_ends("a" * 9 + "e\u0301" + "0123456.jpg") == ("a" * 9, "e\u03010123456.jpg")
    assert [seconds(v) for v in (None, 0.421, 12.34, 59.99, 185, 7322)] == [
        "–", "0.42 s", "12.3 s", "60.0 s", "3 min 05 s", "2 h 02 min"
    ]  # fmt: skip
    assert [size(v) for v in (None, 812, 4700, 2950123, 5 * 10**9)] == [
        "–", "812 B", "4.7 kB", "3.0 MB", "5.0 GB"
    ]  # fmt: skip
    assert listed(["a", "b", "c"], 2) == "3: a, b, ..." and listed([]) == "0" and listed(7) == "7"
    assert (
        words({"_target_": "xfer.models.head.mlp.Mlp", "hidden": [8, 4], "bias": None})
        == "Mlp, hidden [8, 4]"
    )
