"""stages=[worth]: the curve against the truth and against scipy, and a whole run on the digits."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import check_page
from pictures import folders
from scipy.optimize import curve_fit
from sklearn.linear_model import LogisticRegression

import xfer
from xfer.config.hydra import compose_specs
from xfer.core.errors import CombinationError, DataError, XferError
from xfer.evaluation import learning_curve
from xfer.plan.make import make_plan
from xfer.report.worth_page import sentences
from xfer.training import subsampling, worth
from xfer.training.backbone_features import backbone_features
from xfer.training.feature_moments import moments

SIZES = np.array([20, 40, 80, 160, 320, 640])


def answered(floor: float, scale: float, rate: float, count: int) -> Any:
    """Whether each of ``count`` images is right, float32 (sizes, count), where an image is the
    harder the later it comes right, and the accuracy in eight repeats that agree."""
    error = floor + scale * SIZES.astype(float) ** -rate
    hard = np.random.default_rng(0).random(count)
    right = (hard[None, :] > error[:, None]).astype(np.float32)
    accuracy = right.mean(axis=1)
    return right, np.tile(accuracy[:, None], (1, 8)).astype(float), 1 - accuracy.astype(float)


def test_the_curve_is_that_of_least_squares() -> None:
    """scipy fits the same power law to the mean errors."""
    right, by_repeat, error = answered(0.08, 1.2, 0.5, 2_000)
    curve = learning_curve.fit(SIZES, right, by_repeat, 5, seed=0)
    law = lambda n, floor, scale, rate: floor + scale * n**-rate  # noqa: E731
    start, ends = (0.05, 1.0, 0.5), ([0, 0, 0.1], [1, 50, 2])
    theirs, _ = curve_fit(law, SIZES.astype(float), error, start, bounds=ends)
    for size in (100, 640, 1280):
        ours = float(np.median(curve.error(size)))
        assert ours == pytest.approx(law(size, *theirs), abs=0.01), size


@pytest.mark.parametrize("floor", [0.0, 0.05, 0.2])
def test_the_band_of_the_limit_holds_the_floor(floor: float) -> None:
    drawn = np.random.default_rng(3)
    inside = []
    for seed in range(20):
        error = floor + 1.5 * SIZES.astype(float) ** -0.5
        right = (drawn.random((len(SIZES), 300)) > error[:, None]).astype(np.float32)
        curve = learning_curve.fit(SIZES, right, 1 - error[:, None], 5, seed)
        limit = curve.limit()
        inside.append(limit.low <= 1 - floor <= limit.high + 1e-3)
    assert sum(inside) >= 18


def test_a_head_that_is_never_wrong_is_not_known_to_be_perfect() -> None:
    right = np.ones((len(SIZES), 50), np.float32)
    curve = learning_curve.fit(SIZES, right, np.ones((len(SIZES), 8)), 5, seed=0)
    now = curve.expected(640)
    # The upper end of Jeffreys' interval for no error among 50.
    assert 0.93 < now.low < 0.97
    assert now.value > 0.98


def test_more_images_never_cost_accuracy_and_bands_widen_with_fewer_judges() -> None:
    right, by_repeat, _ = answered(0.05, 1.0, 0.5, 200)
    curve = learning_curve.fit(SIZES, right, by_repeat, 5, seed=0)
    assert curve.gain(640, 200).low >= 0
    few, many, all_ = curve.score(640, 30), curve.score(640, 3000), curve.expected(640)
    widths = [each.high - each.low for each in (few, many, all_)]
    assert widths[0] > 1.5 * widths[1]
    assert widths[1] == pytest.approx(widths[2], rel=0.15)


def test_sizes_are_what_can_be_held_and_solved() -> None:
    sizes = subsampling.subsample_sizes(np.array([120, 120]), 512)
    assert sizes[-1] == 192  # four of five folds
    assert (np.diff(sizes) > 0).all()
    large = subsampling.subsample_sizes(np.full(10, 10_000), 1280)
    assert large[-1] * 1280 * 8 <= 1 << 26  # 64 MiB in double precision
    assert 1_000 <= large[-1] <= 5_000
    many = subsampling.subsample_sizes(np.full(1_000, 100), 1280)
    assert many[-1] >= 10 * 1_000  # ten of each class, however many classes there are
    assert subsampling.subsample_sizes(np.array([5, 5]), 512).tolist() == [6, 7, 8]


def test_shares_follow_the_classes_and_none_is_left_out() -> None:
    counts = np.array([900, 90, 10])
    assert subsampling.allotted(counts, 100).tolist() == [90, 9, 1]
    assert subsampling.allotted(counts, 11).tolist() == [9, 1, 1]
    assert (subsampling.allotted(np.array([7, 5, 6]), 10) >= 1).all()


def clouds(count: int, width: int = 12, apart: float = 1.0, seed: int = 0) -> Any:
    """Two clouds: features float32 (n, d) and labels."""
    drawn = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    x = drawn.normal(size=(count, width)) + apart * labels[:, None] * (np.arange(width) < 3)
    return x.astype(np.float32), labels.astype(np.int64)


def test_subsamples_lie_inside_each_other_and_outside_what_they_answer() -> None:
    x, labels = clouds(60)
    draw = subsampling.Draw(x, labels, 0)
    for fold in range(subsampling.FOLDS):
        small = set(draw._subsample(np.array([4, 4]), fold).tolist())
        large = set(draw._subsample(np.array([9, 9]), fold).tolist())
        assert small < large
        assert not large & set(np.flatnonzero(draw.fold_of == fold).tolist())


def test_what_is_measured_is_what_scikit_learn_measures() -> None:
    """Held-out answers of the largest subsamples against scikit-learn's on the same images."""
    x, labels = clouds(200)
    draw = subsampling.Draw(x, labels, 5)
    share = np.array([80, 80])
    at = 2
    logits, best = draw.answers(share, [at])
    taken = logits.argmax(axis=1)
    assert set(best.tolist()) == {at}
    theirs = np.zeros(len(draw.judged), np.int64)
    for fold in range(subsampling.FOLDS):
        chosen = draw._subsample(share, fold)
        mean, std = moments([x[chosen]])
        strength = subsampling._STRENGTHS[at]
        model = LogisticRegression(C=1 / (strength * len(chosen)), tol=1e-10, max_iter=5000)
        model.fit((x[chosen] - mean) / std, labels[chosen])
        held = np.flatnonzero(draw.fold_of[draw.judged] == fold)
        theirs[held] = model.predict((x[draw.judged[held]] - mean) / std)
    assert (taken == theirs).mean() >= 0.995


