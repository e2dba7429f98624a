"""The page of predictions with heat maps: the images that are shown, and what is said of them."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pytest
from browser import check_page
from PIL import Image
from sklearn.datasets import load_digits

import xfer
from xfer.config.verbs import spelt_out
from xfer.core.errors import CommandError, XferError
from xfer.evaluation import evaluate


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with a run of the digits, and seven pictures of digits in ``more/``."""
    place = tmp_path_factory.mktemp("maps")
    (place / "more").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        xfer.run("digits_freeze", ["stages=[fit]", "run.dir=run"])
    digits = load_digits()
    chosen = np.flatnonzero(digits.target >= 5)[:7]
    for i, pixels in enumerate(digits.images[chosen]):
        Image.fromarray((pixels * 15.9).astype(np.uint8)).save(place / f"more/{i}.png")
    return place


PREDICT = ("stages=[predict]", "checkpoint.path=run", "predict.input=more")


def predicted(*options: str) -> Path:
    """The folder that holds what was predicted."""
    return xfer.run(overrides=[*PREDICT, *options]).folder


def test_the_first_images_have_a_map_and_their_answer(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    assert not (predicted() / "predictions.html").exists(), "nobody asked for a page"
    said: list[str] = []
    monkeypatch.setattr(logging.getLogger("xfer"), "info", lambda text, **_: said.append(text))
    folder = predicted("predict.maps=3", "tta=flip")
    page = (folder / "predictions_2.html").read_text("utf-8")
    rows = (folder / "predictions_2.csv").read_text().splitlines()[1:]
    assert page.count('class="heat-map"') == page.count('class="row file') == 3
    assert "The first 3 of 7 images, in the order of predictions_2.csv" in page
    assert "The answers are means over views (tta=flip), the maps of one view" in page
    one = r"predicted</span> <bdi>(\d)</bdi>.*?<span>(more/\d\.png)</span>"
    shown = re.findall(one, page, re.S)
    assert shown == [(row.split(",")[1], row.split(",")[0]) for row in rows[:3]]
    assert "checked" in page and "true</span>" not in page and "Right answers" not in page
    assert said[-1] == f"heat maps of the first 3 of 7 images: {folder}/predictions_2.html"


def test_axe_finds_nothing_serious(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    check_page(predicted("predict.maps=4", "run.dir=seen") / "predictions.html")


def test_an_image_that_breaks_on_the_way_moves_no_answer_to_another(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the second image there is no answer: the second picture is the third image's."""
    monkeypatch.chdir(trained)
    whole = evaluate.answered

    def without_one(net, samples, *rest):  # type: ignore[no-untyped-def]
        *known, broken = rest
        at, logits = whole(net, samples, *known, broken)
        broken.append(XferError("more/1.png", "is cut", "replace it", 1))
        left = [i for i in range(len(samples)) if i != 1]
        return at[left], logits[left]

    monkeypatch.setattr("xfer.training.inference.answered", without_one)
    folder = predicted("predict.maps=2", "run.dir=broken")
    page = (folder / "predictions.html").read_text("utf-8")
    pictures = re.findall(r'class="pixels" src="([^"]*)"', page)
    monkeypatch.undo()
    monkeypatch.chdir(trained)
    page = (predicted("predict.maps=200", "run.dir=whole") / "predictions.html").read_text("utf-8")
    assert "All images, in the order" in page
    assert pictures == [re.findall(r'class="pixels" src="([^"]*)"', page)[i] for i in (0, 2)]


@pytest.mark.parametrize(
    ("options", "number"),
    [
        (["stages=[fit]", "data=digits", "predict.maps=3"], 90),
        (["stages=[predict]", "predict.model=m.onnx", "predict.input=more", "predict.maps=3"], 91),
    ],
)
def test_maps_are_refused_where_there_are_none(options: list[str], number: int) -> None:
    with pytest.raises(CommandError) as caught:
        xfer.run(overrides=options)
    assert caught.value.number == number


def test_what_an_exported_file_without_maps_says_to_type_has_maps(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    Path("m.onnx").touch()
    with pytest.raises(CommandError) as caught:
        xfer.run(overrides=spelt_out(["predict", "m.onnx", "more", "predict.maps=2"]))
    (typed,) = re.findall(r"type xfer (.*) with the run", caught.value.fix)
    words = typed.replace("RUN", "run").replace("IMAGES", "more").split()
    folder = xfer.run(overrides=[*spelt_out(words), "run.dir=mended"]).folder
    assert (folder / "predictions.html").read_text("utf-8").count('class="heat-map"') == 2
