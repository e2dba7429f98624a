"""The stage audit on real files: what it notices, what it writes, and data=csv that reads it."""

from __future__ import annotations

import csv
import json
import re
import shlex
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import xfer
from xfer.config.hydra import compose_specs
from xfer.core.errors import CombinationError, ConfigError, DataError, Problems
from xfer.data.folder import Folder
from xfer.models.head import Keep
from xfer.plan.make import make_plan
from xfer.plan.table import brief, table
from xfer.report.audit_files import next_command
from xfer.report.inputs import Work
from xfer.weights.content import Match

NETWORK = ["backbone=digits_resnet", "source=digits_0_4", "augment=none", "data.workers=0"]
WRONG = {"train/5/0003.png": "6", "train/6/0004.png": "8", "train/8/0005.png": "5"}
PUT = {f"train/{put}/x{Path(name).name}" for name, put in WRONG.items()}


def digits(root: Path) -> Path:
    """The digits 5, 6 and 8 as files, 40 to train and 10 to validate on; a few in a wrong folder,
    a few copied, and one picture of noise."""
    images, labels = load_digits(return_X_y=True)
    for label in (5, 6, 8):
        for i, row in enumerate(images[labels == label][:50]):
            name = f"{'train' if i < 40 else 'val'}/{label}/{i:04d}.png"
            put = name.replace(f"/{label}/", f"/{WRONG[name]}/x") if name in WRONG else name
            (root / put).parent.mkdir(parents=True, exist_ok=True)
            pixels = np.round(row.reshape(8, 8) * (255 / 16)).astype(np.uint8)
            Image.fromarray(pixels).resize((64, 64), 3).convert("RGB").save(root / put)
    for name, copy in (("train/5/0010", "val/5/copy"), ("train/6/0011", "train/6/again")):
        image = Image.open(root / f"{name}.png").rotate(1, fillcolor=(0, 0, 0))
        image.save(root / f"{copy}.jpg", quality=80)
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "train/8/noise.png")
    return root


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("audit")
    digits(place / "digits")
    return place