def test_noise_is_answered_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """No image has a say in what it is answered by."""
    monkeypatch.setattr(subsampling, "_SIZES", 3)
    x, labels = clouds(160, width=40, apart=0.0)
    drawn = subsampling.subsampled(x, labels, 2, seed=0)
    assert abs(drawn.by_repeat[-1].mean() - 0.5) < 0.12
    again = subsampling.subsampled(x, labels, 2, seed=0)
    assert np.array_equal(drawn.right, again.right)


def test_five_images_a_class_have_a_wide_band() -> None:
    x, labels = clouds(10, apart=3.0)
    facts = worth.of_features(x, labels, ("a", "b"), 0, clouds(20, apart=3.0, seed=1))
    now = facts["now"]
    assert now["high"] - now["low"] > 0.1
    assert 0 <= facts["limit"]["low"] <= facts["limit"]["high"] <= 1
    assert len(sentences({**facts, "backbone": "net"})) >= 5


def test_constant_features_are_refused() -> None:
    labels = np.arange(20) % 2
    with pytest.raises(DataError) as error:
        worth.of_features(np.ones((20, 4), np.float32), labels, "ab", 0, clouds(4, 4))
    assert error.value.number == 366


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("worth")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("XFER_CACHE", str(place / "cache"))
        patch.setattr(subsampling, "_REPEATS", (1, 4))
        run = xfer.run("digits_freeze", ["stages=[worth]", "data.digits=[6,9]"])
        return (place / run.folder).resolve()


def facts_of(run: Path, name: str) -> Any:
    return json.loads((run / name).read_text())


