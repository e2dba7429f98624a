"""The stage audit with several labels an image on real files, and data=csv that reads its table."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import labelled
import numpy as np
import pytest
from sklearn.datasets import load_digits

import xfer
from xfer.config.hydra import compose_specs
from xfer.core.errors import DataError
from xfer.plan.make import make_plan
from xfer.plan.table import brief
from xfer.plan.table import table as plan_table

NETWORK = ["backbone=digits_resnet", "source=digits_0_4", "augment=none", "data.workers=0"]
TYPED = ["data=csv", "task=multilabel", "data.leakage=ignore", *NETWORK]


def digits(folder: Path, count: int) -> list[tuple[str, list[str]]]:
    """The first digits below 5, which the network knows, and their labels."""
    rows = labelled.digits(folder / "images", count)
    kept = zip(rows, load_digits().target, strict=False)
    return [(f"images/{name}", labels) for (name, labels), digit in kept if digit < 5]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("several")


@pytest.fixture(scope="module")
def wrong(place: Path) -> set[tuple[str, str]]:
    """Writes the table; the (image, label) pairs that are wrong in it."""
    rows, pairs = digits(place, 300), set()
    invented = [(20, "even"), (50, "prime"), (95, "straight")]
    forgotten = [
        (next(i for i in range(start, 150) if name in rows[i][1]), name)
        for start, name in ((60, "even"), (100, "prime"))
    ]
    for i, name in (*invented, *forgotten):
        path, labels = rows[i]
        rows[i] = (path, sorted({*labels} ^ {name}))
        pairs.add((path, name))
    labelled.write_columns(place / "labels.csv", rows, unknown=0.1)
    return {(path, name) for path, name in pairs if known(place / "labels.csv")[path][name]}


@pytest.fixture(scope="module")
def audited(place: Path, wrong: set[tuple[str, str]]) -> Path:
    """One run for all of this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("XFER_CACHE", str(place / "cache"))
        typed = [*TYPED, "data.file=labels.csv", "stages=[audit]", "run.dir=audited"]
        return (place / xfer.run(None, typed).folder).resolve()


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def known(path: Path) -> dict[str, dict[str, str]]:
    return {row["path"]: row for row in table(path)}


def facts(folder: Path, name: str = "audit.json"):
    return json.loads((folder / name).read_text())


def edited(source: Path, target: Path, changes: dict[str, dict[str, str]]) -> Path:
    """The table with some cells changed, as an editor saves it."""
    rows = [row | changes.get(row["path"], {}) for row in table(source)]
    with target.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return target


def next_typed(run: Path) -> list[str]:
    """The command that the last lines of a run say comes next, less the program."""
    line = re.findall(r"next +python -m xfer (.*)", (run / "run.log").read_text())[-1]
    return shlex.split(line)


def labels_of(plan) -> dict[str, tuple[int, ...]]:
    splits = plan.dataset.splits.values()
    return {
        name: tuple(row)
        for samples in splits
        for name, row in zip(samples.names, samples.labels.tolist(), strict=True)
    }


def planned(place: Path, *typed: str):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return make_plan(compose_specs([*typed, "stages=[]"]))


def test_wrong_labels_are_accused_and_unknown_ones_are_not(
    audited: Path, place: Path, wrong: set[tuple[str, str]]
) -> None:
    found, given = facts(audited), known(place / "labels.csv")
    accused = {(row["path"], row["label"]): row for row in found["labels"]}
    assert len(wrong) >= 3 and wrong <= accused.keys() and len(accused) <= len(wrong) + 4
    for (path, name), row in accused.items():
        assert given[path][name] == str(int(row["has"])), "an unknown label is accused"
        assert (row["probability"] < 0.5) == row["has"]
        for word, cell in (("with", "1"), ("without", "0")):
            assert {given[near][name] for near in row["nearest"][word]} == {cell}
            assert path not in row["nearest"][word]
    assert {row["has"] for row in accused.values()} == {True, False}
    p_wrong = [row["p_wrong"] for row in found["labels"]]
    assert p_wrong == sorted(p_wrong, reverse=True) and p_wrong[-1] > 0.5


def test_the_plan_names_thresholds_where_they_are_chosen(
    place: Path, wrong: set[tuple[str, str]]
) -> None:
    for stages, chosen in (("audit", False), ("worth", False), ("audit,fit,evaluate", True)):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(place)
            typed = [*TYPED, "data.file=labels.csv", f"stages=[{stages}]"]
            plan = make_plan(compose_specs(typed))
        for said in (plan_table(plan), brief(plan)):
            assert "several an image, or none" in said
            assert ("a threshold a class by its F1" in said) == chosen, stages
            assert ("known of 4 different sets of images" in said) == ("audit" in stages)
            assert "these images are no files" not in said


