"""Whole runs with several labels an image, on scikit-learn's digits."""

from __future__ import annotations

import csv
import io
import json
import re
from importlib.util import find_spec
from pathlib import Path

import labelled
import numpy as np
import pytest
import torch
import warm
from PIL import Image

import xfer
from xfer.config.hydra import compose_specs
from xfer.core.certificate import Certificate
from xfer.core.errors import ExportError, XferError
from xfer.core.files import read_json
from xfer.data.preprocess import prepare
from xfer.evaluation.onnx_session import open_session
from xfer.export.answer_parity import CertifiedFile, pledge
from xfer.plan.make import make_plan
from xfer.weights.formats.checkpoint_format import read_snapshot


class Done:
    """A command that has ended: its exit code, and all that it printed."""

    def __init__(self, typed: list[str], cwd: Path) -> None:
        run = warm.start(cwd, *typed)
        self.stderr, _ = run.communicate()
        self.returncode = run.returncode


NETWORK = ["experiment=digits_freeze", "data=csv", "task=multilabel"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    rows = labelled.digits(folder / "images", 300, unlabelled=12)
    named = [(f"images/{name}", labels) for name, labels in rows]
    labelled.write_columns(folder / "columns.csv", named, unknown=0.1)
    labelled.write_cells(folder / "cells.csv", named)
    labelled.write_cells(folder / "few.csv", named[:60])
    return folder


@pytest.fixture(scope="module")
def solved(place: Path) -> Path:
    export = "export=[onnx,onnx_image,safetensors]"
    typed = ["data.file=columns.csv", "run.dir=solved", "certificate.coverage=0.8", export]
    done = Done([*NETWORK, *typed], cwd=place)
    assert done.returncode == 0, done.stderr
    return place / "solved"


@pytest.fixture(scope="module")
def trained(place: Path) -> Path:
    options = ["freeze=none", "loss=asymmetric", "optim=adamw", "trainer.max_epochs=2"]
    stages = "stages=[fit,evaluate,report]"
    done = Done([*NETWORK, "data.file=cells.csv", "run.dir=trained", *options, stages], cwd=place)
    assert done.returncode == 0, done.stderr
    return place / "trained"


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def certificate_of(run: Path) -> Certificate:
    made = read_snapshot(run / "checkpoints/best.ckpt").card.certificate
    assert made is not None and made.several
    return made


def test_the_scores_are_scikit_learns_of_the_predictions(solved: Path) -> None:
    from sklearn import metrics

    score = read_json(solved / "result.json")["scores"]["val"]
    rows, classes = (
        table(solved / "predictions_val.csv"),
        read_json(solved / "plan.json")["classes"],
    )
    shares = [f"p_{c}" for c in classes]
    assert list(rows[0]) == ["path", "label", "prediction", *shares, "set", "p_unlike"]
    each = []
    for name in classes:
        known = [row for row in rows if f"?{name}" not in row["label"].split("|")]
        truth = [name in row["label"].split("|") for row in known]
        p = [float(row[f"p_{name}"]) for row in known]
        said = [name in row["prediction"].split("|") for row in known]
        mine = score["per_class"][name]
        assert (mine["n"], mine["known"]) == (sum(truth), len(known)) and len(known) < len(rows)
        assert mine["f1"] == pytest.approx(metrics.f1_score(truth, said))
        assert said == [share >= score["thresholds"][name] for share in p]
        each.append(metrics.average_precision_score(truth, p))
        assert mine["ap"] == pytest.approx(each[-1], abs=1e-4)  # probabilities have six digits
    assert score["map"] == pytest.approx(np.mean(each), abs=1e-4) and score["map"] > 0.8
    assert score["used_for_selection"] is False and score["thresholds_chosen_on"] == "cv"


def test_thresholds_are_chosen_on_answers_to_images_that_a_fit_had_not_seen(solved: Path) -> None:
    """The best F1 of predictions_cv.csv, and not of val, whose images are in neither; the network
    was calibrated afterwards, which changes no answer."""
    score = read_json(solved / "result.json")["scores"]["val"]
    rows = table(solved / "predictions_cv.csv")
    assert not {r["path"] for r in rows} & {
        r["path"] for r in table(solved / "predictions_val.csv")
    }
    for name in score["thresholds"]:
        known = [row for row in rows if f"?{name}" not in row["label"].split("|")]
        had = np.array([name in row["label"].split("|") for row in known])
        p = np.array([float(row[f"p_{name}"]) for row in known])

        def f1(t: float, p: np.ndarray = p, had: np.ndarray = had) -> float:
            return 2 * float((had & (p >= t)).sum()) / float((p >= t).sum() + had.sum())

        said = np.array([name in row["prediction"].split("|") for row in known])
        reached = 2 * float((had & said).sum()) / float(said.sum() + had.sum())
        assert reached == pytest.approx(max(f1(t) for t in p), abs=1e-9)


def test_the_plan_counts_what_has_no_label_and_what_is_unknown(solved: Path) -> None:
    plan = read_json(solved / "plan.json")
    unknown = sum(plan["splits"][split]["unknown"] for split in ("train", "val"))
    text = (solved.parent / "columns.csv").read_text().splitlines()[1:]
    assert unknown == sum(line.split(",")[1:].count("") for line in text)
    assert plan["splits"]["train"]["without_labels"] > 0
    assert plan["task"] == {"_target_": "xfer.evaluation.task.Multilabel", "thresholds": "f1"}


def test_every_exported_file_answers_as_the_checkpoint(solved: Path) -> None:
    rows = {row["file"]: row for row in read_json(solved / "export" / "parity.json")}
    assert set(rows) == {"model.onnx", "model_image.onnx", "model.safetensors"}
    assert all(row["agree"] == 1 for row in rows.values())
    assert rows["model.onnx"]["facts"]["labels_agree"] == 1
    thresholds = list(read_json(solved / "result.json")["scores"]["val"]["thresholds"].values())
    session = open_session(solved / "export" / "model.onnx")
    answers = ["logits", "probabilities", "labels", "prediction_set", "p_unlike"]
    assert [o.name for o in session.get_outputs()] == answers
    images = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)
    logits, shares, labels, sets, p_unlike = session.run(None, {"images": images})
    assert (sets == (shares >= certificate_of(solved).least)).all() and p_unlike.shape == (3,)
    assert np.allclose(shares, 1 / (1 + np.exp(-logits)), atol=1e-6)
    assert (labels == (shares >= np.array(thresholds, np.float32))).all()


