"""The page of a choice: what it says first, draws and lists, and how it looks in a browser."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from browser import check_page

from xfer.sweep.choosing.choice_page import summary, write_page
from xfer.sweep.choosing.measure import Accuracy

SMALL, LITE = "squeezenet1_0", "tf_efficientnet_lite0"


def judged(name: str, state: str, images: int, acc: float, loss: float, ms: float) -> dict:
    ends = Accuracy().interval(acc, [acc - 0.02, acc, acc + 0.02], images, 3)
    scores = {"cv_acc": acc, "cv_loss": loss, "ci95": list(ends), "seconds": 12.3}
    price = {"features": 28.4, "choosing": 49.1, "model": 83.2, "ms": ms}
    return {
        "name": name,
        "state": state,
        "problem": None,
        "images": images,
        "price": price,
    } | scores


def lost(name: str, state: str, problem: str, price: dict | None = None) -> dict:
    scores = dict.fromkeys(("images", "cv_acc", "cv_loss", "ci95", "seconds"))
    return {"name": name, "state": state, "problem": problem, "price": price} | scores


@pytest.fixture
def facts(tmp_path: Path) -> dict:
    """A choice among candidates of two backbones, of which some were dropped and some left out."""
    model = tmp_path / "my #1 model"
    model.mkdir()
    (model / "report.html").write_text("<title>card</title>")
    dear = {"features": 0.0, "choosing": 26802.9, "model": 3138.2, "ms": 50.3}
    rows = [
        judged(f"{SMALL} linear head_only", "finalist", 244, 0.91, 0.25, 61.6),
        judged(f"{SMALL} mlp head_only", "dropped at 62 images", 62, 0.97, 0.1, 61.6),
        judged(f"{LITE} linear head_only", "winner", 244, 0.959, 0.14, 50.3),
        judged(f"{LITE} knn head_only", "dropped at 122 images", 122, 0.93, 0.23, 50.3),
        lost(f"{LITE} mlp head_only", "failed", "its answers are NaN or Inf"),
        lost(f"{LITE} linear lp_ft", "left out", "costs 26,803 s, and 174 s are left", dear),
    ]
    winner, second = rows[2]["name"], rows[0]["name"]
    times = {"acc": -0.049, "only_winner_right": 17, "only_runner_up_right": 5, "ms": 11.3}
    worth = {"acc": 0.957, "ci95": [0.8984, 0.9824], "optimism": -0.008, "n": 244, "folds": 5}
    return {
        "minutes": 10,
        "by": "loss",
        "seconds": {"total": 431.0},
        "candidates": rows,
        "winner": winner,
        "runner_up": {"name": second, **times},
        "worth": {**worth, "repeats": 4, "winners": {winner: 19, second: 1}},
        "model": str(model),
        "command": "python -m xfer choose=cached data.root=my_images choose.minutes=10",
        "experiment": "python -m xfer --config-dir=choice/conf experiment=chosen",
    }


def written(folder: Path, facts: dict) -> str:
    folder.mkdir()
    write_page(folder, facts)
    return (folder / "choose.html").read_text()


def rows_of(page: str, title: str) -> list[list[str]]:
    """The texts of the first table below a heading."""
    body = page.partition(f"<h2>{title}</h2>")[2].partition("</table>")[0]
    rows = re.findall(r'<tr role="row">(<td.*?)</tr>', body, re.S)
    return [re.findall(r"<(?:bdi|a [^>]*)>([^<]*)</(?:bdi|a)>", row) for row in rows]


def test_winner_nested_score_and_runner_up_come_first_and_then_the_command(
    tmp_path: Path, facts: dict
) -> None:
    page = written(tmp_path / "choice", facts)
    head = page.partition("<header>")[2].partition("</header>")[0]
    said = [re.sub(r"&nbsp;", " ", text) for text in re.findall(r"<p[^>]*>([^<]+)</p>", head)]
    assert said[0] == f"chosen: {LITE} linear head_only, cross-validated accuracy 0.9590"
    assert said[1].startswith("worth 0.9570 on images that chose nothing (95 % interval 0.8984 to")
    assert "4.9 points of accuracy, +11.3 ms an image (17 images" in said[3]
    assert f"<pre>{facts['experiment']}</pre>" in head


def test_accuracies_lie_over_milliseconds_with_their_intervals(tmp_path: Path, facts: dict) -> None:
    page = written(tmp_path / "choice", facts)
    (drawn,) = re.findall(r"<svg viewBox=\"0 0 340[^>]*>(.*?)</svg>", page, re.S)
    shape = r'd="M([\d.]+) ([\d.]+)V([\d.]+)"/><circle class="(\w+)" cx="([\d.]+)" cy="([\d.]+)"'
    found = re.findall(rf"{shape}[^>]*><title>([^<]+)<", drawn)
    at = {title.partition(",")[0]: np.array([*row[:3], *row[4:6]], float)
          for *row, title in found}  # fmt: skip
    looks = {title.partition(",")[0]: row[3] for *row, title in found}
    rows = {row["name"]: row for row in facts["candidates"] if row["cv_acc"]}
    judging = facts["worth"] | {"cv_acc": facts["worth"]["acc"]}
    assert {*at} == {*rows, "the choosing"} and len(found) == 5
    places = np.array([at[name] for name in rows] + [at["the choosing"]])
    values = [(row["ci95"][0], row["ci95"][1], row["cv_acc"]) for row in [*rows.values(), judging]]
    slope, start = np.polyfit([row[2] for row in values], places[:, 4], 1)
    assert slope < 0 and places[:, 0] == pytest.approx(places[:, 3])
    assert places[:, [1, 2, 4]] == pytest.approx(start + slope * np.array(values), abs=0.3)
    # All of one backbone are at its milliseconds, as far apart as to be told from each other.
    ours, theirs = (sorted(at[n][3] for n in rows if n.startswith(b)) for b in (LITE, SMALL))
    assert max(ours) < min(theirs) and min(np.diff(ours)) > 4 and min(np.diff(theirs)) > 4
    assert looks[facts["winner"]] == "t0" and looks[facts["runner_up"]["name"]] == "t1"
    assert looks["the choosing"] == "t2" and [*looks.values()].count("rest") == 2


def test_candidates_of_one_backbone_alone_stand_at_its_milliseconds(
    tmp_path: Path, facts: dict
) -> None:
    rows = [row for row in facts["candidates"] if row["name"].startswith(LITE) and row["cv_acc"]]
    page = written(tmp_path / "choice", {**facts, "candidates": rows, "runner_up": None})
    (drawn,) = re.findall(r'<svg viewBox="0 0 340[^>]*>(.*?)</svg>', page, re.S)
    places = [float(x) for x in re.findall(r'<circle class="\w+" cx="([\d.]+)"', drawn)]
    ticks = re.findall(r'<text x="([\d.]+)" y="208.0" class="soft mid">(\d+)</text>', drawn)
    x, ms = np.array(ticks, float).T
    assert np.interp(places, x, ms) == pytest.approx(50.3, abs=1)


def test_candidates_are_listed_by_their_round_and_those_left_out_with_the_reason(
    tmp_path: Path, facts: dict
) -> None:
    page = written(tmp_path / "choice", facts)
    listed = rows_of(page, "Candidates")
    assert [row[:3] for row in listed] == [
        [f"{LITE} linear head_only", "winner", "244"],
        [f"{SMALL} linear head_only", "finalist", "244"],
        [f"{LITE} knn head_only", "dropped at 122 images", "122"],
        [f"{SMALL} mlp head_only", "dropped at 62 images", "62"],
    ]
    assert [row[1:3] for row in rows_of(page, "Left out")] == [
        ["failed", "its answers are NaN or Inf"],
        ["left out", "costs 26,803 s, and 174 s are left"],
    ]
    assert rows_of(page, "What the choosing is worth")[0][1] == "19"
    assert re.findall('href="([^"]+)"', page) == ["../my%20%231%20model/report.html"]
    text = (tmp_path / "choice" / "choose.md").read_text()
    assert "| left out | costs 26,803 s, and 174 s are left |" in text


def test_a_choice_that_was_judged_by_nothing_and_made_no_model_has_a_page(
    tmp_path: Path, facts: dict
) -> None:
    page = written(tmp_path / "choice", {**facts, "worth": None, "runner_up": None, "model": None})
    assert "worth: not known, the choosing was not judged" in page and "href" not in page
    assert "runner-up:" not in page and "What the choosing is worth" not in page


def test_the_page_is_whole_in_a_browser(tmp_path: Path, facts: dict) -> None:
    written(tmp_path / "choice", facts)
    check_page(tmp_path / "choice" / "choose.html")


def test_one_of_a_kind_is_no_plural(facts: dict) -> None:
    """As a cross-validation of two folds, done once, of hardly any image."""
    worth = {**facts["worth"], "folds": 2, "repeats": 1, "n": 1}
    other = {**facts["runner_up"], "only_winner_right": 1}
    said = " ".join(summary({**facts, "worth": worth, "runner_up": other}))
    assert "1 image, 2 folds, once)" in said and "(1 image that the winner alone gets" in said