def test_counts_and_last_lines_are_of_known_labels(audited: Path, place: Path) -> None:
    counts, given = facts(audited, "result.json")["audit"], table(place / "labels.csv")
    cells = [row[name] for row in given for name in labelled.LABELS]
    assert counts["known"] == sum(cell != "" for cell in cells) < len(cells)
    assert counts["images"] == len(given)
    assert counts["labels"] == len(facts(audited)["labels"])
    said = f"{counts['labels']} of {counts['known']} known labels of {len(given)} images"
    assert said in (audited / "run.log").read_text()
    assert said in (audited / "audit.html").read_text()


def test_the_table_turns_what_is_accused_and_nothing_else(audited: Path) -> None:
    accused: dict[str, set[str]] = {}
    for row in facts(audited)["labels"]:
        accused.setdefault(row["path"], set()).add(row["label"])
    rows = table(audited / "audit.csv")
    assert [row["path"] for row in rows][: len(accused)] == list(accused)
    for row in rows:
        before, after = ({*row[key].split("|")} - {""} for key in ("label", "suggested"))
        assert before ^ after == accused.get(row["path"], set())
        assert row["decision"] == "accept"
    assert rows[0]["suspect"] == facts(audited)["labels"][0]["label"]


def test_an_untouched_table_is_the_same_data(audited: Path, place: Path) -> None:
    before = planned(place, *TYPED, "data.file=labels.csv")
    after = planned(place, *next_typed(audited))
    assert labels_of(before) == labels_of(after)
    assert before.facts["splits"].keys() == after.facts["splits"].keys()
    for name in before.dataset.splits:
        assert set(before.split(name).names) == set(after.split(name).names)
    count = len(table(place / "labels.csv"))
    assert f"decisions in audit.csv: {count} accept, 0 relabel, 0 drop" in after.facts["remarks"]


def test_what_was_decided_is_trained_on(
    audited: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = table(audited / "audit.csv")
    first, second, third, fourth = (row["path"] for row in rows[:4])
    changes = {
        first: {"decision": "relabel"},
        second: {"decision": "Relabel", "suggested": ""},
        third: {"decision": "relabel", "suggested": "prime|?even"},
        fourth: {"decision": "drop"},
    }
    file = edited(audited / "audit.csv", tmp_path / "edited.csv", changes)
    monkeypatch.chdir(place)
    typed = [w for w in next_typed(audited) if not w.startswith("data.file=")]
    result = xfer.run(None, [*typed, f"data.file={file}", "stages=[fit]", "run.dir=again"])
    plan = facts(result.folder, "plan.json")
    assert f"{len(rows) - 4} accept, 3 relabel, 1 drop" in " ".join(plan["remarks"])
    labels = labels_of(planned(place, *typed, f"data.file={file}"))
    assert plan["classes"] == ["even", "prime", "round", "straight"]
    assert fourth not in labels and len(labels) == len(rows) - 1
    assert labels[second] == (0, 0, 0, 0) and labels[third] == (-1, 1, 0, 0)
    suggested = rows[0]["suggested"].split("|")
    assert labels[first] == tuple(
        -1 if f"?{name}" in suggested else int(name in suggested) for name in plan["classes"]
    )


def test_a_decision_that_is_none_is_refused(audited: Path, place: Path, tmp_path: Path) -> None:
    path = table(audited / "audit.csv")[3]["path"]
    file = edited(audited / "audit.csv", tmp_path / "e.csv", {path: {"decision": "remove"}})
    typed = [word for word in next_typed(audited) if not word.startswith("data.file=")]
    with pytest.raises(DataError, match=r"E356: .*there is no decision 'remove'"):
        planned(place, *typed, f"data.file={file}")


def test_a_column_of_a_class_may_be_called_decision(tmp_path: Path) -> None:
    rows = digits(tmp_path, 60)
    labelled.write_columns(tmp_path / "labels.csv", rows)
    text = (tmp_path / "labels.csv").read_text().replace("even", "decision", 1)
    (tmp_path / "labels.csv").write_text(text)
    plan = planned(tmp_path, *TYPED, "data.file=labels.csv")
    assert "decision" in plan.dataset.classes and len(labels_of(plan)) == len(rows)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ev|en", "data.separator=';'"),
        ("?even", "or begin with ?, so that data=csv cannot read"),
    ],
)
def test_names_of_labels_that_hold_a_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: str
) -> None:
    labelled.write_columns(tmp_path / "labels.csv", digits(tmp_path, 60), unknown=0.1)
    text = (tmp_path / "labels.csv").read_text().replace("even", name, 1)
    (tmp_path / "labels.csv").write_text(text)
    monkeypatch.chdir(tmp_path)
    run = xfer.run(None, [*TYPED, "data.file=labels.csv", "stages=[audit]", "run.dir=run"]).folder
    log = (tmp_path / run / "run.log").read_text()
    assert says in log
    if name.startswith("?"):
        assert "next  " not in log
        return
    before = planned(tmp_path, *TYPED, "data.file=labels.csv")
    after = planned(tmp_path, *next_typed(tmp_path / run))
    assert labels_of(before) == labels_of(after) and before.dataset.classes == after.dataset.classes
    assert np.isin(-1, [*labels_of(after).values()])