def test_checkpoint_and_files_predict_the_same_labels(solved: Path) -> None:
    inputs = "predict.input=images/000*.png"
    answers = []
    for i, model in enumerate(("checkpoint.path=solved", *(
        f"predict.model=solved/export/{name}.onnx" for name in ("model", "model_image")
    ))):  # fmt: skip
        where = f"run.dir=predicted{i}"
        done = Done(["stages=[predict]", model, inputs, where], cwd=solved.parent)
        assert done.returncode == 0, done.stderr
        answers.append(table(solved.parent / f"predicted{i}" / "predictions.csv"))
    assert list(answers[0][0])[:3] == ["path", "prediction", "p_even"]
    for other in answers[1:]:
        for one, two in zip(answers[0], other, strict=True):
            assert all(one[key] == two[key] for key in ("path", "prediction", "set"))
            # One place further in the reference at most, where a distance is as good as equal.
            assert float(one["p_unlike"]) == pytest.approx(float(two["p_unlike"]), abs=1.1 / 200)
            shares = ([float(v) for k, v in row.items() if k[:2] == "p_"] for row in (one, two))
            assert np.allclose(*shares, atol=2e-5)
    assert len({row["set"] for row in answers[0]}) > 3
    assert "; prediction set " in (solved.parent / "predicted1" / "run.log").read_text()


def shares_and_truth(run: Path, name: str):
    """Probabilities of a table, and which labels each image is known to have, both (n, classes)."""
    rows, classes = table(run / name), read_json(run / "plan.json")["classes"]
    p = np.array([[float(row[f"p_{c}"]) for c in classes] for row in rows])
    return p, np.array([[c in row["label"].split("|") for c in classes] for row in rows])


def test_the_threshold_of_sets_bounds_the_risk_of_held_out_answers(solved: Path) -> None:
    """The largest at which the mean share of lost labels, one image more lost, is 0.2."""
    p, has = shares_and_truth(solved, "predictions_cv.csv")
    # The table has the answers before the head was calibrated, in six digits.
    p = np.clip(p, 1e-7, 1 - 1e-7)
    scale = read_json(solved / "result.json")["calibration"]["temperature"]
    p, some = 1 / (1 + ((1 - p) / p) ** (1 / scale)), has.any(axis=1)
    sound = []
    for cut in np.unique(p[has]):
        lost = (has & (p < cut)).sum(axis=1)[some] / has.sum(axis=1)[some]
        sound += [cut] if (lost.sum() + 1) / (len(lost) + 1) <= 0.2 + 1e-12 else []
    made = certificate_of(solved)
    np.testing.assert_allclose(made.least, max(sound), atol=1e-5)
    assert made.fitted_on == "cv" and made.n == some.sum() < len(some)


