"""An exported file predicts alone, as the checkpoint does, and torch is never imported."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from pictures import folders
from PIL import Image
from runs import table

import xfer
from xfer.core.errors import ConfigError, DataError, Problems, WeightsError
from xfer.data.scan import inspect
from xfer.evaluation.onnx_predict import in_words
from xfer.export.parity import SIZES


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short real run, exported both ways."""
    place = tmp_path_factory.mktemp("run")
    before = Path.cwd()
    os.chdir(place)
    try:
        options = ["trainer.max_epochs=1", "stages=[fit,export]", "export=[onnx,onnx_image]"]
        return xfer.run("digits_sgd", options).folder.resolve()
    finally:
        os.chdir(before)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return folders(tmp_path, {"photos": 40})


def predicted(*overrides: str) -> list[dict[str, str]]:
    result = xfer.run(overrides=["stages=[predict]", *overrides])
    return table(Path(result.facts["predictions"]))


@pytest.mark.parametrize("name", ["model.onnx", "model_image.onnx"])
def test_the_file_gives_the_table_of_the_checkpoint(
    name: str, run_folder: Path, place: Path
) -> None:
    want = predicted(f"checkpoint.path={run_folder}", "predict.input=photos")
    got = predicted(f"predict.model={run_folder}/export/{name}", "predict.input=photos")
    assert len(want) == 40
    assert [list(row) for row in got] == [list(row) for row in want]
    for a, b in zip(want, got, strict=True):
        assert (a["path"], a["prediction"]) == (b["path"], b["prediction"])
        for key in set(a) - {"path", "prediction"}:
            assert float(a[key]) == pytest.approx(float(b[key]), abs=3e-6)


KINDS = {
    "jpg": "RGB", "jpeg": "CMYK", "png": "RGB", "alpha.png": "RGBA", "grey.png": "L",
    "webp": "RGB", "gif": "P", "bmp": "RGB", "tif": "RGB",
}  # fmt: skip


def test_108_sizes_and_kinds_of_files_give_the_answers_of_the_checkpoint(
    run_folder: Path, place: Path, assets: Path
) -> None:
    (place / "all").mkdir()
    photos = sorted((assets / "Canidae" / "val").rglob("*.jpg"))
    for i, size in enumerate(SIZES):
        with Image.open(photos[i]) as photo:
            for kind, mode in KINDS.items():
                picture = photo.convert("RGB").resize(size).convert(mode)
                if mode == "RGBA":
                    picture.putalpha(photo.convert("L").resize(size))
                picture.save(place / "all" / f"{i}.{kind}")
    want = predicted(f"checkpoint.path={run_folder}", "predict.input=all")
    got = predicted(f"predict.model={run_folder}/export/model_image.onnx", "predict.input=all")
    assert len(want) == len(SIZES) * len(KINDS) == 108
    assert [row["path"] for row in got] == [row["path"] for row in want]
    assert [row["prediction"] for row in got] == [row["prediction"] for row in want]
    for key in want[0]:
        if key.startswith("p_"):
            far = [abs(float(a[key]) - float(b[key])) for a, b in zip(want, got, strict=True)]
            assert max(far) <= 1e-3


NO_TORCH = """
import sys

class Barrier:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "timm", "pytorch_lightning", "onnx"):
            raise RuntimeError("imported " + name)

sys.meta_path.insert(0, Barrier())
sys.argv = ["xfer", *sys.argv[1:]]
from xfer.__main__ import main
main()
"""


