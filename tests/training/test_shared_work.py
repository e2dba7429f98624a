"""What ranks do in equal parts beside the fit: answers, and what a head is solved on. Two processes
give what one gives, bit for bit, and one that dies meanwhile ends the run."""

from __future__ import annotations

import os
import pickle
import signal
from pathlib import Path

import labelled
import numpy as np
import pytest
import torch
import warm
from pictures import folders
from ranks import FORKED, by_variables_alone, shape
from runs import assert_equal, assert_same, facts, finish, only_run, rows, start

from xfer.config.hydra import compose_specs
from xfer.core.errors import LaunchError
from xfer.core.torch_file import load_tensors
from xfer.core.types import Card, InputSpec, Samples
from xfer.evaluation.evaluate import Reading, answers
from xfer.plan.make import make_plan
from xfer.training.distributed.group import ProcessGroup
from xfer.training.distributed.rendezvous import SentPlan
from xfer.training.inference import _shared

TWO = ["trainer.devices=2", "trainer.accelerator=cpu"]
ONE = ["trainer.accelerator=cpu"]
PHOTOS = {"a": 30, "b": 39}
# Several batches, so that there is something to share out, the last one smaller.
SOLVED = [
    *("experiment=digits_freeze", "certificate.coverage=0.9", "data.eval_batch_size=32"),
    *("stages=[fit,evaluate,predict]", "predict.input=photos", "report.maps=0"),
]


def ran(place: Path, name: str, *typed: str, **env: str) -> Path:
    finish(warm.start(place, *typed, f"run.dir={name}", **env))
    return place / name


def same_tables(one: Path, two: Path) -> list[str]:
    """The tables of answers, which must be the same bytes in both."""
    names = sorted(path.name for path in one.glob("predictions*.csv"))
    assert names == sorted(path.name for path in two.glob("predictions*.csv"))
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)
    assert facts(one).get("scores") == facts(two).get("scores")
    return names


def assert_same_entries(place: Path) -> None:
    """Under the keys that they have for one process, and no part is left."""
    kept = [
        {path.name: path.read_bytes() for path in (place / name / "features").glob("*.npy")}
        for name in ("first", "second")
    ]
    assert kept[0] == kept[1] and kept[0]
    assert list((place / "second" / "features").glob(".*.part")) == []


def assert_solved_alike(one: Path, two: Path) -> None:
    assert rows(one) == rows(two)
    for name in ("best", "last"):
        ours, theirs = (load_tensors(run / f"checkpoints/{name}.ckpt") for run in (two, one))
        for content in (ours, theirs):
            content["xfer"].pop("run")  # another configuration is another run
        assert_equal(ours, theirs, name)


def test_two_ranks_solve_evaluate_and_predict_as_one_process(tmp_path: Path) -> None:
    """Features, prediction sets, p-values and calibrated probabilities among it."""
    folders(tmp_path / "photos", PHOTOS)
    one = ran(tmp_path, "one", *ONE, *SOLVED, XFER_CACHE=str(tmp_path / "first"))
    typed, two = [*TWO, *SOLVED, "run.dir=two"], tmp_path / "two"
    both = {"script": FORKED + warm.COMMAND, "XFER_CACHE": str(tmp_path / "second")}
    said = finish(warm.start(tmp_path, *typed, **both))
    assert "the head is solved exactly, by rank 0 on features that all ranks compute" in said
    names = ["predictions.csv", "predictions_cv.csv", "predictions_val.csv"]
    assert same_tables(one, two) == names
    assert_solved_alike(one, two)
    assert_same_entries(tmp_path)
    # The answers are shared as well, so that they need a launcher where there are several nodes.
    words = ["experiment=digits_freeze", *ONE, *shape(2, 1), f"checkpoint.path={two}"]
    with pytest.raises(LaunchError, match=r"trainer\.nodes: is 2, and no launcher"):
        make_plan(compose_specs([*words, "stages=[evaluate]"]))


class Half(ProcessGroup):
    """One of two ranks that nobody answers."""

    def __init__(self, rank: int) -> None:
        self.rank, self.ranks, self.local, self._group = rank, 2, rank, None


def test_each_rank_answers_an_equal_part_in_the_batches_of_one_process() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))
    seen: list[int] = []
    net.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    spec = InputSpec((8, 8), None, "bilinear", (0.5,) * 3, (0.5,) * 3)
    images = [np.full((8, 8, 3), i, np.uint8) for i in range(37)]
    from PIL import Image

    names, labels = tuple(map(str, range(37))), np.zeros(37, np.int64)
    samples = Samples(names, labels, [Image.fromarray(i) for i in images], "")
    reading, classes = Reading(batch_size=8), ("a", "b", "c")
    whole = answers(net, samples, spec, classes, reading)
    assert seen == [8, 8, 8, 8, 5]
    card, cpu = Card({}, {}, classes, spec), torch.device("cpu")
    parts = []
    for rank, sizes in ((0, [8, 8]), (1, [8, 8, 5])):
        seen.clear()
        at, logits, _ = _shared(net, card, samples, reading, cpu, Half(rank), None)
        assert seen == sizes and len(at) == sum(sizes)
        parts.append(logits)
    assert (np.concatenate(parts) == whole.logits).all()