def test_sets_are_held_against_images_that_nothing_was_fitted_on(solved: Path) -> None:
    p, has = shares_and_truth(solved, "predictions_val.csv")
    inside, some = p >= certificate_of(solved).least, has.any(axis=1)
    each = (inside & has).sum(axis=1)[some] / has.sum(axis=1)[some]
    said = read_json(solved / "result.json")["certificate"]
    assert said["checked_on"] == "val" and said["checked"] == len(each) < len(p)
    assert said["covered"] == pytest.approx(each.mean()) and said["covered"] > 0.7
    assert sum(said["set_sizes"].values()) == len(each)
    planned = {"coverage": 0.8, "by_class": False, "fitted_on": "cv", "n": said["n"]}
    unlike = certificate_of(solved).unlike
    planned["layers"] = list(unlike.layers) if unlike else None
    assert read_json(solved / "plan.json")["certificate"] == planned
    text = (solved / "report.md").read_text()
    assert "Prediction sets are to have 80 % of an image's labels on average" in text
    assert f"On the {len(each)} images of val that have a label" in text
    for file in read_json(solved / "export" / "parity.json")[:2]:
        facts = file["facts"]["certificate"]
        assert facts["sets_apart"] == 0 and facts["checked"] == len(each)
        assert facts["covered"] == pytest.approx(each.mean())


def test_the_gate_refuses_a_file_of_other_sets(solved: Path, tmp_path: Path) -> None:
    model, session = xfer.load(solved), open_session(solved / "export/model.onnx")
    files = [solved.parent / f"images/{i:04}.png" for i in range(24)]
    x = np.stack([prepare(Image.open(file).convert("RGB"), model.card.input) for file in files])
    want = pledge(model.net, certificate_of(solved), x)

    def file(change) -> CertifiedFile:
        def run(images):
            logits, shares, _, sets, p_unlike = session.run(None, {"images": images})
            return [logits, change(sets, shares), p_unlike]

        return CertifiedFile(tmp_path / "model.onnx", "onnx", run, False, 1e-4)

    assert file(lambda sets, _: sets).check(want, x, None, 1e-4)["sets_apart"] == 0
    whole = (1 / (1 + np.exp(-model.net(torch.from_numpy(x)).detach().numpy()))) >= 0.5
    assert not whole.all()  # else the next changes nothing
    for change in (lambda sets, _: ~sets, lambda sets, shares: shares >= 0.5):
        with pytest.raises(ExportError, match=r"E958: .*other prediction sets than the network"):
            file(change).check(want, x, None, 1e-4)


def test_python_gives_the_labels_too(solved: Path) -> None:
    model = xfer.load(solved)
    folder = solved.parent / "images"
    found = model.predict([folder / "0000.png", folder / "empty00.png"])
    cuts = read_json(solved / "result.json")["scores"]["val"]["thresholds"]
    for one in found:
        assert one.labels == tuple(c for c, p in one.probabilities.items() if p >= cuts[c])
        least = certificate_of(solved).least[0]
        assert one.prediction_set == tuple(c for c, p in one.probabilities.items() if p >= least)
        assert one.p_unlike is not None and 0 < one.p_unlike <= 1


def test_evaluation_takes_task_and_thresholds_from_the_checkpoint(solved: Path) -> None:
    typed = ["data=csv", "data.file=columns.csv", "stages=[evaluate]", "checkpoint.path=solved"]
    done = Done([*typed, "run.dir=again"], cwd=solved.parent)
    assert done.returncode == 0, done.stderr
    assert "thresholds of the checkpoint, chosen on held-out training images" in done.stderr
    first, second = (
        read_json(solved.parent / name / "result.json")["scores"]["val"]
        for name in ("solved", "again")
    )
    assert first == second
    refused = Done([*typed, "task=multilabel", "task.thresholds=0.3"], cwd=solved.parent)
    assert "E062: task" in refused.stderr