@pytest.fixture(scope="module")
def audited(place: Path) -> Path:
    """One run for all of this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("XFER_CACHE", str(place / "cache"))
        return (place / run(place, "stages=[audit]").folder).resolve()


def run(place: Path, *options: str):
    return xfer.run(None, [f"data.root={place / 'digits'}", *NETWORK, *options])


def facts(folder: Path, name: str = "audit.json"):
    return json.loads((folder / name).read_text())


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def decided(source: Path, target: Path, decisions: dict[str, str]) -> Path:
    """The table with some decisions in it, as an editor saves it."""
    table = rows(source)
    for row in table:
        row["decision"] = decisions.get(row["path"], row["decision"])
    with target.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    return target


def test_labels_in_a_wrong_folder_are_accused(audited: Path) -> None:
    wrong = {f"train/{put}/x{Path(name).name}" for name, put in WRONG.items()}
    found = {row["path"]: row for row in facts(audited)["labels"]}
    assert wrong <= found.keys() and len(found) <= 6
    for name, put in WRONG.items():
        row = found[f"train/{put}/x{Path(name).name}"]
        assert row["suggested"] == name.split("/")[1] and row["label"] == put
        assert row["nearest"].keys() == {row["label"], row["suggested"]}
        assert all(len(names) == 3 for names in row["nearest"].values())


def test_copies_and_noise_are_noticed(audited: Path) -> None:
    found = facts(audited)
    pairs = {(row["path"], row["other"]): row for row in found["duplicates"]}
    across = pairs["train/5/0010.png", "val/5/copy.jpg"]
    assert across["split"] == "train" and across["other_split"] == "val"
    assert ("train/6/0011.png", "train/6/again.jpg") in pairs or (
        "train/6/again.jpg", "train/6/0011.png"
    ) in pairs  # fmt: skip
    assert "train/8/noise.png" in {row["path"] for row in found["outliers"]}
    assert len(found["outliers"]) <= 8


def test_the_table_has_every_image_and_decides_nothing(audited: Path, place: Path) -> None:
    table = rows(audited / "audit.csv")
    files = {p.relative_to(place / "digits").as_posix() for p in (place / "digits").rglob("*.*g")}
    assert {row["path"] for row in table} == files and len(table) == len(files)
    assert {row["decision"] for row in table} == {"accept"}
    listed = [bool(row["reason"]) for row in table]
    assert listed == sorted(listed, reverse=True), "what is worth a look comes first"


def test_result_and_last_lines_say_how_many(audited: Path) -> None:
    result, found = facts(audited, "result.json"), facts(audited)
    assert result["audit"] == found["counts"]
    assert result["audit"]["labels"] == len(found["labels"])
    assert result["audit"]["fdr"] == found["labels"][-1]["fdr"]
    assert result["features"]["cached"] is True and result["best"] is None
    log = (audited / "run.log").read_text()
    assert "data=csv" in log and "audit.csv" in log and "decide" in log


def test_a_fit_reads_the_features_of_the_audit_and_the_other_way_round(
    audited: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("XFER_CACHE", str(place / "cache"))
    assert facts(audited, "result.json")["features"]["hit"] is False
    fitted = place / run(place, "stages=[fit,audit]").folder
    assert facts(fitted, "result.json")["features"]["hit"] is True
    assert facts(fitted)["counts"]["labels"] == facts(audited)["counts"]["labels"]
    monkeypatch.setenv("XFER_CACHE", str(place / "other"))
    run(place, "stages=[fit]")
    again = place / run(place, "stages=[audit]").folder
    assert facts(again, "result.json")["features"]["hit"] is True


def test_an_untouched_table_is_the_same_data(audited: Path, place: Path) -> None:
    options = ["data=csv", f"data.file={audited / 'audit.csv'}", f"data.root={place / 'digits'}"]
    plan = make_plan(compose_specs([*options, *NETWORK, "stages=[]"]))
    folder = make_plan(
        compose_specs([f"data.root={place / 'digits'}", *NETWORK, "stages=[]"])
    ).facts["splits"]
    for name, split in plan.facts["splits"].items():
        assert split["n"] == folder[name]["n"] and split["per_class"] == folder[name]["per_class"]
    assert any("accept, 0 relabel, 0 drop" in remark for remark in plan.facts["remarks"])


def test_what_was_decided_is_trained_on(
    audited: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    decisions = {f"train/{put}/x{Path(name).name}": "relabel" for name, put in WRONG.items()}
    decisions |= {"train/8/noise.png": "drop", "val/5/copy.jpg": "Drop"}
    edited = decided(audited / "audit.csv", tmp_path / "edited.csv", decisions)
    options = ["data=csv", f"data.file={edited}", f"data.root={place / 'digits'}", *NETWORK]
    folder = xfer.run(None, [*options, "stages=[fit,evaluate]"]).folder
    plan = facts(folder, "plan.json")
    assert plan["splits"]["train"]["per_class"] == {"5": 40, "6": 41, "8": 40}
    assert plan["splits"]["val"]["per_class"] == {"5": 10, "6": 10, "8": 10}
    assert any("3 relabel, 2 drop" in remark for remark in plan["remarks"])
    assert facts(folder, "result.json")["scores"]["val"]["n"] == 30


def test_images_of_one_group_are_no_near_duplicates_and_do_not_judge_each_other(
    audited: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole group in the wrong class, of copies of one digit: among themselves they are right."""
    monkeypatch.chdir(tmp_path)
    table = [row for row in rows(audited / "audit.csv") if row["path"] not in PUT]
    film = Image.open(place / "digits" / "train/5/0020.png")
    shots = []
    for i in range(4):
        film.rotate(i, fillcolor=(0, 0, 0)).save(place / f"shot{i}.png")
        shots.append({"path": str(place / f"shot{i}.png"), "label": "8", "split": "train"})
    names = [*table, *shots]
    with (tmp_path / "films.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label", "split", "film"])
        for i, row in enumerate(names):
            film = "one" if row in shots else str(i)
            writer.writerow([row["path"], row["label"], row["split"], film])
    typed = ["data=csv", "data.file=films.csv", f"data.root={place / 'digits'}", *NETWORK]
    plain = xfer.run(None, [*typed, "data.columns=[path,label,split]", "stages=[audit]"]).folder
    kept = ["data.range=[0,255]", "data.leakage=ignore"]
    apart = xfer.run(None, [*typed, *kept, "data.group=film", "stages=[audit]"]).folder
    found, grouped = facts(plain), facts(apart)
    ours = {row["path"] for row in shots}

    def within(said) -> list[object]:
        return [r for r in said["duplicates"] if {r["path"], r["other"]} <= ours]

    assert within(found) and within(grouped) == []
    assert {r["path"] for r in grouped["duplicates"]} & {"train/5/0010.png", "val/5/copy.jpg"}
    assert found["groups"] is None and grouped["groups"] == len(table) + 1
    wrong = [{r["path"]: r["p_wrong"] for r in said["labels"]} for said in (found, grouped)]
    assert ours <= wrong[1].keys() and not ours <= wrong[0].keys()
    # The nearest of each are the others, and the page says whose they are.
    assert (apart / "audit.html").read_text().count(", 3 of its own group<") == len(ours)
    assert "of its own group" not in (plain / "audit.html").read_text()
    # What is typed next has the groups and the keys that were typed.
    line = re.findall(r"next +python -m xfer (.*)", (apart / "run.log").read_text())[-1]
    again = shlex.split(line)
    assert {*kept, "data.group=group"} <= {*again}
    splits = make_plan(compose_specs([*again, "stages=[]"])).dataset.splits.values()
    films = {n: g for s in splits for n, g in zip(s.names, s.groups, strict=True)}
    assert {name for name in films if films[name] == "one"} == ours and len(films) == len(names)


