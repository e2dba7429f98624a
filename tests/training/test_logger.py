from __future__ import annotations

import csv
import importlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import xfer
from xfer.core.errors import ConfigError
from xfer.training import logger
from xfer.training.logger import Csv, Mlflow, TensorBoard, Wandb


def test_csv_needs_no_further_logger(tmp_path: Path) -> None:
    assert Csv().build(tmp_path, "e") is None and not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [TensorBoard, Mlflow, Wandb], ids=lambda kind: kind.__name__)
def test_a_logger_whose_package_is_missing_says_what_to_install(
    kind: type[TensorBoard], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logger, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=rf'pip install "xfer-vision\[{kind.__name__.lower()}\]"'):
        kind()


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_writes_its_events_into_the_run_folder(tmp_path: Path) -> None:
    made = TensorBoard().build(tmp_path, "e")
    assert made is not None
    made.log_metrics({"val_acc": 0.5}, step=1)
    made.finalize("success")
    assert [p.parent for p in tmp_path.rglob("events.out.*")] == [tmp_path / "tensorboard"]


FILES = ("checkpoints/best.ckpt", "report.html", "report.md", "result.json")
WHOLE = ["trainer.max_epochs=2", "stages=[fit,evaluate,report]", "data.digits=[5,6]"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows_of(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


def figures(folder: Path) -> dict[str, Path]:
    found = {f"figures/{path.stem}": path for path in sorted((folder / "figures").glob("*.png"))}
    assert {"figures/prediction_grid", "figures/confusion_matrix", "figures/curves"} <= found.keys()
    return found


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
@pytest.mark.parametrize("experiment", ["digits_sgd", "digits_freeze"])
def test_tensorboard_has_the_figures_and_the_card(here: Path, experiment: str) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    short = WHOLE if experiment == "digits_sgd" else WHOLE[1:]  # a solved head has no epochs
    done = xfer.run(experiment, ["logger=tensorboard", *short])
    assert done.facts is not None
    sizes = {"images": 0, "tensors": 0, "scalars": 0}
    events = EventAccumulator(str(done.folder / "tensorboard"), sizes).Reload()
    assert sorted(events.Tags()["images"]) == sorted(figures(done.folder))
    for tag, path in figures(done.folder).items():
        (shown,) = events.Images(tag)
        assert shown.step == done.facts["best"]["step"]
        with Image.open(BytesIO(shown.encoded_image_string)) as ours, Image.open(path) as theirs:
            assert np.array_equal(np.asarray(ours), np.asarray(theirs.convert("RGB")))
    (card,) = events.Tensors("card/text_summary")
    assert card.tensor_proto.string_val[0].decode() == (done.folder / "report.md").read_text()
    values = [float(row["val_acc"]) for row in rows_of(done.folder)]
    assert [s.value for s in events.Scalars("val_acc")] == pytest.approx(values)
    if experiment == "digits_freeze":  # each strength that was tried
        assert len(events.Scalars("cv_loss")) == len(rows_of(done.folder)) > 5


def assert_in_mlflow(uri: str, folder: Path) -> None:
    """The run of ``folder`` is in the store, whole."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("digits_sgd")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == (folder.name, "FINISHED")
    history = [m.value for m in client.get_metric_history(run.info.run_id, "val_acc")]
    assert history == [float(row["val_acc"]) for row in rows_of(folder)]
    wanted = [*FILES, *(f"{tag}.png" for tag in figures(folder))]
    for name in wanted:
        copy = client.download_artifacts(run.info.run_id, name)
        assert Path(copy).read_bytes() == (folder / name).read_bytes(), name


MLFLOW = pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow is not installed")
# What its libraries say of themselves, in every run.
QUIET = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@MLFLOW
@QUIET
@pytest.mark.parametrize("uri", ["", "sqlite:///{}/store.db", "file:{}/store"])
def test_mlflow_has_the_files_in_its_local_stores(
    uri: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of the file store MLflow says that it is kept for old runs.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = uri.format(here)
    chosen = [f"logger.uri={uri}"] if uri else []
    done = xfer.run("digits_sgd", ["logger=mlflow", *chosen, *WHOLE])
    assert done.facts is not None and done.facts["warnings"] == []
    assert_in_mlflow(uri or f"sqlite:///{(done.folder / 'mlflow.db').resolve()}", done.folder)
    beside = {path.name for path in here.iterdir()} - {"outputs", "store.db", "store"}
    assert beside <= ({"mlruns"} if uri.startswith("sqlite") else set())


@MLFLOW
@QUIET
@pytest.mark.parametrize("uri", ["foo://x", "file:{}/store"])
def test_an_address_that_mlflow_refuses_ends_the_run_before_it_trains(uri: str, here: Path) -> None:
    with pytest.raises(ConfigError, match=r"E030: logger.uri: MLflow refuses"):
        xfer.run("digits_sgd", ["logger=mlflow", f"logger.uri={uri.format(here)}", *WHOLE])
    assert not list(here.rglob("metrics.csv"))


@MLFLOW
@QUIET
@pytest.mark.skipif(
    find_spec("mlflow") is None or find_spec("flask") is None, reason="mlflow has no server here"
)
def test_a_server_of_mlflow_has_them_and_its_end_is_a_warning(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri, store = f"http://127.0.0.1:{port}", here / "server"
    store.mkdir()
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{store}/db", "--artifacts-destination"]
    with (here / "server.log").open("w") as log:
        server = subprocess.Popen(
            [*command, str(store / "files")], cwd=store, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert server.poll() is None, (here / "server.log").read_text()
                time.sleep(0.2)
        done = xfer.run("digits_sgd", ["logger=mlflow", f"logger.uri={uri}", *WHOLE])
        assert done.facts is not None and done.facts["warnings"] == []
        assert_in_mlflow(uri, done.folder)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    gone = xfer.run("digits_sgd", ["logger=mlflow", f"logger.uri={uri}", *WHOLE])
    assert gone.facts is not None
    (warning,) = gone.facts["warnings"]
    assert warning.startswith("the logger Mlflow failed")


def of_wandb(file: Path) -> Iterator[bytes]:
    """The records of an offline run: blocks of 32 KiB, as LevelDB's log has them."""
    data, record, at = file.read_bytes(), b"", 7
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part of one
            yield record
            record = b""


@QUIET
@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_has_the_files_offline(here: Path) -> None:
    from wandb.proto.wandb_internal_pb2 import Record

    # Two in one process: the second is no continuation of the first.
    for _ in range(2):
        done = xfer.run("digits_sgd", ["logger=wandb", *WHOLE])
        assert done.facts is not None and done.facts["warnings"] == []
        (folder,) = (done.folder / "wandb").glob("offline-run-*")
        (file,) = folder.glob("*.wandb")
        records = [Record.FromString(data) for data in of_wandb(file)]
        kinds = [record.WhichOneof("record_type") for record in records]
        assert kinds.count("run") == kinds.count("exit") == 1
        artifacts = {r.artifact.type: r.artifact for r in records if r.HasField("artifact")}
        held = {kind: {e.path for e in a.manifest.contents} for kind, a in artifacts.items()}
        assert held == {"model": {FILES[0]}, "card": set(FILES[1:])}
        for entry in (e for a in artifacts.values() for e in a.manifest.contents):
            assert Path(entry.local_path).resolve() == (done.folder / entry.path).resolve()
        sizes = {e.path: e.size for a in artifacts.values() for e in a.manifest.contents}
        assert sizes == {name: (done.folder / name).stat().st_size for name in FILES}
        history = [r.history for r in records if r.HasField("history")]
        items = [(list(i.nested_key), json.loads(i.value_json)) for h in history for i in h.item]
        assert [v for k, v in items if k == ["val_acc"]] == [
            float(row["val_acc"]) for row in rows_of(done.folder)
        ]
        shown = {k[0]: v for k, v in items if k[1:] == ["path"]}
        assert shown.keys() == figures(done.folder).keys()
        for tag, picture in shown.items():
            drawn = Image.open(folder / "files" / picture)
            with drawn, Image.open(figures(done.folder)[tag]) as theirs:
                assert np.array_equal(np.asarray(drawn), np.asarray(theirs))


FAILS = """
from dataclasses import dataclass

from pytorch_lightning.loggers import CSVLogger

from xfer.training.logger import Csv

CALLED = []


@dataclass(frozen=True)
class Fails(Csv):
    at: str

    def build(self, folder, experiment):
        if self.at == "build":
            raise OSError("no room")
        at = self.at

        class Failing(CSVLogger):
            def log_metrics(self, *arguments, **named):
                CALLED.append("log_metrics")
                if at == "log_metrics":
                    raise OSError("no room")

            def finalize(self, status):
                CALLED.append("finalize")
                if at == "finalize":
                    raise OSError("no room")

        return Failing(folder)

    def attach(self, logger, files, step):
        CALLED.append("attach")
        if self.at == "attach":
            raise OSError("no room")
"""


@pytest.mark.parametrize(
    ("at", "experiment"),
    [
        *((at, "digits_sgd") for at in ("log_metrics", "finalize", "attach")),
        ("log_metrics", "digits_freeze"),
    ],
)
def test_a_logger_that_fails_is_a_warning_and_asked_no_more(
    at: str, experiment: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "failing.py").write_text(FAILS)
    monkeypatch.syspath_prepend(str(here))
    monkeypatch.delitem(sys.modules, "failing", raising=False)
    monkeypatch.setenv("XFER_ALLOW", "failing")
    chosen = ["logger._target_=failing.Fails", f"logger.at={at}"]
    # A card is drawn before anything is attached to a logger, and where the logger failed early
    # it says so too: one of both.
    draws = at == "attach" or experiment == "digits_freeze"
    stages = "stages=[fit,evaluate,report]" if draws else "stages=[fit,evaluate]"
    short = [] if experiment == "digits_freeze" else WHOLE[:1]
    done = xfer.run(experiment, [*chosen, *short, WHOLE[2], stages])
    result = json.loads((done.folder / "result.json").read_text())
    (warning,) = result["warnings"]
    assert re.fullmatch(
        r"the logger Fails failed, and has nothing of what came after "
        r"\(failing, line \d+: OSError: no room\)",
        warning,
    )
    assert warning in (done.folder / "run.log").read_text()
    if draws:
        assert "the logger Fails failed" in (done.folder / "report.html").read_text()
    assert importlib.import_module("failing").CALLED[-1] == at
    assert importlib.import_module("failing").CALLED.count(at) == 1
    assert json.loads((done.folder / "status.json").read_text())["state"] == "finished"


def test_a_logger_that_cannot_be_built_ends_the_run_before_it_trains(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "failing.py").write_text(FAILS)
    monkeypatch.syspath_prepend(str(here))
    monkeypatch.delitem(sys.modules, "failing", raising=False)
    monkeypatch.setenv("XFER_ALLOW", "failing")
    with pytest.raises(ConfigError, match=r"E221: failing, line \d+: OSError: no room"):
        xfer.run("digits_sgd", ["logger._target_=failing.Fails", "logger.at=build", *WHOLE])
    assert not list(here.rglob("metrics.csv"))