def test_the_card_has_a_table_of_classes_and_no_confusion(solved: Path) -> None:
    text = (solved / "report.md").read_text()
    assert "mAP" in text and "| class | have it | known | threshold |" in text
    assert "Thresholds chosen on training images" in text
    assert "| predicted labels | surest wrong label | confidence |" in text
    assert "| same labels |" in text
    page = (solved / "report.html").read_text()
    assert "Images with a label against those without it" in page
    for absent in ("Confusion", "true class", "accuracy |", "top class"):
        assert absent not in text
    assert {p.stem for p in (solved / "figures").iterdir()} == {
        "batch_grid", "curves", "prediction_grid"
    }  # fmt: skip


def test_a_wrong_picture_has_its_true_labels_beside_the_predicted_ones(solved: Path) -> None:
    """The surest wrong label first; xfer report draws the same pictures anew."""
    wrong = []
    for row in table(solved / "predictions_val.csv"):
        true, said = (list(filter(None, row[k].split("|"))) for k in ("label", "prediction"))
        each = [
            p if name in said else 1 - p
            for name, p in ((name, float(row[f"p_{name}"])) for name in labelled.LABELS)
            if f"?{name}" not in true and (name in said) != (name in true)
        ]
        if each:
            true = sorted(true, key=lambda name: name.startswith("?"))
            words = (", ".join(names) or "none" for names in (true, said))
            wrong.append((*words, max(each), row["path"]))
    wrong.sort(key=lambda row: -row[2])
    expected = {(*row[:2], f"{row[2]:.2f}") for row in wrong}
    assert len(wrong) > 2 and any("?" in row[0] for row in wrong)

    def shown() -> list[tuple[str, ...]]:
        one = r">true</span>(.*?)</span>\s*<span class=\"row names\"><span class=\"soft\">predicted"
        one += r"</span>(.*?)</span>.*?confidence</span> ([\d.]+)<"
        found = re.findall(one, (solved / "report.html").read_text(), re.S)
        return [tuple(re.sub("<[^>]*>", "", cell).strip() for cell in row) for row in found]

    first = shown()
    assert len(first) == len(wrong) and set(first) == expected
    sure = [float(row[2]) for row in first]
    assert sure == sorted(sure, reverse=True)
    page = (solved / "report.html").read_text()
    assert "the true class came second" not in page and "default-src 'none'" in page
    done = Done(["report", "solved"], cwd=solved.parent)
    assert done.returncode == 0, done.stderr
    assert set(shown()) == expected


def test_a_trained_network_says_that_its_thresholds_were_chosen_on_val(trained: Path) -> None:
    result = read_json(trained / "result.json")
    score = result["scores"]["val"]
    assert result["best"]["metric"] == "val_map"
    assert result["best"]["value"] == pytest.approx(score["map"], abs=1e-9)
    assert score["used_for_selection"] is True and score["thresholds_chosen_on"] == "val"
    assert "Thresholds chosen on val" in (trained / "report.md").read_text()
    plan = read_json(trained / "plan.json")
    chosen = {row["key"]: row["value"] for row in plan["auto"]}
    assert (chosen["checkpoint.monitor"], chosen["checkpoint.mode"]) == ("val_map", "max")


REFUSED = {
    "head=keep": "E065",
    "loss=asymmetric head=knn optim=auto": "E032",
    "checkpoint.monitor=val_auroc": "E286",
    "loss=asymmetric optim=exact": "E262",
}


@pytest.mark.parametrize("typed", REFUSED)
def test_what_is_for_one_label_is_refused_and_the_fix_works(place: Path, typed: str) -> None:
    base = [*NETWORK, f"data.file={place / 'few.csv'}", "data.leakage=ignore"]
    base += ["trainer.accelerator=cpu"]
    with pytest.raises(XferError) as caught:
        make_plan(compose_specs([*base, *typed.split()]))
    assert f"error {REFUSED[typed]}: " in str(caught.value)
    fix = str(caught.value).rpartition(". Fix: ")[2]
    if typed.startswith("stages") or not fix.startswith("type "):
        return
    mended = fix.removeprefix("type ").replace("'", "").split(",")[0].split(" or ")[0]
    mended = fix.split("'")[1] if "'" in fix else mended
    keys = {word.partition("=")[0] for word in mended.split()}
    left = [word for word in typed.split() if word.partition("=")[0] not in keys]
    make_plan(compose_specs([*base, *left, *mended.split()]))