def test_the_next_command_repeats_folds_but_not_those_of_one_fold(
    place: Path, tmp_path: Path
) -> None:
    folds = ["data.folds=3", "data.repeats=2", "data.split_seed=4"]

    def typed_next(*more: str) -> list[str]:
        specs = compose_specs([f"data.root={place / 'digits'}", *NETWORK, *more])
        plan = SimpleNamespace(dataset=Folder(str(place / "digits")).dataset(True), specs=specs)
        line = next_command(cast("Work", SimpleNamespace(plan=plan, folder=tmp_path)))
        return shlex.split(line or "")

    assert {*folds} <= {*typed_next(*folds)}
    assert not {"data.folds=3", "data.repeats=2"} & {*typed_next(*folds, "data.fold=1")}


@pytest.mark.parametrize(
    ("decision", "suggested", "says"),
    [
        ("remove", "6", "E356: .*there is no decision 'remove'. Fix: .*drop"),
        ("relabl", "6", "E356: .*did you mean 'relabel'"),
        ("relabel", "", "E357: .*'suggested' names no class"),
    ],
)
def test_a_decision_that_is_none_is_refused(
    audited: Path, place: Path, tmp_path: Path, decision: str, suggested: str, says: str
) -> None:
    edited = decided(audited / "audit.csv", tmp_path / "edited.csv", {"val/5/copy.jpg": decision})
    lines = rows(edited)
    for row in lines:
        row["suggested"] = suggested if row["path"] == "val/5/copy.jpg" else row["suggested"]
    with edited.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    options = ["data=csv", f"data.file={edited}", f"data.root={place / 'digits'}", *NETWORK]
    with pytest.raises(DataError, match=says):
        make_plan(compose_specs([*options, "stages=[]"]))


def test_where_paths_start_is_said_where_a_file_is_not_there(audited: Path) -> None:
    options = ["data=csv", f"data.file={audited / 'audit.csv'}", *NETWORK]
    with pytest.raises(DataError, match=r"E317: .*type data.root=DIR"):
        make_plan(compose_specs([*options, "stages=[]"]))


