"""Files that list several labels an image: three forms of the same, and what is refused."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import labelled
import numpy as np
import pytest

from xfer.config.hydra import compose_specs
from xfer.core.errors import DataError, LabelsError
from xfer.data import Manifest
from xfer.models.head.class_match import Naming, adopt

Rows = list[tuple[str, list[str]]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows]:
    folder = tmp_path_factory.mktemp("labels")
    return folder, labelled.digits(folder, 60, unlabelled=6)


def read(path: Path, **options: object) -> object:
    return Manifest(file=str(path), leakage="ignore", **options).labelled(True)  # type: ignore[arg-type]


def test_a_json_list_of_one_label_an_image_is_read_as_one_class_an_image(
    place: tuple[Path, Rows], tmp_path: Path
) -> None:
    folder, rows = place
    one = [(name, labels[0]) for name, labels in rows if len(labels) == 1]
    (folder / "one.csv").write_text("\n".join(["path,label", *map(",".join, one)]))
    entries = [{"path": name, "labels": [label]} for name, label in one]
    (folder / "one.json").write_text(json.dumps(entries))
    lists = [
        Manifest(file=str(folder / f"one.{form}"), leakage="ignore") for form in ("csv", "json")
    ]
    csv, listed = (one.dataset(True) for one in lists)
    assert listed.classes == csv.classes and listed.remarks == csv.remarks
    for split, samples in csv.splits.items():
        assert listed.splits[split].names == samples.names
        assert (listed.splits[split].labels == samples.labels).all()
    for odd in ({"labels": []}, {"labels": ["a", "b"]}, {"labels": ["a"], "unknown": ["b"]}):
        (folder / "one.json").write_text(json.dumps([*entries[1:], {**entries[0], **odd}]))
        with pytest.raises(DataError, match=r"E389: \S+one\.json\[\d+\]: .*type task=multilabel"):
            lists[1].dataset(True)


def test_three_forms_say_the_same(place: tuple[Path, Rows]) -> None:
    folder, rows = place
    entries = [{"path": name, "labels": labels} for name, labels in rows]
    (folder / "list.json").write_text(json.dumps(entries))
    cells = read(labelled.write_cells(folder / "cells.csv", rows))
    others = [
        read(labelled.write_columns(folder / "columns.csv", rows)),
        read(folder / "list.json"),
        read(labelled.write_cells(folder / "signs.csv", rows, ";"), separator=";"),
    ]
    assert cells.classes == tuple(sorted(labelled.LABELS))
    for split, samples in cells.splits.items():
        for other in others:
            assert other.splits[split].names == samples.names
            assert (other.splits[split].labels == samples.labels).all()
            assert other.splits[split].sha256 == samples.sha256
        for name, row in zip(samples.names, samples.labels, strict=True):
            has = [c for c, value in zip(cells.classes, row, strict=True) if value == 1]
            assert has == sorted(dict(rows)[name])
    shares = [len(s) / len(rows) for s in cells.splits.values()]
    assert shares == pytest.approx([0.8, 0.2], abs=0.06)
    assert any("of 66 images" not in r and "no label at all" in r for r in cells.remarks)


def test_unknown_is_minus_one_in_every_form(place: tuple[Path, Rows]) -> None:
    folder, rows = place
    first, second, *rest = [name for name, _ in rows]
    (folder / "cells.csv").write_text(
        "path,label,split\n"
        + f"{first},even|?round|prime,train\n{second},even|?,train\n"
        + f"{rest[0]},round,train\n{rest[3]},,train\n"
        + f"{rest[1]},even|prime|round,val\n{rest[2]},,val\n"
    )
    data = read(folder / "cells.csv")
    assert data.splits["train"].labels.tolist() == [
        [1, 1, -1],
        [1, -1, -1],
        [0, 0, 1],
        [0, 0, 0],
    ]
    (folder / "columns.csv").write_text(
        "path,even,prime,round,split\n"
        + f"{first},1,1,,train\n{second},1,,,train\n{rest[0]},0,0,1,train\n{rest[3]},0,0,0,train\n"
        + f"{rest[1]},1,1,1,val\n{rest[2]},0,0,0,val\n"
    )
    again = read(folder / "columns.csv")
    entries = [
        {"path": first, "labels": ["even", "prime"], "unknown": ["round"], "split": "train"},
        {"path": second, "labels": ["even"], "unknown": ["prime", "round"], "split": "train"},
        {"path": rest[0], "labels": ["round"], "split": "train"},
        {"path": rest[3], "labels": [], "split": "train"},
        {"path": rest[1], "labels": ["even", "prime", "round"], "split": "val"},
        {"path": rest[2], "labels": [], "split": "val"},
    ]
    (folder / "list.json").write_text(json.dumps(entries))
    for other in (again, read(folder / "list.json")):
        for split in ("train", "val"):
            assert (other.splits[split].labels == data.splits[split].labels).all()
    assert "train: 3 of 12 labels are unknown" in " ".join(data.remarks)
    assert "val: 1 of 2 images has no label at all" in data.remarks


def test_a_list_in_a_column_of_another_name_is_read_as_the_error_says(
    place: tuple[Path, Rows],
) -> None:
    folder, rows = place
    cells = labelled.write_cells(folder / "named.csv", rows)
    expected = read(cells)
    cells.write_text(cells.read_text().replace("path,label", "path,labels"))
    with pytest.raises(DataError, match=r"E388.*'data\.columns=\[path,labels\]'; else write 1"):
        read(cells)
    found = read(cells, columns=("path", "labels"))
    assert found.classes == expected.classes
    assert (found.splits["val"].labels == expected.splits["val"].labels).all()


def test_a_split_is_the_same_whatever_the_order_of_the_lines(place: tuple[Path, Rows]) -> None:
    folder, rows = place
    one = read(labelled.write_cells(folder / "one.csv", rows))
    two = read(labelled.write_cells(folder / "two.csv", rows[::-1]))
    assert set(one.splits["val"].names) == set(two.splits["val"].names)
    even = [one.splits[split].labels[:, 0].mean() for split in ("train", "val")]
    assert abs(even[0] - even[1]) < 0.15  # each combination of labels is divided


def test_a_network_keeps_its_classes(place: tuple[Path, Rows]) -> None:
    folder, rows = place
    path = labelled.write_cells(folder / "some.csv", [r for r in rows if "straight" not in r[1]])
    known = ("even", "prime", "round", "straight")
    data = Manifest(file=str(path), leakage="ignore").labelled(False, known)
    assert data.classes == known and (data.splits["val"].labels[:, 3] == 0).all()
    assert "'straight' have no image with the label" in " ".join(data.remarks)
    with pytest.raises(DataError, match="the network does not know the label 'even'"):
        Manifest(file=str(path)).labelled(False, ("prime", "round", "evens"))


def test_a_class_without_a_column_is_unknown_and_the_plan_says_so(place: tuple[Path, Rows]) -> None:
    """As with ``head=keep``; a list of labels says all that an image has, so that what no list
    names is absent."""
    folder, rows = place
    path = folder / "two.csv"
    lines = [f"{name},{int('even' in has)},{int('prime' in has)}" for name, has in rows]
    path.write_text("\n".join(["path,prime,even", *lines]))
    known = ("even", "prime", "round", "straight")
    data = Manifest(file=str(path), leakage="ignore").labelled(False, known)
    val = data.splits["val"].labels
    assert (val[:, 2:] == -1).all() and set(np.unique(val[:, :2])) == {0, 1}
    said = "the data does not name 2 of the network's classes ('round', 'straight'): of every image"
    assert any(line.startswith(f"{said} that is unknown") for line in data.remarks)
    bare = Manifest(file=str(path), leakage="ignore").labelled(False)
    kept = adopt(bare, Naming(known), {})
    assert (kept.splits["val"].labels == val).all() and kept.remarks[-1] in data.remarks
    # Which images are held out is what it was when the network was trained on this file.
    assert list(kept.splits["val"].names) == list(data.splits["val"].names)
    assert kept.splits["val"].sha256 == data.splits["val"].sha256
    whole = Manifest(file=str(path), leakage="ignore").labelled(False, ("even", "prime"))
    assert not any("does not name" in line for line in whole.remarks)


HEAD = "path,a,b,split\n"
OK = "0000.png,1,0,train\n0001.png,0,1,train\n0002.png,1,1,val\n"
BAD: dict[str, tuple[str, str, str]] = {
    "a cell that is no answer": (HEAD + "0000.png,yes,0,train\n" + OK[19:], "E388", "'yes' in"),
    "one side alone": (HEAD + OK.replace("0001.png,0", "0001.png,1"), "E387", "lack the label 'a'"),
    "nobody": (HEAD + OK.replace("0000.png,1", "0000.png,0").replace("0002.png,1", "0002.png,0"),
               "E387", "no training image has the label 'a'"),
    "in val alone": ("path,label,split\n0000.png,a,train\n0001.png,,train\n0002.png,a|b,val\n",
                     "E386", "no training image has the label 'b', and images of val have it"),
    "nothing known": (HEAD + OK.replace("0002.png,1,1", "0002.png,,"),
                      "E387", "not one label of val"),
    "twice": ("path,label\n0000.png,a|b|a\n0001.png,b\n", "E389", "names the label 'a' twice"),
    "twice as unknown": ("path,label\n0000.png,a|?a\n0001.png,b\n", "E389", "'a' twice"),
    "no label": ("path,label\n0000.png,\n0001.png,\n", "E389", "names no label at all"),
    "the same image": (HEAD + OK + OK, "E316", "; 2 more are listed again: 6; 7"),
    "a column twice": ("path,a,a\n0000.png,1,0\n", "E313", "'a' is there twice"),
    "no such file": (HEAD + OK.replace("0001", "nope"), "E317", "there is no file"),
    "another split": (HEAD + OK.replace("val", "vall"), "E315", "unknown split 'vall'"),
    "a cell more": (HEAD + OK.replace("1,1,val", "1,1,val,1"), "E314", "5 cells"),
    "semicolons": ("path;a;b\n0000.png;1;0\n", "E375", "there is one column"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_refused_by_line(place: tuple[Path, Rows], case: str) -> None:
    text, number, said = BAD[case]
    path = place[0] / "bad.csv"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read(path)
    assert f"error {number}: " in str(caught.value) and said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "is no JSON list"),
        ("[1", "cannot be read as JSON"),
        ('[{"path": "0000.png"}]', "is no image with labels"),
        ('[{"path": "0000.png", "labels": "a"}]', "is no image with labels"),
        ('[{"path": "0000.png", "labels": ["a"], "label": "a"}]', "is no image with labels"),
        ('[{"path": "0000.png", "labels": ["a", "a"]}]', "twice"),
    ],
)
def test_json_that_is_no_such_list_is_refused(
    place: tuple[Path, Rows], text: str, said: str
) -> None:
    path = place[0] / "bad.json"
    path.write_text(text)
    with pytest.raises(DataError, match=said) as caught:
        read(path)
    assert "E389" in str(caught.value)


def test_a_sign_between_labels_is_refused_where_an_image_has_one(
    place: tuple[Path, Rows],
) -> None:
    path = labelled.write_cells(place[0] / "one.csv", [("0000.png", ["a"]), ("0001.png", ["b"])])
    with pytest.raises(
        LabelsError, match=r"E059: data\.separator: ';' is between labels"
    ) as caught:
        Manifest(file=str(path), separator=";").dataset(True)
    assert "data.separator=semicolon" in caught.value.fix


def test_rare_combinations_are_trained_on(place: tuple[Path, Rows]) -> None:
    """One image of its kind is no reason to refuse the file."""
    folder, rows = place
    rows = [*rows[:-1], (rows[-1][0], ["even", "round", "straight"])]
    data = read(labelled.write_cells(folder / "rare.csv", rows))
    labels = np.concatenate([samples.labels for samples in data.splits.values()])
    assert len(labels) == len(rows)


@pytest.mark.parametrize("sign", [";", "/", "+"])
def test_labels_with_another_sign_between_them_are_taken_apart_as_the_error_says(
    tmp_path: Path, sign: str
) -> None:
    rows = labelled.digits(tmp_path, 24)
    rows[-1] = (rows[-1][0], ["prime", "even"])
    cells = [["path", "label", "split"]]
    cells += [[name, sign.join(has), "train"] for name, has in rows[:-1]]
    cells += [[name, sign.join(has), "val"] for name, has in rows[-1:]]
    (tmp_path / "commas.csv").write_text("\n".join(map(",".join, cells)))
    with pytest.raises(DataError, match=r"E386: .*the label 'prime.even'") as refused:
        read(tmp_path / "commas.csv")
    typed = re.search(r"type 'data\.separator=\"(.)\"'; else add", refused.value.fix)
    assert typed
    found = read(tmp_path / "commas.csv", separator=typed[1])
    assert found.classes == tuple(sorted(labelled.LABELS))
    # Then the columns would have commas.
    (tmp_path / "tabs.csv").write_text("\n".join(map("\t".join, cells)))
    with pytest.raises(DataError, match=r"E386: .*Fix: add such images"):
        read(tmp_path / "tabs.csv", separator="tab")


def test_a_column_a_class_beside_paths_of_another_name_is_read_as_the_error_says(
    place: tuple[Path, Rows],
) -> None:
    path = labelled.write_columns(place[0] / "named.csv", place[1])
    path.write_text(path.read_text().replace("path,", "Filenames,", 1))
    with pytest.raises(DataError, match=r"E313: .*no single column 'path'") as refused:
        read(path)
    (typed,) = re.findall(r"type '(data\.columns=\[Filenames\])'; if one column", refused.value.fix)
    single = compose_specs(["data=csv", f"data.file={path}"]).data
    with pytest.raises(DataError, match=r"E313: ") as refused:
        single.dataset(True)
    assert f"'{typed}' and task=multilabel; else type" in refused.value.fix
    several = ["task=multilabel", "data=csv", f"data.file={path}", typed, "data.leakage=ignore"]
    assert compose_specs(several).data.labelled(True).classes == tuple(labelled.LABELS)
    with pytest.raises(DataError, match=r"E313: .*'Filenames' is one column, and no class"):
        compose_specs(several[1:]).data.dataset(True)
    path.write_text(path.read_text().replace("Filenames,", "a/b,", 1))  # hard to type
    with pytest.raises(DataError, match="call the one of the paths 'path'; if one column"):
        read(path)


def test_a_sign_in_few_labels_is_a_remark_where_it_divides_them_into_labels(tmp_path: Path) -> None:
    kinds = [["even"], ["prime"], ["round"], ["even", "round"]]
    rows = [(name, kinds[i % 4]) for i, (name, _) in enumerate(labelled.digits(tmp_path, 24))]
    said = read(labelled.write_cells(tmp_path / "few.csv", rows, ",")).remarks
    assert any("6 of 24 images have a label such as 'even,round'" in line for line in said)
    kinds[3] = ["black, white"]
    rows = [(name, kinds[i % 4]) for i, (name, _) in enumerate(rows)]
    said = read(labelled.write_cells(tmp_path / "name.csv", rows, ",")).remarks
    assert not any("which is one class" in line for line in said)


@pytest.mark.parametrize("sign", [";", "/", "+", ","])
def test_a_sign_in_most_labels_is_a_remark_and_what_it_says_reads_them(
    tmp_path: Path, sign: str
) -> None:
    kinds = [["even", "round"], ["even", "prime"], ["prime"]]
    rows = [(name, kinds[i % 3]) for i, (name, _) in enumerate(labelled.digits(tmp_path, 30))]
    path = labelled.write_cells(tmp_path / "cells.csv", rows, sign)
    data = read(path)
    (said,) = (line for line in data.remarks if "which is one class" in line)
    assert said.startswith(f"20 of 30 images have a label such as 'even{sign}round'")
    words = shlex.split(said.partition("type ")[2])
    how = compose_specs(["task=multilabel", "data=csv", f"data.file={path}", *words]).data
    found = how.labelled(True)
    assert found.classes == ("even", "prime", "round")
    assert not any("which is one class" in line for line in found.remarks)
    # A column each, and a list, say themselves where a label ends.
    entries = [{"path": name, "labels": [sign.join(has)]} for name, has in rows]
    (tmp_path / "list.json").write_text(json.dumps(entries))
    assert not any("which is one class" in line for line in read(tmp_path / "list.json").remarks)