def command(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", NO_TORCH, *words],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_whole_command_runs_without_torch_and_reports_nothing_home(
    run_folder: Path, place: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("home")
    model = f"predict.model={run_folder}/export/model.onnx"
    where = {"HOME": str(home), "XDG_CACHE_HOME": str(home)}
    done = command("stages=[predict]", model, "predict.input=photos", "run.dir=out", **where)
    assert (done.returncode, done.stderr) == (0, "")
    assert "40 predictions in out/predictions.csv" in done.stdout
    assert list(home.iterdir()) == []
    result = json.loads(Path("out/result.json").read_text())
    assert (result["status"], result["predicted"]) == ("finished", 40)
    status = json.loads(Path("out/status.json").read_text())
    assert {"predictions.csv", "plan.json", "config.yaml"} <= set(status["files"])
    # The barrier works: the same through the checkpoint needs torch.
    other = command("stages=[predict]", f"checkpoint.path={run_folder}", "predict.input=photos")
    assert other.returncode == 1
    assert "imported torch" in other.stderr


def test_broken_images_are_counted_and_left_out(
    run_folder: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "photos" / "07.jpg").write_bytes(b"no image")
    (place / "photos" / "09.png").write_bytes(b"")
    model = f"predict.model={run_folder}/export/model.onnx"
    rows = predicted(model, "predict.input=photos")
    told = capsys.readouterr().out
    assert "2 of 41 files are broken and left out: photos/07.jpg: it is not an image" in told
    assert len(rows) == 39
    assert "photos/07.jpg" not in {row["path"] for row in rows}
    same = predicted(f"checkpoint.path={run_folder}", "predict.input=photos")
    assert [row["path"] for row in same] == [row["path"] for row in rows]


def broken_inside(path: Path) -> Path:
    """A JPEG whose beginning and end are in place and whose code table is nonsense."""
    data = path.read_bytes()
    at = data.index(b"\xff\xc4") + 5
    path.write_bytes(data[:at] + b"\xff" * 16 + data[at + 16 :])
    return path


@pytest.mark.parametrize("kind", ["file", "checkpoint"])
def test_what_only_decoding_finds_broken_is_counted_and_left_out(
    kind: str, run_folder: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = {
        "file": f"predict.model={run_folder}/export/model.onnx",
        "checkpoint": f"checkpoint.path={run_folder}",
    }[kind]
    whole = predicted(model, "predict.input=photos")
    for name in ("00", "17", "39"):
        broken_inside(place / "photos" / f"{name}.jpg")
    assert inspect(place / "photos" / "17.jpg").problem is None, "the scan must not find it"
    rows = predicted(model, "predict.input=photos")
    told = capsys.readouterr().out
    (line,) = [line for line in told.splitlines() if "left out" in line]
    assert line.startswith("3 of 40 files are broken inside and left out: photos/00.jpg: cannot ")
    assert line.count("broken data stream") == 3 and "xfer: error" not in line, line
    want = [row for i, row in enumerate(whole) if i not in (0, 17, 39)]
    for key in ("path", "prediction"):
        assert [row[key] for row in rows] == [row[key] for row in want]
    for row, other in zip(rows, want, strict=True):
        assert float(row["confidence"]) == pytest.approx(float(other["confidence"]), abs=1e-5)
    with pytest.raises(DataError, match=r"E310: .*17\.jpg: cannot be read as an image"):
        predicted(model, "predict.input=photos/17.jpg")


def test_a_folder_of_broken_images_alone_is_an_error(run_folder: Path, place: Path) -> None:
    (place / "bad").mkdir()
    (place / "bad" / "a.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"E310: bad/a\.jpg: cannot be read as an image"):
        predicted(f"predict.model={run_folder}/export/model.onnx", "predict.input=bad")


def foreign(
    path: Path, shape: tuple[Any, ...] = ("n", 3, 8, 8), kind: int = 1, more: tuple[str, ...] = ()
) -> Path:
    """Somebody's own file: the mean of each channel, no metadata. ``more`` are further inputs."""
    helper = onnx.helper
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)],
        "means",
        [helper.make_tensor_value_info(name, kind, shape) for name in ("x", *more)],
        [helper.make_tensor_value_info("y", kind, (*shape[:1], 3))],
        [onnx.numpy_helper.from_array(np.array([2, 3]), "axes")],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


RECIPE = {
    "size": [8, 8], "resize": None, "interpolation": "bilinear",
    "mean": [0, 0, 0], "std": [1, 1, 1],
}  # fmt: skip


def test_what_is_known_of_a_file_is_said_in_words() -> None:
    known: Any = {
        **{"experiment": "more", "stages": ["predict"], "model": "m.onnx", "sha256": 64 * "a"},
        **{"classes": [*"abcdefg"], "input": {"size": [32, 48]}, "certificate": {"coverage": 0.9}},
    }
    known["certificate"]["by_class"] = False
    specs: Any = SimpleNamespace(tta="flip")
    views = in_words(specs, known, several=False).splitlines()
    assert views == [
        "run          more: predict",
        "classes      7: a, b, c, d, e, f, ...",
        "network      m.onnx, sha256 aaaaaaaaaaaa; 32 x 48 pixels",
        "answers      mean probabilities of 2 views an image (flip)",
        "certificate  no prediction sets and no p_unlike: they hold for one view, tta is flip",
    ]
    whole = in_words(SimpleNamespace(tta="none"), known, several=True)  # type: ignore[arg-type]
    assert whole.splitlines()[3:] == [
        "certificate  prediction sets with 90 % of an image's labels on average"
    ]


def test_a_foreign_file_needs_labels_and_a_recipe_and_says_so(place: Path) -> None:
    foreign(place / "own.onnx")
    asked = ("predict.model=own.onnx", "predict.input=photos")
    with pytest.raises(Problems) as caught:
        predicted(*asked)
    assert [error.number for error in caught.value.errors] == [297, 298]
    assert "predict.recipe=preprocess.json" in str(caught.value)
    (place / "r.json").write_text(json.dumps(RECIPE))
    (place / "labels.txt").write_text("red\ngreen\nblue\n")
    rows = predicted(*asked, "predict.recipe=r.json", "predict.labels=[red,green,blue]")
    assert rows == predicted(*asked, "predict.recipe=r.json", "predict.labels=labels.txt")
    assert list(rows[0]) == ["path", "prediction", "confidence", "p_red", "p_green", "p_blue"]
    with pytest.raises(WeightsError, match=r"answers \(32, 3\) for 32 images and 2 classes"):
        predicted(*asked, "predict.recipe=r.json", "predict.labels=[red,green]")
    (place / "labels.txt").write_text("red\ncafe\u0301\nblue\n", encoding="utf-8")
    for labels in ("labels.txt", "[red,cafe\u0301,blue]"):
        rows = predicted(*asked, "predict.recipe=r.json", f"predict.labels={labels}")
        assert list(rows[0])[4] == "p_caf\u00e9"
    (place / "r.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"E298: .*is not an input recipe"):
        predicted(*asked, "predict.recipe=r.json", "predict.labels=[red,green,blue]")
    (place / "r.json").write_text(json.dumps(RECIPE | {"size": [9, 8]}))
    with pytest.raises(WeightsError, match=r"E445: .*shape \(3, 9, 8\)"):
        predicted(*asked, "predict.recipe=r.json", "predict.labels=[red,green,blue]")


def test_an_exported_file_as_a_checkpoint_leads_to_its_own_key(
    run_folder: Path, place: Path
) -> None:
    with pytest.raises(WeightsError, match="is an ONNX network") as told:
        predicted(f"checkpoint.path={run_folder}/export/model.onnx", "predict.input=photos")
    typed = told.value.fix.removeprefix("type ").removesuffix(" in place of checkpoint.path")
    result = xfer.run(overrides=[*shlex.split(typed), "predict.input=photos"])
    assert len(table(Path(result.facts["predictions"]))) == 40


def test_a_fixed_batch_size_is_filled_up(place: Path) -> None:
    (place / "r.json").write_text(json.dumps(RECIPE))
    asked = ("predict.input=photos", "predict.recipe=r.json", "predict.labels=[red,green,blue]")
    foreign(place / "free.onnx")
    foreign(place / "seven.onnx", (7, 3, 8, 8))
    want = predicted("predict.model=free.onnx", *asked)
    assert predicted("predict.model=seven.onnx", *asked) == want


def test_a_file_exported_with_a_fixed_batch_size_predicts_a_folder(
    run_folder: Path, place: Path
) -> None:
    exported = xfer.run(
        overrides=[
            "stages=[export]",
            f"checkpoint.path={run_folder}",
            "data=digits",
            "export=[onnx,mindir]",
            "export.onnx.batch=7",
            "export.onnx.file=seven",
            "export.mindir.file=named",
        ]
    )
    assert (exported.folder / "export" / "named.mindir").is_file()
    file = exported.folder / "export" / "seven.onnx"
    (put,) = onnx.load(file).graph.input
    dims = [d.dim_value or d.dim_param for d in put.type.tensor_type.shape.dim]
    assert dims == [7, 3, 32, 32]
    want = predicted(f"predict.model={run_folder}/export/model.onnx", "predict.input=photos")
    got = predicted(f"predict.model={file}", "predict.input=photos")
    assert [row["prediction"] for row in got] == [row["prediction"] for row in want]
    for row, other in zip(got, want, strict=True):
        assert float(row["confidence"]) == pytest.approx(float(other["confidence"]), abs=3e-6)


def test_what_is_no_image_classifier_is_refused(place: Path) -> None:
    foreign(place / "four.onnx", ("n", 4, 8, 8))
    foreign(place / "flat.onnx", ("n", 3, 8, 8, 1))
    foreign(place / "double.onnx", kind=onnx.TensorProto.DOUBLE)
    foreign(place / "two.onnx", more=("mask",))
    (place / "text.onnx").write_text("text")
    for name, message in {
        "four.onnx": "E444: .*does not take images",
        "flat.onnx": "E444: .*does not take images",
        "double.onnx": r"E444: .*its input is x tensor\(double\)",
        "two.onnx": "E444: .*its input is x .*, mask .*one input",
        "text.onnx": "E443: .*onnxruntime cannot run it",
        "none.onnx": "E442: .*no such file",
    }.items():
        with pytest.raises(WeightsError, match=message):
            predicted(f"predict.model={name}", "predict.input=photos")


def test_a_file_older_than_its_checkpoint_is_noticed(
    run_folder: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = run_folder / "export" / "model.onnx"
    asked = (f"predict.model={model}", "predict.input=photos/00.jpg")
    predicted(*asked)
    assert "older than its checkpoint" not in capsys.readouterr().out
    late = model.stat().st_mtime + 5
    os.utime(run_folder / "checkpoints" / "best.ckpt", (late, late))
    predicted(*asked)
    told = capsys.readouterr().out
    assert "older than its checkpoint; to export again: 'stages=[export]' checkpoint" in told


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["predict.labels=[a,b]", "checkpoint.path=x"], "E294: predict.labels"),
        (["predict.model=m.onnx", "checkpoint.path=x"], "E296: predict.model"),
        (["predict.model=m.onnx", "stages=[predict,export]", "data=digits"], "E295: predict.model"),
    ],
)
def test_two_models_or_none_are_contradictions(typed: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        xfer.run(overrides=["predict.input=x", "stages=[predict]", *typed])


def test_a_file_that_takes_whole_pictures_has_no_views(run_folder: Path, place: Path) -> None:
    file = f"predict.model={run_folder}/export/model_image.onnx"
    asked = ["stages=[predict]", file, "predict.input=photos", "run.dir=none"]
    with pytest.raises(ConfigError, match=r"E022: tta: .*model_image.onnx takes whole pictures"):
        xfer.run(overrides=[*asked, "tta=flip"])
    assert not Path("none").exists()