def test_what_the_audit_cannot_do_is_refused_and_the_remedy_works(place: Path) -> None:
    typed = [f"data.root={place / 'digits'}", *NETWORK, "stages=[audit]"]
    with pytest.raises((CombinationError, Problems), match="E024"):
        compose_specs([*typed, "checkpoint.path=best.ckpt"])
    with pytest.raises(CombinationError, match=r"E025: .*type features=auto"):
        compose_specs([*typed, "features=never"])
    compose_specs([*typed, "features=auto"])
    with pytest.raises(ConfigError, match=r"E282: .*no model to work on"):
        make_plan(compose_specs([*typed[:-1], "stages=[audit,evaluate]"]))


def test_the_plan_of_an_audit_trains_nothing(place: Path) -> None:
    plan = make_plan(compose_specs([f"data.root={place / 'digits'}", *NETWORK, "stages=[audit]"]))
    assert "trains" not in brief(plan) and "steps" not in table(plan)
    assert "run         digits, seed 0: audit" in brief(plan).replace("default", "digits")


def test_features_that_are_all_the_same_are_an_error_in_words(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xfer.training import image_audit

    features = image_audit.features

    def constant(plan):
        cached, found, device = features(plan)
        return cached, np.ones_like(found), device

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(image_audit, "features", constant)
    with pytest.raises(DataError, match=r"E358: .*features of all 153 images are the same"):
        run(place, "stages=[audit]")


def test_labels_at_random_are_said_to_be_no_basis(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xfer.training import image_audit

    features = image_audit.features

    def shuffled(plan):
        cached, found, device = features(plan)
        return cached, np.random.default_rng(0).permutation(found), device

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(image_audit, "features", shuffled)
    folder = run(place, "stages=[audit]").folder
    warnings = facts(folder, "result.json")["warnings"]
    assert any("no label can be judged" in warning for warning in warnings)


def test_the_source_answers_as_the_network_does_with_its_own_head(place: Path) -> None:
    from xfer.data.preprocess import prepare
    from xfer.models.network import Parts, assemble
    from xfer.plan.classes import source_head
    from xfer.training import image_audit
    from xfer.training.backbone_features import source_answers

    specs = compose_specs([f"data.root={place / 'digits'}", *NETWORK, "stages=[audit]"])
    plan = make_plan(specs)
    assert "the source's answers for its 5 classes" in brief(plan)
    assert "by features alone" in brief(replace(plan, source_head=None))
    _, matrix, _ = image_audit.features(image_audit.as_evaluated(plan))
    weights = specs.source.load(specs.backbone)
    whole = assemble(Parts(specs.backbone, Keep(), 5), weights.state).eval()
    images = plan.split("train").images
    batch = np.stack([prepare(images[i], plan.card.input) for i in range(4)])
    with torch.inference_mode():
        expected = whole(torch.from_numpy(batch)).div(2).softmax(dim=1).sqrt().numpy()
    assert np.abs(source_answers(plan, matrix)[:4] - expected).max() < 1e-4
    bare, match = plan.parts.bare(), Match()
    assert source_head(weights, match, bare, 3) and not source_head(weights, match, bare, 5)
    learned = replace(weights, splits={"train": "0" * 64})
    assert not source_head(learned, match, bare, 3)


def test_memory_is_no_more_than_the_log_says(monkeypatch: pytest.MonkeyPatch) -> None:
    from xfer.evaluation import leave_one_out, neighbours
    from xfer.training import image_audit

    for module in (leave_one_out, image_audit):
        monkeypatch.setattr(module, "BLOCK", 1 << 13)
    for module in (neighbours, image_audit):
        monkeypatch.setattr(module, "TILE", 64)
    draw, names = np.random.default_rng(0), [str(k) for k in range(200)]
    labels = draw.integers(0, 200, 800)  # so many classes that answers are what is large
    features = draw.normal(size=(800, 64)).astype(np.float32)
    image_audit.look(features[:60], labels[:60], names)  # what is imported is no memory of it
    for answers in (None, draw.random((800, 90)).astype(np.float32)):
        tracemalloc.start()
        try:
            image_audit.look(features, labels, names, answers=answers)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        more = 0 if answers is None else 90
        assert peak < image_audit._working_bytes(features, 200, 1, more)