def test_data_of_one_label_is_refused(place: Path) -> None:
    typed = ["experiment=digits_freeze", "task=multilabel", "data=digits", "run.dir=none"]
    done = Done(typed, cwd=place)
    assert done.returncode == 2 and "error E060: " in done.stderr


SOURCE = ["source=run", "source.path=solved", "optim.lr=1e-12", "trainer.max_epochs=1"]


@pytest.mark.slow
@pytest.mark.parametrize("head", ["keep", "remap"])
def test_a_head_begins_with_the_labels_that_the_source_knows(
    place: Path, solved: Path, head: str
) -> None:
    """By name: the columns stand in another order, and one is missing, which a kept head still
    answers."""
    rows, file = table(place / "columns.csv"), f"turned_{head}.csv"
    names = list(labelled.LABELS)[:0:-1]
    with (place / file).open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["path", *names], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    data = ["data=csv", "data.leakage=ignore", f"data.file={file}"]
    typed = [*NETWORK, *data[1:], f"head={head}", *SOURCE, "loss=balanced", f"run.dir=from_{head}"]
    done = Done([*typed, "stages=[fit,evaluate]"], cwd=place)
    assert done.returncode == 0, done.stderr
    ours = read_json(place / f"from_{head}" / "result.json")["scores"]["val"]["per_class"]
    assert set(ours) == set(labelled.LABELS if head == "keep" else names)
    found = {r["path"]: r for r in table(place / f"from_{head}" / "predictions_val.csv")}
    known = {r["path"]: r for r in table(solved / "predictions_val.csv")}
    assert len(found.keys() & known.keys()) > 5
    for path in found.keys() & known.keys():
        for name in names:
            assert float(found[path][f"p_{name}"]) == pytest.approx(
                float(known[path][f"p_{name}"]), abs=1e-5
            )
    done = Done(
        [*data, "stages=[evaluate]", f"checkpoint.path=from_{head}", f"run.dir=again_{head}"],
        cwd=place,
    )
    assert done.returncode == 0, done.stderr
    again = read_json(place / f"again_{head}" / "result.json")["scores"]["val"]["per_class"]
    assert {name: again[name] for name in names} == {name: ours[name] for name in names}


