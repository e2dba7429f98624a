"""What the run card shows beside its texts: charts, mistakes, its size and its looks."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from card_pages import NAMES, Pictures, answers, noise, write_card
from PIL import Image
from test_report import Page

from xfer.core.types import InputSpec, Predictions, Samples
from xfer.evaluation import metrics
from xfer.report import charts, confidence, image_tiles, overlay, panels, sections, svg, write
from xfer.report.card import data_name
from xfer.report.confusion import condensed

CSS = Path(svg.__file__).with_name("report.css").read_text("utf-8")


def test_the_bins_are_those_of_the_calibration_error_and_of_scikit_learn() -> None:
    from sklearn.calibration import calibration_curve

    given = answers(1000, ("a", "b", "c"))
    right = given.logits.argmax(axis=1) == given.labels
    found = [each for each in confidence.bins(given.confidence, right) if each.n]
    shares, means = calibration_curve(right, given.confidence, n_bins=confidence.BINS)
    assert np.allclose([each.right / each.n for each in found], shares)
    assert np.allclose([each.confidence for each in found], means)
    ece = metrics.values(given.logits, given.labels)["ece"]
    assert f"Calibration error {ece:.3f}" in panels.reliability(found).caption


def test_a_number_above_a_bar_is_upright_where_it_has_room() -> None:
    few, many = (confidence.Bin(14 / 15, 1.0, n, n, 0.98) for n in (45, 12_345))
    svg = str(panels.reliability([few]).svg)
    assert 'class="tiny mid">45</text>' in svg and "rotate" not in svg
    assert 'class="tiny" transform="rotate(-90' in str(panels.reliability([many]).svg)


def test_a_broad_name_stays_inside_its_room() -> None:
    assert svg.fitted_name(255 * "W", 130) == "WWWWWWW…WWW"
    assert svg.fitted_name("a name of usual letters", 130) == "a name of us…tters"


def test_a_line_that_is_alone_is_named_unless_its_chart_is() -> None:
    assert overlay.panel("loss", "epoch", [overlay.Line("B", [(1, 2)], 1)]).legend == ((1, "B"),)  # type: ignore[union-attr]
    rows = [{"epoch": 1, "l2": 0.1, "cv_acc": 0.9, "lr": 0.1}, {"epoch": 2, "l2": 1, "cv_acc": 0.8}]
    (accuracy,) = panels.strengths(rows, 1)
    assert ">held out</text>" in str(accuracy.svg)
    (rate,) = panels.curves([{"epoch": 1, "lr": 0.1}, {"epoch": 2, "lr": 0.2}], None, "val_acc")
    assert ">lr</text>" not in str(rate.svg)


def test_precision_over_recall_is_that_of_scikit_learn_also_with_equal_answers() -> None:
    from sklearn.metrics import average_precision_score, precision_recall_curve

    given = answers(400, ("a", "b", "c"))
    given.logits[:] = given.logits.round(0)  # many are equal
    found = confidence.recall_curves(given)
    assert [curve.name for curve in found] == ["a", "b", "c"]
    for i, curve in enumerate(found):
        truth, share = given.labels == i, given.probabilities[:, i].round(12)
        precision, recall, _ = precision_recall_curve(truth, share)
        assert curve.area == pytest.approx(average_precision_score(truth, share))
        known = {(round(r, 9), round(p, 9)) for r, p in zip(recall, precision, strict=True)}
        ours = zip(curve.recall[1:], curve.precision[1:], strict=True)
        assert {(round(r, 9), round(p, 9)) for r, p in ours} <= known


def test_the_matrix_has_every_count_in_its_cell() -> None:
    counts = np.array([[28, 2], [0, 1030]])
    chart = panels.matrix(counts, ["dogs", "wolves"])
    shown = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" class="(?:soft )?mid">([\d,]+)', chart.svg)
    rows = {y: sorted((float(x), n) for x, at, n in shown if at == y) for _, y, _ in shown}
    assert [[n for _, n in rows[y]] for y in sorted(rows, key=float)] == [
        ["28", "2"],
        ["0", "1,030"],
    ]
    assert "1,058 of 1,060 images stand on the diagonal" in chart.alt


def test_a_thousand_classes_make_no_large_matrix() -> None:
    rng = np.random.default_rng(0)
    truth, chosen = rng.integers(0, 1000, 5000), rng.integers(0, 1000, 5000)
    counts, names = condensed(truth, chosen, [f"class {i}" for i in range(1000)])
    assert len(panels.matrix(counts, names).svg) < 60_000
    every = np.ones((100, 100), int)
    assert len(panels.matrix(every, [f"class {i}" for i in range(100)]).svg) < 180_000


def test_the_curves_begin_and_end_where_the_rows_do() -> None:
    rows = [{"epoch": i, "train_loss": 1 / i, "val_acc": 0.5 + i / 20} for i in range(1, 6)]
    loss, score = panels.curves(rows, 5, "val_acc")
    assert "train from 1 at 1 to 0.2 at 5" in loss.alt
    assert score.caption == "ring, best: 0.750 at epoch 5"
    path = re.search(r'class="line train" d="M([\d.]+) ([\d.]+)L.*?([\d.]+) ([\d.]+)"/>', loss.svg)
    assert path is not None
    x0, y0, x1, y1 = map(float, path.groups())
    assert x0 < x1 and y0 < y1, "a loss that falls is drawn as one that rises"


def test_a_fit_that_no_validation_image_judged_has_the_curve_of_its_training_loss() -> None:
    rows = [{"epoch": i, "train_loss": 1 / i, "val_loss": 2 / i} for i in (1, 2)]
    _, chosen = panels.curves(rows, 2, "train_loss")
    assert ">train</text>" in str(chosen.svg) and ">val</text>" not in str(chosen.svg)
    assert chosen.caption == "ring, best: 0.500 at epoch 2" and 'class="ring train"' in chosen.svg
    figure = charts.curves(rows, 2, "train_loss")
    assert figure
    drawn = [line.get_label() for line in figure.axes[1].get_lines()]
    assert "train" in drawn and "val" not in drawn


def test_no_number_beside_an_axis_is_cut_off() -> None:
    rows = [{"epoch": i, "lr": 2.2e-5 / i} for i in (1, 2, 3)]
    (rate,) = panels.curves(rows, None, "val_acc")
    numbers = re.findall(r'<text x="([\d.]+)"[^>]*class="soft end">([^<]*)</text>', str(rate.svg))
    assert any("e-05" in text for _, text in numbers)
    assert all(float(x) >= svg.estimate(text) for x, text in numbers)


def test_values_that_are_not_finite_are_left_out_and_nothing_draws_nothing() -> None:
    rows = [{"epoch": 1, "train_loss": float("nan"), "val_acc": None}]
    assert panels.curves(rows, None, "val_acc") == []
    assert panels.curves([], None, "val_acc") == []


def test_a_name_is_shortened_and_whole_in_a_tooltip() -> None:
    text = svg.label(0, 0, "<b>" + "x" * 252, 90)
    assert "…" in text and f"<title>&lt;b&gt;{'x' * 252}</title>" in text
    assert svg.label(0, 0, "short", 90).count("title") == 0


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.4, 0.61), (0, 1e-6), (-3, 250), (1, 1)])
def test_ticks_are_round_numbers_inside_the_range(low: float, high: float) -> None:
    found = svg.ticks(low, high)
    assert 1 <= len(found) <= 6 and low - 1e-9 <= found[0] and found[-1] <= high + 1e-9
    assert all(len(f"{value:.12g}") <= 8 for value in found)


def test_the_mistakes_have_numbers_classes_confidence_and_file(tmp_path: Path) -> None:
    page = write_card(tmp_path, 60, ("ants", "bees"))
    html, given = page.read_text("utf-8"), answers(60, ("ants", "bees"))
    chosen = given.logits.argmax(axis=1)
    wrong = np.flatnonzero(chosen != given.labels)
    found = re.findall(r'<details name="mistake" data-label="(\w+)" data-prediction="(\w+)"', html)
    assert len(found) == len(wrong) > 5
    first = max(wrong, key=lambda i: given.confidence[i])
    assert found[0] == (given.classes[given.labels[first]], given.classes[chosen[first]])
    (block,) = re.findall(r'<span class="number">1</span>.*?</summary>', html, re.DOTALL)
    text = re.sub("<[^>]*>", "", block)
    assert given.names[first] in text and f"{given.confidence[first]:.2f}" in text


def test_a_mistake_knows_whether_it_was_sure_and_whether_the_truth_came_second() -> None:
    logits = np.array([[9, 1, 0], [1, 1.2, 1.1], [0, 9, 1]], np.float32)
    given = Predictions(("x", "y", "z"), logits, np.array([1, 0, 0]), ("a", "b", "c"))
    spec = InputSpec((8, 8), 8, "bilinear", (0.0,) * 3, (1.0,) * 3)
    found = image_tiles.shots(
        Samples(given.names, given.labels, Pictures(3, 8), ""), given, [0, 1, 2], spec
    )
    assert [shot.kinds for shot in found] == [("sure", "second"), (), ("sure",)]
    assert [(shot.label, shot.prediction) for shot in found] == [("b", "a"), ("a", "b"), ("a", "b")]


def test_the_picture_of_a_mistake_is_a_jpeg_of_the_image() -> None:
    given = Predictions(("x",), np.array([[0, 9]], np.float32), np.array([0]), ("a", "b"))
    spec = InputSpec((64, 64), 64, "bilinear", (0.0,) * 3, (1.0,) * 3)
    image = Image.new("RGB", (64, 64), (200, 30, 90))
    (shot,) = image_tiles.shots(Samples(("x",), given.labels, [image], ""), given, [0], spec)
    with Image.open(io.BytesIO(base64.b64decode(shot.uri.partition(",")[2]))) as found:
        assert found.format == "JPEG" and found.size == (64, 64)
        assert np.abs(np.asarray(found).mean(axis=(0, 1)) - (200, 30, 90)).max() < 4


def test_the_card_of_a_thousand_images_is_below_a_megabyte(tmp_path: Path) -> None:
    """Of noise, which is the hardest to compress, three in ten of them mistakes, and 20 classes."""
    names = tuple(f"class {i}" for i in range(20))
    page = write_card(tmp_path, 1000, names, side=224, figures=True, maps=12)
    text = page.read_text("utf-8")
    assert len(text.encode()) < 1_000_000
    assert text.count("data:image/jpeg") > 25
    assert "predictions_val.csv has all" in text, "mistakes without a picture are not mentioned"
    # Each mistake that was to have one, and as many right answers as there is room for.
    assert text.count('class="heat-map"') > 12 + 3 and "Right answers, to compare" in text


def test_a_heat_map_lies_over_its_picture_and_is_read_by_lightness_alone() -> None:
    heat = np.zeros((7, 7), np.float32)
    heat[1, 5] = 3.0
    with Image.open(
        io.BytesIO(base64.b64decode(image_tiles.overlay(heat, (160, 120)).split(",")[1]))
    ) as f:
        assert f.format == "PNG" and f.size == (40, 30)
        rgba = np.asarray(f.convert("RGBA")).astype(float)
    row, column = (at.mean() for at in np.nonzero(rgba[..., :3].sum(axis=2) > 500))
    assert (row * 7 // 30, column * 7 // 40) == (1, 5)
    assert rgba[-1, 0, 3] == 0 and 200 < rgba[round(row), round(column), 3] < 210
    assert image_tiles.hottest(heat) == "in the upper right"
    steps = np.linspace(0, 1, 32, dtype=np.float32).reshape(4, 8)
    scale = image_tiles.overlay(steps, (32, 16))
    with Image.open(io.BytesIO(base64.b64decode(scale.split(",")[1]))) as f:
        palette = np.array(f.getpalette()[:96]).reshape(32, 3)
    light = [luminance("#" + "".join(f"{part:02x}" for part in colour)) for colour in palette]
    assert all(a < b for a, b in pairwise(light)) and light[0] < 0.01 < 0.8 < light[-1]
    # The same map has the same bytes.
    assert scale == image_tiles.overlay(steps, (32, 16))


@pytest.mark.parametrize(
    ("place", "words"),
    [((0, 1), "at the top"), ((1, 0), "on the left"), ((1, 1), "in the centre"),
     ((2, 0), "in the lower left")],
)  # fmt: skip
def test_where_a_map_is_brightest_is_said_in_words(place: tuple[int, int], words: str) -> None:
    heat = np.zeros((3, 3), np.float32)
    assert image_tiles.hottest(heat) == "nowhere"
    heat[place] = 1
    assert image_tiles.hottest(heat) == words


def test_the_policy_allows_the_script_by_its_hash_alone(tmp_path: Path) -> None:
    html = write_card(tmp_path, 60, NAMES).read_text("utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    policy += f"script-src 'sha256-{digest}'"
    assert ("content", policy) in Page(html).attributes
    assert not re.search(r"https?://|url\(|@import", html)


def test_names_of_any_kind_are_text(tmp_path: Path) -> None:
    html = write_card(tmp_path, 200, NAMES).read_text("utf-8")
    found = Page(html)
    assert found.tags.count("script") == 1 and "onerror" not in dict(found.attributes)
    assert {"iframe", "object", "b"} & set(found.tags) == set()
    assert "W" * 199 in html and "&lt;b&gt;bold&lt;/b&gt;" in html


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ({"root": "/images/Canidae"}, "Canidae"),
        ({"root": "flowers/"}, "flowers"),
        ({"file": "lists/birds.csv"}, "birds"),
        ({"_target_": "xfer.data.Digits"}, "digits"),
        (None, "an experiment"),
    ],
)
def test_the_title_is_the_name_of_the_data(data: dict | None, name: str) -> None:
    assert data_name({"experiment": "an experiment"}, {"config": {"data": data}}) == name


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def mixed(over: str, under: str, share: float) -> str:
    parts = [
        round(share * int(over[i : i + 2], 16) + (1 - share) * int(under[i : i + 2], 16))
        for i in (1, 3, 5)
    ]
    return "#" + "".join(f"{part:02x}" for part in parts)


@pytest.mark.parametrize("look", ["light", "dark"])
def test_text_has_enough_contrast_light_and_dark(look: str) -> None:
    blocks = CSS.split("@media screen and (prefers-color-scheme: dark)")
    colours = dict(re.findall(r"--(\w+): (#\w{6})", blocks[look == "dark"].split("* {")[0]))
    for text in ("ink", "soft", "lead", "wrong"):
        for ground in ("card", "page"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    # Numbers on the darkest cell of the confusion, and lines beside their ground.
    assert contrast(colours["ink"], mixed(colours["val"], colours["page"], 0.55)) >= 4.5
    for line in ("val", "train", "rate", *(f"c{i}" for i in range(6))):
        assert contrast(colours[line], colours["card"]) >= 3, line


def test_the_axis_of_a_power_has_three_numbers_at_least() -> None:
    assert svg.powers(-3, 2) == [-3, -1, 1]
    shown = " ".join(f"{10**x:g}" for x in svg.powers(1.1, 3.3))
    assert shown == "20 50 100 200 500 1000"
    ends = svg.Panel((1.1, 3.31), (0, 1), log=True).axes("images").parts
    (last,) = (re.search(r'x="([\d.]+)".*>2000<', part) for part in ends if ">2000<" in part)
    assert last is not None and float(last[1]) + 14 <= svg.WIDE < 16 + float(last[1])
    for low, high in ((0.764, 0.851), (0.48, 1.31), (0.0, 1.0), (1e-4, 2.6e-4)):
        assert 3 <= len(svg.ticks(low, high)) <= 6


def test_right_answers_have_the_room_that_mistakes_leave_and_what_has_none_is_said() -> None:
    spec = InputSpec((224, 224), 224, "bilinear", (0.5,) * 3, (0.5,) * 3)
    given = answers(100, ("ants", "bees"))
    logits = np.zeros((100, 2), np.float32)
    logits[np.arange(100), given.labels] = 3.0
    logits[0] = -logits[0]  # one mistake
    mostly = replace(given, logits=logits)
    samples = Samples(given.names, given.labels, Pictures(100, 224), "")
    details = write.answered(mostly, samples, spec, heat=noise(mostly, 20))
    assert (len(details["shots"]), len(details["right"])) == (1, 20)
    assert details["heat"] == "Heat maps of noise."
    full = write.answered(mostly, samples, spec, heat=noise(mostly, 60))
    shown = len(full["shots"]) + len(full["right"])
    assert 21 < shown < 61
    assert full["heat"] == f"Heat maps of noise. There is room for {shown} of these."
    mixed = write.answered(given, samples, spec, heat=noise(given, 20))
    assert len(mixed["shots"]) > len(mixed["right"]) > 5


def test_steps_and_features_are_told_in_words() -> None:
    steps = {
        "batch_size": 8,
        "accumulate": 4,
        "devices": 1,
        "per_epoch": 2,
        "epochs": 3,
        "total": 6,
    }
    plan = {"steps": steps, "optimizer": [{}]}
    planned = ("Steps", "3 epochs of 2 steps, 6 in all (batches of 8, 4 a step)")
    assert sections.steps(plan, []) == sections.steps(plan, [{"epoch": 3}]) == (planned,)
    assert sections.steps(plan, [{"epoch": 1}]) == (planned, ("Ended", "after epoch 1 of 3"))
    assert sections.steps({"steps": {**steps, "total": 0}, "optimizer": []}, [{"epoch": 1}]) == ()
    cache = {"cached": True, "hit": False, "views": 2, "cut": ["fc"], "bytes": 2000}
    said = dict(sections.place({"features": {**cache, "difference": 1.2e-7}}))["Features"]
    assert said == (
        "computed once: 2 views of each image at fc, 2.0 kB; a few were computed again and differ "
        "by at most 1.2e-07 of the largest"
    )
    assert sections.place({"features": {"cached": False}}) == (("Features", "not cached"),)


@pytest.mark.parametrize(("last", "text"), [(100_000.0, "100,000"), (1e-5, "1e-05")])
def test_a_number_below_an_axis_is_whole_and_inside(last: float, text: str) -> None:
    parts = svg.Panel((0, last), (0, 1)).axes("job").parts
    (place,) = (re.search(r'x="([\d.]+)"', part) for part in parts if f">{text}<" in part)
    width = 6 * len(text)  # of letters of 11 pixels
    assert place is not None and svg.WIDE - width < float(place[1]) <= svg.WIDE - width / 2
