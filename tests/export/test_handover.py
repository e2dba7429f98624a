"""Folders for people without xfer: one serves the network, one is for timm and the hub."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from shipped import SHIPPED as SHIPPED_PATH
from test_export import SPEC, facts, make, tiny

import xfer
from xfer.core.errors import ExportError
from xfer.core.files import file_sha256
from xfer.core.types import InputSpec
from xfer.data.image import decode, decode_bytes
from xfer.data.preprocess import prepare
from xfer.export import HubFolder
from xfer.export.stage import run_figures
from xfer.models.backbone import Timm, Torchvision
from xfer.models.head import Linear, Mlp

SHIPPED = [f"checkpoint.path={SHIPPED_PATH}", "data=digits_0_4"]
SERVER = ("fastapi", "uvicorn")


@dataclass
class Made:
    """A run that evaluated and exported the shipped checkpoint."""

    folder: Path
    facts: dict[str, Any]

    @property
    def hub(self) -> Path:
        return self.folder / "export" / "hub"

    @property
    def service(self) -> Path:
        return self.folder / "export" / "service"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("handover") / "run"
    wanted = ["export=[service,hub]", "export.hub.license=mit", "export.images=16"]
    overrides = ["stages=[evaluate,export]", *SHIPPED, *wanted, f"run.dir={folder}"]
    result = xfer.run(overrides=overrides)
    assert result.facts is not None
    return Made(folder, dict(result.facts))


def photographs(assets: Path) -> list[Path]:
    folder = assets / "Canidae" / "val"
    return [sorted((folder / name).iterdir())[i] for name in ("dogs", "wolves") for i in (0, 1)]


# ---- the hub's folder


def test_the_card_counts_the_images_of_the_run_that_trained(tmp_path: Path) -> None:
    """Also where the images that it is compared on are others, as those of ``xfer export``."""
    best = tmp_path / "run/checkpoints/best.ckpt"
    best.parent.mkdir(parents=True)
    best.write_bytes(b"weights")
    facts = {"checkpoint": {"sha256": file_sha256(best)}, "scores": {}, "cv": None}
    (tmp_path / "run/result.json").write_text(json.dumps(facts))
    splits = {"train": {"n": 717, "sha256": "a"}, "val": {"n": 179, "sha256": None}}
    (tmp_path / "run/plan.json").write_text(json.dumps({"splits": splits}))
    plan: Any = SimpleNamespace(dataset=None, card=SimpleNamespace(splits={"train": "a"}))
    assert run_figures(plan, best, {})["images"] == {"train": 717}
    plan.card.splits = {"train": "b"}
    assert run_figures(plan, best, {})["images"] == {}


def test_the_gate_lists_both_folders_and_every_file_in_them(made: Made) -> None:
    rows = {
        row["format"]: row for row in json.loads((made.folder / "export/parity.json").read_text())
    }
    assert set(rows) == {"service", "hub"}
    assert rows["hub"]["max_abs_diff"] == 0 and rows["hub"]["agree"] == 1
    assert rows["service"]["compared"] == "probabilities"
    for row in rows.values():
        there = sorted(path.name for path in (made.folder / "export" / row["file"]).iterdir())
        assert sorted(row["facts"]["files"]) == there
    printed = subprocess.run(
        ["sha256sum", *sorted(rows["hub"]["facts"]["files"])],
        cwd=made.hub, capture_output=True, check=True,
    ).stdout  # fmt: skip
    import hashlib

    assert hashlib.sha256(printed).hexdigest() == rows["hub"]["sha256"]


def test_a_finished_run_vouches_for_every_file_of_a_folder(made: Made) -> None:
    files = json.loads((made.folder / "status.json").read_text())["files"]
    assert {"export/hub/config.json", "export/service/serve.py"} <= set(files)


def test_timm_opens_the_folder_and_gives_the_logits_of_the_run(made: Made, assets: Path) -> None:
    model = timm.create_model(f"local-dir:{made.hub}", pretrained=True).eval()
    ours = xfer.load(SHIPPED_PATH)
    assert tuple(model.pretrained_cfg["label_names"]) == tuple(ours.classes)
    settings = timm.data.resolve_model_data_config(model)
    theirs = timm.data.create_transform(**settings)
    pictures = [decode(path) for path in photographs(assets)]
    inputs = torch.stack([theirs(picture) for picture in pictures])
    prepared = np.stack([prepare(picture, ours.card.input) for picture in pictures])
    assert np.abs(inputs.numpy() - prepared).max() < 1e-5  # the recipe too, not only the weights
    with torch.inference_mode():
        got = model(torch.from_numpy(prepared))
        want = ours.net(torch.from_numpy(prepared))
    assert want.std() > 0.1
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size, resize", [(224, 256), (224, 248), (288, 288), (32, 34), (64, None)])
def test_timm_prepares_pictures_as_the_recipe_says(
    size: int, resize: int | None, assets: Path
) -> None:
    from xfer.export.hub_folder import _recipe

    spec = InputSpec((size, size), resize, "bicubic", SPEC.mean, SPEC.std)
    recipe = {**_recipe(spec), "input_size": (3, size, size)}
    theirs = timm.data.create_transform(**recipe)
    for path in photographs(assets):
        picture = decode(path)
        assert np.abs(theirs(picture).numpy() - prepare(picture, spec)).max() < 1e-5


def test_the_model_card_has_the_run_s_figures_and_the_hub_reads_it(made: Made) -> None:
    from huggingface_hub import ModelCard

    text = (made.hub / "README.md").read_text()
    card = ModelCard(text)
    assert (card.data.license, card.data.library_name) == ("mit", "timm")
    assert card.data.pipeline_tag == "image-classification"
    score = made.facts["scores"]["val"]
    low, high = score["acc_ci95"]
    row = f"| val | {score['n']} | {score['acc']:.4f} | {low:.4f} to {high:.4f} |"
    assert row in text
    assert "chosen on" not in text


def test_the_model_card_says_what_the_scores_are_worth_and_quotes_names() -> None:
    from xfer.export.model_card import model_card

    _, card = tiny()
    card = replace(card, classes=("a|b", "<img src=x>"), experiment="two\nlines")
    known = {"n": 9, "acc": 0.5, "acc_ci95": [0.25, 0.75], "loss": 1, "ece": 0.125}
    scores = {"val": {**known, "used_for_selection": True}}
    figures = {"scores": scores, "cv": known, "images": {"train": 1200}}
    text = model_card(card, figures, "unknown", "me/dogs")
    assert "The model was chosen on val: other images may be harder." in text
    assert "| cross-validation | 9 | 0.5000 | 0.2500 to 0.7500 | 1.0000 | 0.1250 |" in text
    assert "train: 1,200 images." in text and "hf-hub:me/dogs" in text
    assert "a\\|b" in text and "<img" not in text.replace("\\<img", "")
    assert "# two" in text and "\nlines" not in text
    assert "Nobody has said under which license." in text
    assert "scored it on no images" in model_card(card, {}, "unknown", None)


def test_nothing_of_this_machine_is_in_the_folder_for_the_world(made: Made) -> None:
    here = [str(SHIPPED_PATH).encode(), str(made.folder).encode(), str(Path.home()).encode() + b"/"]
    for path in made.hub.iterdir():
        assert not any(place in path.read_bytes() for place in here), path


def test_an_export_afterwards_takes_the_figures_from_the_run(tmp_path: Path) -> None:
    from xfer.export.stage import _of_the_run

    run, checkpoint = tmp_path / "run", tmp_path / "run" / "checkpoints" / "best.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"weights")
    from xfer.core.files import file_sha256, write_json

    known = {"checkpoint": {"sha256": file_sha256(checkpoint)}, "scores": {"val": {"acc": 1}}}
    splits = {"train": {"n": 3, "sha256": "aa"}, "val": {"n": 2, "sha256": "bb"}}
    used = {"train": "aa", "val": "of other images"}
    assert _of_the_run(checkpoint, used) == {}
    write_json(run / "plan.json", {"splits": splits})
    write_json(run / "result.json", known)
    figures = {"scores": {"val": {"acc": 1}}, "cv": None, "images": {"train": 3}}
    assert _of_the_run(checkpoint, used) == figures
    checkpoint.write_bytes(b"others")
    assert _of_the_run(checkpoint, used) == {}
    (run / "result.json").write_text("[")
    assert _of_the_run(checkpoint, used) == {}


def test_what_timm_cannot_load_is_refused_in_the_plan_and_the_fix_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    typed = ["data=digits", "backbone=torchvision", "backbone.name=squeezenet1_0", "source=none"]
    typed += ["backbone.image_size=64", "freeze=none", "optim=adamw"]
    with pytest.raises(
        ExportError, match=r"E964: .*no loader for torchvision's squeezenet"
    ) as seen:
        xfer.run(overrides=[*typed, "export=hub"])
    assert seen.value.exit == 10 and not list(tmp_path.iterdir())
    (fix,) = re.findall(r"export=\w+(?=,)", seen.value.fix)
    xfer.run(overrides=[*typed, fix, "stages=[]"])


def test_other_networks_and_recipes_are_refused_with_the_reason() -> None:
    _, card = tiny()
    HubFolder().check(card)
    wide = replace(card.input, size=(224, 320))
    cases = {
        "more than the library's one layer": replace(card, head=facts(Mlp())),
        "compute as MindSpore's": replace(card, compat={"dialect": "zoo"}),
        "cannot crop 224 x 320": replace(card, input=wide),
        "short side of 200": replace(card, input=replace(card.input, resize=200)),
        "torchvision's resnet18": replace(card, backbone=facts(Torchvision("resnet18"))),
    }
    for reason, other in cases.items():
        with pytest.raises(ExportError, match=reason):
            HubFolder().check(other)
    HubFolder().check(replace(card, input=replace(wide, resize=None)))


# ---- the service's folder


def test_the_service_is_a_short_program_and_pins_what_was_compared(made: Made) -> None:
    from importlib.metadata import version

    lines = (made.service / "serve.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) < 70
    for name in ("serve.py", "check_service.py"):
        compile((made.service / name).read_text(), name, "exec")
    pinned = (made.service / "requirements.txt").read_text().splitlines()
    assert f"onnxruntime=={version('onnxruntime')}" in pinned
    docker = (made.service / "Dockerfile").read_text()
    assert f"FROM python:{sys.version_info.major}.{sys.version_info.minor}-slim" in docker
    copied = re.findall(r"^COPY (.+) \S+$", docker, re.M)
    assert all((made.service / name).is_file() for line in copied for name in line.split())


@pytest.fixture(scope="module")
def address(made: Made) -> Iterator[str]:
    """The program at work, started as its Dockerfile does."""
    if missing := [name for name in SERVER if find_spec(name) is None]:
        pytest.skip(f"{' and '.join(missing)} not installed: pip install fastapi uvicorn")
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    docker = (made.service / "Dockerfile").read_text()
    command = json.loads(docker.rpartition("CMD ")[2])
    command = [sys.executable, "-m", *command[:2], "--port", str(port)]
    with (made.folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=made.service, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            assert server.poll() is None, (made.folder / "server.log").read_text()
            try:
                urllib.request.urlopen(f"{url}/openapi.json").close()
                break
            except urllib.error.URLError:
                time.sleep(0.1)
        yield f"{url}/classify"
    finally:
        server.terminate()
        server.wait()


def post(url: str, data: bytes) -> dict[str, Any]:
    with urllib.request.urlopen(urllib.request.Request(url, data)) as answer:
        return dict(json.load(answer))


def test_a_posted_picture_is_answered_as_xfer_predict_answers(
    made: Made, address: str, assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for path in photographs(assets):
        (pictures / path.name).write_bytes(path.read_bytes())
    photo = decode(photographs(assets)[0])
    turned = Image.Exif()
    turned[0x0112] = 6
    photo.save(pictures / "turned.jpg", exif=turned)
    photo.convert("L").save(pictures / "grey.png")
    clear = photo.copy()
    clear.putalpha(Image.linear_gradient("L").resize(photo.size))
    clear.save(pictures / "clear.png")
    predict = ["stages=[predict]", f"checkpoint.path={SHIPPED_PATH}", f"predict.input={pictures}"]
    xfer.run(overrides=[*predict, "run.dir=answers"])
    (table,) = Path("answers").glob("predictions*.csv")
    with table.open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 7
    for row in rows:
        got = post(address, (pictures / Path(row["path"]).name).read_bytes())
        assert got["prediction"] == row["prediction"]
        assert got["confidence"] == pytest.approx(float(row["confidence"]), abs=1e-4)
        for name, share in got["probabilities"].items():
            assert share == pytest.approx(float(row[f"p_{name}"]), abs=1e-4), row["path"]


def test_what_is_no_picture_is_refused_and_the_service_goes_on(made: Made, address: str) -> None:
    deep = io.BytesIO()
    Image.fromarray(np.zeros((40, 40), np.uint16)).save(deep, "PNG")
    for data in (b"no picture", b"", deep.getvalue()):
        with pytest.raises(urllib.error.HTTPError) as seen:
            post(address, data)
        assert seen.value.code == 400
        told = json.load(seen.value)["detail"]
        assert told.startswith("not a picture") and " at 0x" not in told
        seen.value.close()
    assert post(address, (made.service / "example.png").read_bytes())["confidence"] > 0


def test_the_folder_s_own_test_passes_and_can_fail(
    made: Made, address: str, tmp_path: Path
) -> None:
    import shutil

    there = shutil.copytree(made.service, tmp_path / "service")
    command = [sys.executable, "check_service.py"]
    done = subprocess.run(command, cwd=there, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "answers as the network did" in done.stdout
    want = json.loads((there / "expected.json").read_text())
    want["probabilities"] = dict(zip(want["probabilities"], [0.0] * 5, strict=True))
    (there / "expected.json").write_text(json.dumps(want))
    done = subprocess.run(command, cwd=there, capture_output=True, text=True)
    assert done.returncode == 1 and "AssertionError" in done.stderr


def test_the_example_s_answer_is_the_network_s(made: Made) -> None:
    ours = xfer.load(SHIPPED_PATH)
    picture = decode_bytes((made.service / "example.png").read_bytes())
    with torch.inference_mode():
        logits = ours.net(torch.from_numpy(prepare(picture, ours.card.input)[None]))
    want = json.loads((made.service / "expected.json").read_text())["probabilities"]
    got = logits.double().softmax(1)[0].tolist()
    assert list(want) == list(ours.classes)
    assert list(want.values()) == pytest.approx(got, abs=1e-5)


def test_a_transformer_of_another_image_size_is_handed_to_timm_too(tmp_path: Path) -> None:
    from xfer.export import export

    net, card = make(Timm("vit_tiny_patch16_224", {"img_size": 64, "depth": 2}), Linear())
    spec = replace(SPEC, size=(64, 64), resize=72)
    card = replace(card, input=spec)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, 3, 64, 64)).astype(np.float32)
    (entry,) = export(net, images, [HubFolder()], card, tmp_path, 1e-4)
    assert entry.agree == 1
    settings = timm.data.resolve_model_data_config(
        timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True)
    )
    assert settings["input_size"] == (3, 64, 64)