@pytest.mark.parametrize("head", ["keep", "remap"])
def test_a_head_of_another_task_is_refused_and_the_fix_works(
    place: Path, solved: Path, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    single = ["experiment=digits_freeze", "source=run", "source.path=solved"]
    several = [*NETWORK, f"data.file={place / 'few.csv'}", "data.leakage=ignore"]
    for typed, why in ((single, "several labels an image"), (several, "exclude each other")):
        with pytest.raises(XferError, match=rf"error E065: head: {head} .*{why}") as caught:
            make_plan(compose_specs([*typed, f"head={head}"]))
        assert caught.value.fix == "type head=linear"
        make_plan(compose_specs([*typed, "head=linear"]))
    untrained = [*several, "source=run", "source.path=solved", "stages=[evaluate]"]
    with pytest.raises(XferError, match=r"error E065: head: .* alone has no thresholds"):
        make_plan(compose_specs([*untrained, f"head={head}"]))
    make_plan(compose_specs([*several, "stages=[evaluate]", "checkpoint.path=solved"]))


def test_features_have_the_labels_of_each_image(place: Path, solved: Path) -> None:
    typed = ["stages=[embed]", "data=csv", "data.file=columns.csv", "checkpoint.path=solved"]
    typed += ["embed.neighbours=images/0028.png", "embed.k=2"]
    for form in ("npz", "parquet"):
        done = Done([*typed, f"embed.format={form}", f"run.dir=embedded_{form}"], cwd=place)
        if form == "parquet" and find_spec("pyarrow") is None:
            assert "pyarrow" in done.stderr
            return
        assert done.returncode == 0, done.stderr
        if form == "npz":
            with np.load(place / "embedded_npz" / "embeddings.npz", allow_pickle=False) as file:
                names = file["classes"].tolist()
                labels = dict(zip(file["paths"].tolist(), file["labels"].tolist(), strict=True))
            value = {"1": 1, "0": 0, "": -1}
            assert labels == {
                row["path"]: [value[row[name]] for name in names]
                for row in table(place / "columns.csv")
            }
            near = table(place / "embedded_npz" / "neighbours.csv")[0]["label"]
            assert near == "|".join(words(labels["images/0028.png"], names)) and "|" in near
    from pyarrow import parquet

    columns = parquet.read_table(place / "embedded_parquet" / "embeddings.parquet").to_pydict()
    told = dict(zip(columns["path"], columns["labels"], strict=True))
    assert any(any("?" in name for name in each) for each in told.values())
    assert told == {path: words(row, names) for path, row in labels.items()}


def words(row: list[int], names: list[str]) -> list[str]:
    """What a row of labels is in a list of them."""
    return ["?" * (value < 0) + name for name, value in zip(names, row, strict=True) if value]


def test_each_label_that_is_predicted_has_a_map(solved: Path) -> None:
    """Of an image without one the most probable, with a question mark."""
    inputs = ["predict.input=[images/0003.png,images/0004.png,images/empty00.png]"]
    done = Done(
        ["stages=[predict]", "checkpoint.path=solved", *inputs, "predict.maps=3", "run.dir=mapped"],
        cwd=solved.parent,
    )
    assert done.returncode == 0, done.stderr
    page = (solved.parent / "mapped" / "predictions.html").read_text()
    one = r"alt=\"Image \d, said to have ([^\"]*)\".*?map of</span> <bdi>([^<]*)</bdi>.*?"
    one += r"probability</span> ([\d.]+)<.*?soft\"><bdi>(.*?)</bdi>"
    expected, counts = [], dict.fromkeys([*labelled.LABELS, "none"], 0)
    rows = table(solved.parent / "mapped" / "predictions.csv")
    assert {bool(row["prediction"]) for row in rows} == {True, False}
    for row in rows:
        said = row["prediction"].split("|") if row["prediction"] else []
        best = max(labelled.LABELS, key=lambda name: float(row[f"p_{name}"]))
        for name in said or [best]:
            mark, p = "" if said else "?", f"{float(row[f'p_{name}']):.2f}"
            expected.append((", ".join(said) or "none", name + mark, p, row["path"]))
        for name in said or ["none"]:
            counts[name] += 1
    found = [(*each, re.sub("<[^>]*>", "", name)) for *each, name in re.findall(one, page, re.S)]
    assert found == expected
    heats = re.findall(r'class="heat-map" src="([^"]*)"', page)
    assert len(heats) == len(expected) == len(set(heats)), "each label has a map of its own"
    assert f"; {len(heats)} maps of 3 images." in page
    assert "Its heat map shows where the network finds what speaks for that label" in page
    for name, count in counts.items():
        cell = rf'<bdi>{name}</bdi></td><td data-label="images">(\d+)'
        assert sum(map(int, re.findall(cell, page))) == count


@pytest.mark.parametrize("file", ["checkpoints/best.ckpt", "export/model.onnx"])
def test_a_network_of_several_labels_teaches_none_of_one(solved: Path, file: str) -> None:
    typed = ["experiment=digits_freeze", "loss=distill", f"loss.teacher={solved / file}"]
    with pytest.raises(XferError, match=r"error E083: .* gives an image several labels"):
        make_plan(compose_specs(typed))


@pytest.mark.slow
def test_nested_folders_are_fitted_evaluated_and_predicted(place: Path, tmp_path: Path) -> None:
    for name, labels in labelled.digits(tmp_path / "flat", 120, unlabelled=6):
        goal = tmp_path / "tree" / "/".join([*labels, name])
        goal.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "flat" / name).rename(goal)
    data = ["data=folder", "data.root=tree", "data.leakage=ignore"]
    typed = ["experiment=digits_freeze", "task=multilabel", *data, "data.sampler=balanced"]
    done = Done([*typed, "run.dir=first", "stages=[fit,evaluate]"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = Done(["stages=[evaluate]", "checkpoint.path=first", *data, "run.dir=b"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    scores = [read_json(tmp_path / run / "result.json")["scores"]["val"] for run in ("first", "b")]
    assert scores[0] == scores[1] and scores[0]["map"] > 0.7
    for row in table(tmp_path / "first" / "predictions_val.csv"):
        assert row["label"].split("|") == (row["path"].split("/")[:-1] or [""])
    steps = ["freeze=none", "optim=adamw", "trainer.max_epochs=1", "stages=[fit]", "run.dir=steps"]
    done = Done([*typed, *steps], cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_single_labels_know_nothing_of_it(place: Path) -> None:
    plan = make_plan(compose_specs(["experiment=digits_freeze"]))
    assert "task" not in plan.facts and plan.card.task == {}
    assert "task" not in plan.card.to_plain()
    assert json.dumps(plan.facts["splits"]).count("unknown") == 0
