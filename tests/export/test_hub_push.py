"""A push to the Hugging Face hub: refused in the plan where it cannot work, else whole."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hub_server import HubServer, connect
from shipped import SHIPPED as SHIPPED_PATH
from test_export import tiny

import xfer
from xfer.core.errors import ConfigError, ExportError, WeightsError
from xfer.core.files import file_sha256
from xfer.export import HubFolder

SHIPPED = [f"checkpoint.path={SHIPPED_PATH}", "data=digits_0_4"]
EXPORT = ["stages=[evaluate,export]", *SHIPPED, "export=hub", "export.images=16"]

Pushed = tuple[HubServer, Path, Any]

# The client's own, as it sends a file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pushed]:
    """A hub, the folder of a run that was pushed to it as ``me/digits``, and its facts."""
    root, hub = tmp_path_factory.mktemp("pushed"), HubServer()
    with pytest.MonkeyPatch.context() as patch:
        connect(patch, hub.url, root)
        patch.setenv("HF_TOKEN", hub.login())
        folder = root / "run"
        push = ["export.hub.push=me/digits", f"run.dir={folder}"]
        result = xfer.run(overrides=[*EXPORT, *push])
        yield hub, folder, result.facts
    hub.close()


def refused(how: HubFolder, card: Any) -> str:
    with pytest.raises(ExportError) as seen:
        how.check(card)
    assert seen.value.exit == 10
    return str(seen.value)


def test_a_push_that_cannot_work_is_an_error_in_the_plan(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    typed = ["stages=[export]", *SHIPPED, "export=hub"]
    with pytest.raises(ExportError, match=r"E965: export\.hub\.push: nobody is logged in"):
        xfer.run(overrides=[*typed, "export.hub.push=me/digits"])
    with pytest.raises(ExportError, match=r"E967: .*'digits' is not the name"):
        xfer.run(overrides=[*typed, "export.hub.push=digits"])
    assert not hub.asked and not [path for path in tmp_path.iterdir() if path.name == "outputs"]
    _, card = tiny()
    ours = HubFolder(push="me/digits")
    monkeypatch.setenv("HF_TOKEN", "hf_nobodys")
    assert "E968: export.hub.push: the hub does not answer to this login: Invalid user" in refused(
        ours, card
    )
    monkeypatch.setenv("HF_TOKEN", hub.login("hf_read", role="read"))
    assert "E118: export.hub.push: the token of 'me' may only read" in refused(ours, card)
    monkeypatch.setenv("HF_TOKEN", hub.login(orgs=["lab"]))
    said = refused(HubFolder(push="you/digits"), card)
    assert "E117: export.hub.push: the login of 'me' cannot write to 'you'" in said
    typed = re.findall(r"export\.hub\.push=(\S+)", said)
    assert typed == ["me/digits", "lab/digits"]
    for name in typed:
        HubFolder(push=name).check(card)
    said = refused(replace(ours, license="mine"), card)
    assert 'E119: export.hub.license: the hub does not take the model card: "license" must' in said
    assert not hub.refs  # nothing was made there
    hub.close()
    assert "E968" in refused(ours, card)


def test_a_push_makes_a_private_model_that_timm_opens(
    pushed: Pushed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub, folder, _ = pushed
    here = {path.name: path.read_bytes() for path in (folder / "export/hub").iterdir()}
    assert hub.tree("me/digits") == here and hub.private == {"me/digits"}
    assert f"PUT /lfs/{file_sha256(folder / 'export/hub/model.safetensors')}" in str(hub.asked)
    connect(monkeypatch, hub.url, tmp_path)
    with pytest.raises(Exception, match="401"):
        timm.create_model("hf-hub:me/digits", pretrained=True)
    monkeypatch.setenv("HF_TOKEN", "hf_me")
    model = timm.create_model("hf-hub:me/digits", pretrained=True).eval()
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        want = xfer.load(SHIPPED_PATH).net(images)
        torch.testing.assert_close(model(images), want, rtol=0, atol=1e-5)


def test_what_the_refusals_say_to_type_opens_what_was_pushed(
    pushed: Pushed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub, _, facts = pushed
    connect(monkeypatch, hub.url, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_me")
    typed = ["data=digits_0_4", "stages=[evaluate]", "head=keep", "run.dir=again"]
    with pytest.raises(ConfigError, match=r"E210: .*timm has no model 'hf-hub:me/digits'") as seen:
        xfer.run(overrides=[*typed, "backbone=timm", "backbone.name=hf-hub:me/digits"])
    with pytest.raises(
        ConfigError, match=r"E204: backbone: there is no option 'hf-hub:me/d"
    ) as too:
        xfer.run(overrides=[*typed, "backbone=hf-hub:me/digits"])
    assert too.value.fix == seen.value.fix
    typed += re.findall(r"source\S*=[\w/:]+", seen.value.fix)
    with pytest.raises(ConfigError, match=r"E121: .*holds timm's resnet18, and .*resnet50") as seen:
        xfer.run(overrides=typed)
    typed += shlex.split(seen.value.fix.removeprefix("type "))
    again = xfer.run(overrides=typed).facts
    assert again is not None and again["scores"]["val"]["acc"] == facts["scores"]["val"]["acc"]
    assert again["scores"]["val"]["loss"] == pytest.approx(facts["scores"]["val"]["loss"], rel=1e-4)
    commit = hub.refs["me/digits", "main"]
    assert again["source"]["origin"] == f"hf://me/digits@{commit}"
    report = json.loads(Path("again/load_report.json").read_text())
    assert (report["repository"], report["revision"]) == ("me/digits", commit)
    assert json.loads(Path("again/plan.json").read_text())["source"]["spec"]["revision"] == commit
    typed = [word for word in typed if not word.startswith(("run.dir", "backbone.args"))]
    with pytest.raises(ConfigError, match=r"E121: .*timm's resnet18 with other arguments"):
        xfer.run(overrides=typed)
    config = b'{"architecture": "resnet18", "pretrained_cfg": {"mean": "x"}}'
    hub.add(config, "me/x", name="config.json")
    hub.add(b"", "me/x")
    with pytest.raises(WeightsError, match=r"E455: hf://me/x@1+: its config\.json is none of timm"):
        xfer.run(overrides=[*typed, "source.path=hf://me/x"])


def test_a_second_push_is_the_next_commit_and_is_told(
    pushed: Pushed,
    hub: HubServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.login())
    hub.add(b"of mine", "me/digits", name="notes.txt")
    folder = pushed[1] / "export/hub"
    _, card = tiny()
    with caplog.at_level("INFO", "xfer"):
        HubFolder(push="me/digits").check(card)
        HubFolder(push="me/digits").upload(folder)
    first, second = [record.message for record in caplog.records if record.name == "xfer"]
    assert first == "me/digits is on the hub already: the folder becomes its next commit"
    assert second.endswith(f"/me/digits, commit {hub.refs['me/digits', 'main']}")
    assert {"notes.txt", "config.json"} <= set(hub.tree("me/digits"))


def test_a_push_that_fails_leaves_the_folder_and_shows_no_signature(
    pushed: Pushed,
    hub: HubServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = pushed[1] / "export/hub"
    monkeypatch.setenv("HF_TOKEN", hub.login())
    with pytest.raises(ExportError, match=r"E966: .*403 Forbidden: You don't have the rights"):
        HubFolder(push="you/digits").upload(folder)
    assert not hub.refs
    hub.refusals["lfs"] = (403, "")
    with pytest.raises(ExportError, match=r"E966: .*'model.safetensors'.*403 Forbidden") as seen:
        HubFolder(push="me/digits").upload(folder)
    assert "Signature" not in str(seen.value) + caplog.text
    assert (folder / "config.json").is_file() and not hub.tree("me/digits")