def test_the_run_leaves_numbers_a_table_a_drawing_and_a_page(measured: Path) -> None:
    facts, result = facts_of(measured, "worth.json"), facts_of(measured, "result.json")
    assert result["worth"]["more"] == facts["more"]
    assert "curve" not in result["worth"]
    assert facts["more"]["per_class"] == 100
    assert facts["more"]["images"] == facts["images"] + 100 * len(facts["classes"])
    assert facts["now"]["low"] <= facts["now"]["value"] <= facts["now"]["high"]
    assert set(facts["by_class"]) == set(facts["classes"])
    with (measured / "worth.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["class"] for row in rows} == {"", *facts["classes"]}
    assert all(row["measured"] or (row["low"] <= row["expected"] <= row["high"]) for row in rows)
    drawing = ET.parse(measured / "figures" / "worth.svg").getroot()
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
    page = (measured / "worth.html").read_text().replace("&nbsp;", " ")
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert facts["sentences"][0] in page
    assert "a curve of its own" in page


def test_the_class_that_gains_most_is_named_where_its_band_is_apart(measured: Path) -> None:
    facts = facts_of(measured, "worth.json")
    for high, named in ((0.031, False), (0.029, True)):
        name = max(facts["by_class"])
        for row in facts["by_class"].values():
            row["more"]["gain"] = {"value": 0.02, "low": 0.01, "high": high}
        facts["by_class"][name]["more"]["gain"] = {"value": 0.05, "low": 0.03, "high": 0.07}
        said = [line for line in sentences(facts) if "gains most" in line]
        most = f"Of the classes, '{name}' gains most: +5.0 points (95 % band +3.0 to +7.0)"
        assert said == [most] * named


def test_axe_finds_nothing_serious_on_its_pages(measured: Path) -> None:
    check_page(measured / "worth.html")


def test_what_was_not_asked_for_has_no_answer(measured: Path) -> None:
    result = facts_of(measured, "result.json")
    assert (result["scores"], result["best"], result["embed"]) == ({}, None, None)
    assert not (measured / "checkpoints").exists()


def test_the_validation_images_are_the_check_and_nothing_else(measured: Path) -> None:
    facts, plan = facts_of(measured, "worth.json"), facts_of(measured, "plan.json")
    assert facts["images"] == plan["splits"]["train"]["n"]
    assert facts["check"]["judged"] == plan["splits"]["val"]["n"]
    ends = facts["check"]["expected"]
    assert facts["check"]["inside"] == (ends["low"] <= facts["check"]["accuracy"] <= ends["high"])


def test_every_head_and_freeze_policy_has_the_same_features() -> None:
    base = ["experiment=digits_freeze", "data.digits=[6,9]", "stages=[worth]"]
    plans = [
        make_plan(compose_specs([*base, *extra]))
        for extra in ([], ["head=mlp", "optim=adamw"], ["freeze=lora", "optim=auto"])
    ]
    rows = [backbone_features(plan, "worth").rows["val"] for plan in plans]
    assert np.array_equal(rows[0], rows[1])
    assert np.array_equal(rows[0], rows[2])


@pytest.mark.parametrize(
    ("typed", "number", "fix"),
    [
        (["features=never"], 31, "features=auto"),
        (["checkpoint.path=runs/1"], 34, None),
    ],
)
def test_refusals_name_what_to_type(typed: list[str], number: int, fix: str | None) -> None:
    base = ["experiment=digits_freeze", "optim=auto", "stages=[worth]"]
    with pytest.raises(CombinationError) as error:
        worth.measure(make_plan(compose_specs([*base, *typed])))
    assert error.value.number == number
    if fix:
        assert fix in error.value.fix
        make_plan(compose_specs([*base, fix]))


def test_a_class_of_three_images_is_refused(tmp_path: Path) -> None:
    data = folders(tmp_path / "data", {"train/a": 6, "train/b": 3, "val/a": 2, "val/b": 2})
    typed = [f"data.root={data}", "backbone=digits_resnet", "source=none", "stages=[worth]"]
    with pytest.raises(DataError) as error:
        worth.measure(make_plan(compose_specs(typed)))
    assert (error.value.number, "'b'" in error.value.what) == (364, True)
    # Before anything is fitted, for it comes last.
    late = [*typed[:-1], "stages=[fit,worth]", f"run.dir={tmp_path / 'run'}"]
    with pytest.raises(DataError, match="E364"):
        xfer.run("default", late)
    assert not (tmp_path / "run").exists()


def test_one_class_is_refused(tmp_path: Path) -> None:
    data = folders(tmp_path / "data", {"train/a": 6, "val/a": 2})
    typed = [f"data.root={data}", "backbone=digits_resnet", "source=none", "stages=[worth]"]
    with pytest.raises(XferError) as error:
        worth.measure(make_plan(compose_specs(typed)))
    assert error.value.exit == 3
