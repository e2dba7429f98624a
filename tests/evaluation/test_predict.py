"""Which files an input names."""

import io
import tarfile
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
    with pytest.raises(DataError, match=r"E310: b/bad\.jpg: cannot be read .*\(it is not an image"):
        find(["b/bad.jpg"])
    for i in range(6):
        (place / "b" / f"bad{i}.jpg").write_text("text")
    find(["b"])
    assert "bad3.jpg: it is not an image; 2 more" in caplog.messages[-1]


def test_a_file_that_is_not_there_or_a_pointer_is_named_itself_and_not_by_its_list(place):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 9\n"
    (place / "b" / "lfs.jpg").write_text(pointer)
    (place / "x.csv").write_text("path\nb/lfs.jpg\n")
    for text in ("b/lfs.jpg", "x.csv"):
        with pytest.raises(DataError, match=r"b/lfs\.jpg: cannot .* Fix: run git lfs pull$"):
            find([text])
    (place / "x.csv").write_text("path\nb/lost.jpg\n")
    with pytest.raises(DataError, match=r"b/lost\.jpg: cannot .*No such file"):
        find(["x.csv"])
    (place / "x.csv").write_text("path\nb/lfs.jpg\nb/lost.jpg\n")
    with pytest.raises(DataError, match=r"x\.csv: none of 2 .*lfs pull, or give a folder"):
        find(["x.csv"])


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


def test_a_list_of_paths_needs_no_labels_and_what_is_not_there_is_counted(place, caplog):
    (place / "x.csv").write_text("taken,File\n2020,a/01.jpg\n2021,b/lost.jpg\n2021,b/00.jpg\n")
    assert find(["x.csv"]).names == ("a/01.jpg", "b/00.jpg")
    assert f"1 of 3 files is broken and left out: {place}/b/lost.jpg" in caplog.text
    # A list that training reads, of several labels an image, and one without labels.
    (place / "x.json").write_text('[{"path": "a/01.jpg", "labels": ["x"]}, {"path": "b/00.jpg"}]')
    assert find(["x.json"]).names == ("a/01.jpg", "b/00.jpg")
    for text, match in (
        ('["a/01.jpg"]', r"x\.json\[0\]: is no image with a path"),
        ("{}", "is no JSON list"),
        ("[]", "lists no image"),
        ('[{"path": "a"}, {"path": "a"}]', r"x\.json\[1\]: 'a' is listed in .*\[0\] too"),
    ):
        (place / "x.json").write_text(text)
        with pytest.raises(DataError, match=match):
            find(["x.json"])
    for text, match in (
        ("a,b\n1,2\n", "no single column of paths"),
        ("path\na\na\n", "listed in"),
        ("path,label\n", "lists no image"),
    ):
        (place / "x.csv").write_text(text)
        with pytest.raises(DataError, match=match):
            find(["x.csv"])


def test_shards_of_any_tool_are_predicted_and_several_inputs_together(place, caplog):
    (place / "web").mkdir()
    for shard in ("train-0", "val-0"):
        with tarfile.open(place / "web" / f"{shard}.tar", "w") as tar:
            for suffix, data in (
                ("jpg", (place / "a" / "00.jpg").read_bytes()),
                ("json", b'{"caption": "no label"}'),
                ("txt", b"no label"),
            ):
                info = tarfile.TarInfo(f"{shard}-key.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    (place / "web" / "classes.txt").write_text("not asked for\n")
    caplog.set_level("INFO", "xfer")
    found = find(["web"])
    assert found.names == ("train-0-key.jpg", "val-0-key.jpg")
    assert "left out (neither an image nor a label): 'train-0.tar/train-0-key.txt'" in caplog.text
    assert find(["web/val-0.tar"]).names == ("val-0-key.jpg",)
    both = find(["web/val-0.tar", "b", "web"])
    tars = [f"{place}/web/{shard}.tar/{shard}-key.jpg" for shard in ("val-0", "train-0")]
    assert both.names == (tars[0], "b/00.jpg", tars[1])
    assert np.array_equal(both.images[0], find(["a/00.jpg"]).images[0])
    # A folder of images is one, whatever else lies in it.
    (place / "web" / "val-0.tar").rename(place / "a" / "val-0.tar")
    assert find(["a"]).names == ("a/00.jpg", "a/01.jpg", "a/deeper/00.jpg")


def test_pictures_in_arrays_and_tables_are_found_by_name_or_are_the_only_ones(place):
    pixels = np.arange(3 * 4 * 4 * 3, dtype=np.uint8).reshape(3, 4, 4, 3)
    np.savez("x.npz", val_images=pixels[:1], train_images=pixels[1:], masks=pixels[..., 0])
    assert find(["x.npz"]).names == (
        *("x.npz#train_images/0", "x.npz#train_images/1", "x.npz#val_images/0"),
    )
    np.savez("x.npz", whatever=pixels)
    assert np.array_equal(np.asarray(find(["x.npz"]).images[2]), pixels[2])
    np.savez("x.npz", one=pixels, two=pixels)
    with pytest.raises(DataError, match=r"E326: .*it has one, two. Fix: save the pictures as"):
        find(["x.npz"])
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    data = [path.read_bytes() for path in sorted((place / "a").glob("*.jpg"))]
    for columns, count in (
        ({"photo": [*data, b"broken"], "split": ["?", "?", "?"]}, 2),
        ({"file": ["b/00.jpg"], "label": [None]}, 1),
        ({"one": data, "two": data}, 0),
        ({"number": [1]}, 0),
    ):
        parquet.write_table(arrow.table(columns), "x.parquet")
        if count:
            assert len(find(["x.parquet"])) == count
            continue
        with pytest.raises(DataError, match=r"E326: .*Fix: call that of the images 'image'"):
            find(["x.parquet"])


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