def test_ranks_are_not_sent_the_classifier_of_the_source() -> None:
    words = ["experiment=digits_sgd", "stages=[audit]", "features=auto", "data.digits=[5,6,7]"]
    plan = make_plan(specs := compose_specs(words))
    assert plan.source_head is not None
    sent = pickle.dumps(SentPlan.of(plan))
    carried = plan.source_head[0].numpy().tobytes() in sent
    assert not carried and pickle.loads(sent).received(specs).source_head is None


# What follows starts many processes.


@pytest.mark.slow
@pytest.mark.parametrize(
    "typed",
    [
        ["head=knn"],
        # Validation in one batch, which two ranks could not share if they had to.
        ["augment=standard", "features.views=2", "data.eval_batch_size=200"],
        ["loss=distill", "loss.teacher=teacher", "calibration=temperature"],
    ],
    ids=["knn", "views", "taught"],
)
def test_heads_without_steps_are_the_same_on_two_ranks(typed: list[str], tmp_path: Path) -> None:
    if "loss=distill" in typed:
        tuned = ["experiment=digits_sgd", "freeze=none", "trainer.max_epochs=1", "stages=[fit]"]
        ran(tmp_path, "teacher", *ONE, *tuned)
    typed = ["experiment=digits_freeze", "stages=[fit,evaluate]", *typed]
    one = ran(tmp_path, "one", *ONE, *typed, XFER_CACHE=str(tmp_path / "first"))
    two = ran(tmp_path, "two", *TWO, *typed, XFER_CACHE=str(tmp_path / "second"))
    same_tables(one, two)
    assert_solved_alike(one, two)
    assert_same_entries(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of one process, and pictures to predict beside it."""
    place = tmp_path_factory.mktemp("trained")
    folders(place / "photos", PHOTOS)
    short = ["experiment=digits_sgd", "trainer.max_epochs=1", "stages=[fit]"]
    ran(place, "run", *ONE, *short, "calibration=vector", "certificate.coverage=0.9")
    return place


ANSWERED = ["checkpoint.path=run", "data.eval_batch_size=32"]
EVALUATED = [
    "experiment=digits_sgd",
    *ANSWERED,
    "stages=[evaluate,predict]",
    "predict.input=photos",
]


@pytest.mark.slow
@pytest.mark.parametrize("tta", ["none", "flip"])
def test_a_checkpoint_is_evaluated_by_two_ranks(trained: Path, tta: str) -> None:
    typed = [*EVALUATED, f"tta={tta}"]
    one = ran(trained, f"one_{tta}", *ONE, *typed)
    two = ran(trained, f"two_{tta}", *TWO, *typed)
    assert same_tables(one, two) == ["predictions.csv", "predictions_val.csv"]
    assert ("p_unlike" in (two / "predictions.csv").read_text()) is (tta == "none")


@pytest.mark.slow
def test_predictions_beside_a_run_are_those_of_its_ranks(trained: Path) -> None:
    """Without a folder of their own, and by ranks that a launcher has started."""
    typed = ["experiment=digits_sgd", *ANSWERED, "stages=[predict]", "predict.input=photos"]
    finish(warm.start(trained, *ONE, *typed))
    (table,) = (trained / "run").glob("predictions*.csv")
    one = table.read_bytes()
    table.unlink()
    finish(warm.start(trained, *TWO, *typed))
    assert table.read_bytes() == one
    table.unlink()
    for run in by_variables_alone(trained, 3, 1, *typed):
        finish(run)
    assert table.read_bytes() == one


@pytest.mark.slow
def test_a_source_with_its_own_head_is_evaluated_by_two_ranks(tmp_path: Path) -> None:
    # With the weights that ship with xfer, which know other digits than these.
    typed = [*("experiment=digits_sgd", "head=keep", "data=digits_0_4", "stages=[evaluate]")]
    one, two = ran(tmp_path, "one", *ONE, *typed), ran(tmp_path, "two", *TWO, *typed)
    assert same_tables(one, two) == ["predictions_val.csv"]


@pytest.mark.slow
def test_several_labels_are_answered_by_two_ranks(tmp_path: Path) -> None:
    named = [(f"images/{name}", s) for name, s in labelled.digits(tmp_path / "images", 101)]
    labelled.write_columns(tmp_path / "columns.csv", named, unknown=0.3)
    typed = [
        *("experiment=digits_freeze", "data=csv", "data.file=columns.csv", "task=multilabel"),
        *("data.leakage=ignore", "stages=[fit,evaluate,predict]", "predict.input=images"),
        *("data.eval_batch_size=8", "tta=flip"),
    ]
    one = ran(tmp_path, "one", *ONE, *typed, XFER_CACHE=str(tmp_path / "first"))
    two = ran(tmp_path, "two", *TWO, *typed, XFER_CACHE=str(tmp_path / "second"))
    assert len(same_tables(one, two)) == 3
    assert_solved_alike(one, two)


PART = """
import os, signal, sys
from dataclasses import dataclass
from xfer.data.augment import Plain
from xfer.training import inference

@dataclass(frozen=True)
class Deadly(Plain):
    seed: int = 0

if sys.argv[0].endswith("rank.py") and "SPARED" not in os.environ:
    inference.answered = lambda *given: os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_rank_that_is_killed_while_it_evaluates_ends_the_run_which_resumes(
    tmp_path: Path,
) -> None:
    (tmp_path / "parts.py").write_text(PART)
    (tmp_path / "conf" / "augment").mkdir(parents=True)
    (tmp_path / "conf" / "augment" / "deadly.yaml").write_text("_target_: parts.Deadly\n")
    options = ["--allow", "parts", "--config-dir", "conf", "augment=deadly", *TWO]
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    run = start(tmp_path, *options, "data.batch_size=16", "run.dir=killed", PYTHONPATH=path)
    output = run.communicate(timeout=600)[0]
    assert run.returncode == 8 and "the system killed rank 1" in output, output
    assert "Traceback" not in output
    killed = tmp_path / "killed"
    status = facts(killed, "status.json")
    assert (status["state"], status["exit"]) == ("failed", 8)
    again = [*options, "data.batch_size=16", "checkpoint.resume=auto", "run.dir=killed"]
    finish(start(tmp_path, *again, PYTHONPATH=path, SPARED="1"))
    finish(start(tmp_path, *options, "data.batch_size=16", PYTHONPATH=path, SPARED="1"))
    assert_same(killed, only_run(tmp_path))
    assert facts(killed)["scores"] == facts(only_run(tmp_path))["scores"]


BROKEN = """
from xfer.core.errors import DataError
from xfer.training import inference
whole = inference.answered
def without_first(*given):
    at, logits = whole(*given)
    given[-1].append(DataError("one.jpg", "is cut", "replace it", 1))
    return at[1:], logits[1:]
inference.answered = without_first
from xfer.__main__ import main
main()
"""


@pytest.mark.slow
def test_an_image_that_breaks_in_another_ranks_part_is_left_out_and_counted(trained: Path) -> None:
    typed = ["experiment=digits_sgd", *ANSWERED, "stages=[predict]", "predict.input=photos"]
    one = ran(trained, "all", *ONE, *typed, "tta=flip")
    script = {"script": BROKEN}
    for run in by_variables_alone(trained, 2, 1, *typed, "tta=flip", "run.dir=left", **script):
        finish(run)
    rows = (one / "predictions.csv").read_text().splitlines()
    # Five batches of 16 images in two views each: rank 0 has the first two.
    del rows[1 + 32]
    assert (trained / "left" / "predictions.csv").read_text().splitlines() == rows
    said = (trained / "left" / "run.log").read_text()
    assert "1 of 69 files is broken inside and left out" in said and "one.jpg" in said


KILLED = """
import os, signal
from xfer.training import inference
inference.answered = lambda *given: os.kill(os.getpid(), signal.SIGKILL)
from xfer.__main__ import main
main()
"""


@pytest.mark.slow
def test_a_launchers_rank_that_is_killed_while_it_predicts_ends_all_by_name(trained: Path) -> None:
    typed = [*EVALUATED, "run.dir=by_variables"]
    runs = by_variables_alone(trained, 3, 1, *typed, script=KILLED)
    output = runs[0].communicate(timeout=600)[0]
    assert runs[0].returncode == 1 and "error E124: trainer.nodes: rank 2 on" in output, output
    assert runs[1].communicate(timeout=600) and runs[1].returncode == 1
    assert runs[2].communicate() and runs[2].returncode == -signal.SIGKILL
    for run in by_variables_alone(trained, 3, 1, *typed, "checkpoint.resume=auto"):
        finish(run)
    one = ran(trained, "alone", *ONE, *EVALUATED)
    assert same_tables(one, trained / "by_variables") == ["predictions.csv", "predictions_val.csv"]
