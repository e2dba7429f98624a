"""Which files an input names."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pictures import folders

from xfer.core.errors import DataError
from xfer.evaluation.predict import find


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders(tmp_path, {"a": 2, "a/deeper": 1, "b": 1})
    (tmp_path / "a" / "notes.txt").write_text("no image")
    return tmp_path


def test_folders_files_and_patterns(place):
    assert find(["a"]).names == ("a/00.jpg", "a/01.jpg", "a/deeper/00.jpg")
    assert find(["b/00.jpg"]).names == ("b/00.jpg",)
    assert find(["*/00.jpg"]).names == ("a/00.jpg", "b/00.jpg")
    assert find([f"{place}/**/01.jpg"]).names == (f"{place}/a/01.jpg",)


def test_a_file_named_twice_is_predicted_once(place):
    assert len(find(["a", "a/00.jpg", "b"])) == 4


def test_labels_are_unknown(place):
    assert (find(["a"]).labels == -1).all()


@pytest.mark.parametrize("text", ["nothing", "a/*.png", "*/x.jpg"])
def test_an_input_that_names_nothing_is_an_error(place, text):
    with pytest.raises(DataError, match="names no image file"):
        find([text])


def test_files_that_are_no_images_are_left_out_and_named(place, caplog):
    (place / "b" / "bad.jpg").write_text("text")
    assert find(["b"]).names == ("b/00.jpg",)
    assert "1 of 2 files is broken and left out: b/bad.jpg" in caplog.text
    with pytest.raises(DataError, match=r"is no image \(bad\.jpg"):
        find(["b/bad.jpg"])


def test_a_folder_is_walked_as_for_training_and_what_is_left_out_is_told(place, caplog):
    for name in (".ipynb_checkpoints", "__MACOSX"):
        folders(place / "a", {name: 1})
    (place / "a" / "loop").symlink_to(place / "a")
    assert find(["a"]).names == ("a/00.jpg", "a/01.jpg", "a/deeper/00.jpg")
    assert "a: left out (hidden): '.ipynb_checkpoints' and 1 more" in caplog.text
    assert "a: left out (linked folders that lead back or are already read): 'loop'" in caplog.text
    # A pattern, too, takes what is hidden only where it says so itself.
    assert find(["a/*/00.jpg"]).names == ("a/deeper/00.jpg", "a/loop/00.jpg")
    assert find(["a/.ipynb_checkpoints/*.jpg"]).names == ("a/.ipynb_checkpoints/00.jpg",)


def test_more_answers_than_are_shown_are_counted(tmp_path):
    from xfer.core.types import Predictions
    from xfer.evaluation.predict import summary

    n = 23
    found = Predictions(
        names=tuple(f"{i}.png" for i in range(n)),
        labels=None,
        logits=np.zeros((n, 2), np.float32),
        classes=("a", "b"),
    )
    lines = summary(found, tmp_path / "predictions.csv")
    assert len(lines) == 21
    assert lines[-1].endswith("; the first 20 are shown") and lines[-1].startswith("23 predictions")
    views = replace(found, views=10)
    labelled = replace(views, task={"thresholds": [0.5, 0.5], "chosen_on": "val"})
    for said in (summary(views, Path("p.csv")), summary(labelled, Path("p.csv"))):
        assert "23 predictions, each the mean over 10 views, in p.csv; the first" in said[-1]
    one = Predictions(("a.png",), np.zeros((1, 2), np.float32), None, ("a", "b"))
    assert summary(one, Path("p.csv"))[-1] == "1 prediction in p.csv"
