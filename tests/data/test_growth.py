"""What an image more costs in memory: bytes, which no other process on the machine can change."""

from __future__ import annotations

import gc
import hashlib
import io
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from xfer.core import long_array, text_columns
from xfer.core.text_columns import Made, in_order
from xfer.core.types import Predictions, Samples
from xfer.data import Folder, Shards, scan
from xfer.data.image_hash import alike
from xfer.data.scan import Facts
from xfer.evaluation import leave_one_out
from xfer.evaluation.leave_one_out import coordinates
from xfer.evaluation.neighbours import directions
from xfer.evaluation.predict import summary, write_predictions
from xfer.report import prediction_page
from xfer.report.confidence import recall_curves
from xfer.report.heat import Heat
from xfer.training import feature_moments
from xfer.training.calibrate import before_and_after
from xfer.training.cross_validation import HeadProblem
from xfer.training.features.extract import Extraction
from xfer.training.logistic import Problem

FEW, MANY, A_SHARD = 1000, 4000, 250
MOST = 100  # bytes an image


def read(path: object) -> Facts:
    """What a scan would find: to read the images is most of its time."""
    digest = hashlib.sha256(str(path).encode()).hexdigest()
    return Facts(path, digest, size=(16, 16))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are not decoded, and a thousand of them have arrays where a million have them."""
    monkeypatch.setattr(scan, "inspect", read)
    monkeypatch.setattr(long_array, "LONG", 1 << 10)


def in_shards(root: Path, count: int) -> Shards:
    root.mkdir()
    for start in range(0, count, A_SHARD):
        with tarfile.open(root / f"{start:06d}.tar", "w") as tar:
            for i in range(start, start + A_SHARD):
                for suffix, data in (("jpg", b"image"), ("cls", b"ab"[i % 2 : i % 2 + 1])):
                    info = tarfile.TarInfo(f"{i:09d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return Shards(str(root))


def in_folders(root: Path, count: int) -> Folder:
    for i in range(count):
        path = root / f"{i % 20:02d}" / f"{i:09d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return Folder(str(root))


def growth(run: Callable[[int], object]) -> float:
    """Bytes at most that an image more takes while it runs."""
    peaks = []
    for count in (FEW, MANY):
        tracemalloc.start()
        run(count)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return (peaks[1] - peaks[0]) / (MANY - FEW)


@pytest.mark.parametrize("write", [in_shards, in_folders])
def test_a_plan_takes_a_hundred_bytes_an_image_at_most(
    tmp_path: Path, write: Callable[[Path, int], Shards | Folder]
) -> None:
    data = {count: write(tmp_path / str(count), count) for count in (FEW, MANY)}
    for turn in ("all are read", "all are known"):
        assert growth(lambda count: data[count].dataset(True)) < MOST, turn


def test_names_of_files_are_sorted_without_a_list_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_columns, "_SORTED", 1 << 8)
    monkeypatch.setattr(text_columns, "_AT_ONCE", 1 << 4)

    def listed(count: int) -> None:
        assert len(in_order(f"{i * 7919 % count:09d}.jpg" for i in range(count))) == count

    assert growth(listed) < 65  # sorted as a list they take 98


def test_looks_are_compared_without_holding_them() -> None:
    looks = Made(3 * MANY, lambda i: hashlib.sha256(bytes(str(i), "ascii")).hexdigest())
    assert growth(lambda count: alike(looks[:1], looks[1 : 3 * count])) < 20  # its bits have 256
    assert alike(looks[:3], looks[1:MANY]).tolist() == [[1, 0], [2, 1]]


def test_of_looks_that_are_all_alike_only_those_asked_for_are_held() -> None:
    same = [hashlib.sha256(b"0").hexdigest()] * MANY
    none = lambda i, j: i > len(same) + j  # noqa: E731
    assert growth(lambda count: alike(same[:count], same[:count], none)) < 10_000  # all: 40,000


def test_held_out_images_are_answered_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_moments, "_BLOCK", 1 << 12)
    features = np.random.default_rng(0).normal(size=(MANY, 64)).astype(np.float32)
    labels = np.arange(MANY) % 3
    given = ((), 3, lambda counts: None, False, 0.0, (0.1,), 2, 0)
    problems, theta = dict[int, Problem](), np.ones((3, 65))
    for count in (FEW, MANY):
        some = features[:count]
        problems[count] = Problem(HeadProblem([some], some, labels[:count], *given).rows())
    into = np.empty((MANY, 3), np.float32)
    assert growth(lambda count: problems[count].answer(theta, 0, into[:count])) < 20  # a fold: 256


def test_places_of_features_are_where_the_system_can_take_them_back() -> None:
    batches = lambda split, view: [range(MANY // 2, MANY), range(MANY // 2)]  # noqa: E731
    work: Any = SimpleNamespace(splits={"train": range(MANY)}, batches=batches)
    rows = Extraction.positions(work, "train", 0)
    assert isinstance(rows, np.memmap) and rows.tolist() == [*range(2000, 4000), *range(2000)]


def test_moments_and_answers_hold_one_block_in_double_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    block = 1 << 16
    monkeypatch.setattr(feature_moments, "_BLOCK", block)
    features = np.random.default_rng(0).normal(size=(MANY, 64)).astype(np.float32)
    given = ((), 3, lambda counts: None, False, 0.0, (0.1,), 2, 0)
    problem = Problem(HeadProblem([features], features, np.arange(MANY) % 3, *given).rows())
    into, theta = np.empty((MANY, 3), np.float32), np.ones((3, 65))
    for run in (
        lambda: feature_moments.moments([features]),
        lambda: problem.answer(theta, 0, into),
    ):
        tracemalloc.start()
        run()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1.5 * 8 * block  # they held three and two


def test_a_head_is_solved_on_labels_that_are_not_copied() -> None:
    features, labels = np.zeros((MANY, 4), np.float32), np.arange(MANY) % 3

    def divided(count: int) -> None:
        some = features[:count]
        given = ((), 3, lambda counts: None, False, 0.0, (0.1,), 2, 0)
        HeadProblem([some], some, labels[:count], *given).rows()

    divided(1)
    assert growth(divided) < 28  # with labels, positions and weights of their own 40


def test_a_table_of_predictions_is_written_without_holding_it(tmp_path: Path) -> None:
    names = [f"{i:09d}.jpg" for i in range(MANY)]
    logits = np.random.default_rng(0).normal(size=(MANY, 50)).astype(np.float32)
    classes = tuple(f"class {i}" for i in range(50))

    def write(count: int) -> None:
        write_predictions(Predictions(names[:count], logits[:count], None, classes), tmp_path / "p")

    assert growth(write) < 20  # its lines have 500
    assert len((tmp_path / "p").read_text().splitlines()) == MANY + 1


@pytest.mark.parametrize("task", [{}, {"kind": "multilabel", "thresholds": [0.5] * 10}])
def test_the_first_predictions_cost_no_more_for_those_that_are_not_shown(
    monkeypatch: pytest.MonkeyPatch, task: dict[str, Any]
) -> None:
    for name in ("_of_one", "_of_labels"):
        monkeypatch.setattr(prediction_page, name, lambda *given: (Heat(""), []))
    monkeypatch.setattr(prediction_page, "lay_out", lambda *given, **kinds: None)
    specs = SimpleNamespace(predict_maps=3, predict_input=["a"], tta="none", command="xfer")
    plan: Any = SimpleNamespace(specs=specs, card=SimpleNamespace(input=None))
    work: Any = SimpleNamespace(plan=plan, checkpoint=lambda: "b")
    logits = np.random.default_rng(0).normal(size=(MANY, 10)).astype(np.float32)
    names, unknown, net = Made(MANY, str), np.full(MANY, -1), SimpleNamespace()

    def tell(count: int) -> None:
        samples = Samples(names[:count], unknown[:count], np.empty(count), "")  # type: ignore[arg-type]
        answers = Predictions(names[:count], logits[:count], None, tuple("abcdefghij"), task=task)
        assert len(summary(answers, Path("a.csv"))) == 21
        prediction_page.answer_page(work, net, samples, answers, Path("a.csv"))  # type: ignore[arg-type]

    assert growth(tell) < 20  # by name they had 150, and with several labels 400


def test_a_report_holds_neither_curves_nor_scaled_answers_by_image() -> None:
    drawn = np.random.default_rng(0)
    labels = drawn.integers(0, 10, MANY)
    logits = drawn.normal(size=(MANY, 10)).astype(np.float32)
    names = Made(MANY, str)
    scaled = {"method": "temperature", "temperature": 2.0, "fitted_on": "val"}

    def held(make: Callable[[Predictions], object], count: int) -> int:
        classes = tuple("abcdefghij")
        answers = Predictions(names[:count], logits[:count], labels[:count], classes)
        tracemalloc.start()
        made = make(answers)
        gc.collect()
        kept = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        del made
        return kept

    for make in (recall_curves, lambda answers: before_and_after(scaled, answers, True, 0)):
        kept = [held(make, count) for count in (FEW, FEW, MANY)]
        assert kept[2] - kept[1] < 10 * (MANY - FEW)  # they had 160 and 120 an image


def test_directions_of_features_are_where_the_system_can_take_them_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leave_one_out, "BLOCK", 1 << 12)
    features = np.random.default_rng(0).normal(size=(MANY, 64)).astype(np.float32)
    at = {count: coordinates(features[:count]) for count in (FEW, MANY)}
    assert growth(lambda count: directions(at[count])) < 50  # they have 256
