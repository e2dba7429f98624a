"""Whole commands against a hub: a teacher from there, a choice among its models, and no hub."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import ONE, RESNET, TWO, HubServer
from safetensors.torch import save
from shipped import SHIPPED

import xfer
from xfer.core.errors import ConfigError, WeightsError

STUDENT = ["data=digits_0_4", "backbone=digits_resnet", "source=none", "freeze=none"]
STUDENT += ["trainer.max_epochs=1", "stages=[fit]", "loss=distill", "run.dir=run"]


def test_a_teacher_comes_from_the_hub_at_the_commit_that_is_typed(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hub.add(SHIPPED.read_bytes(), "me/teachers", name="digits.ckpt")
    hub.add(b"", "me/teachers", TWO, "digits.ckpt")
    place = "hf://me/teachers/digits.ckpt"
    xfer.run(overrides=[*STUDENT, f"loss.teacher={place}@{ONE}"])
    told = json.loads(Path("run/result.json").read_text())["teacher"]
    assert told["images"] and ONE in told["path"]
    for name, number, said in (
        ("hf://me/teachers/other.ckpt", 457, "revision 'main' has no such file"),
        ("hf://me/nobody/digits.ckpt", 453, "there is no such repository, or it is private"),
        ("hf://me/teachers", 246, "does not name a file of a repository"),
        ("hf://me/../x", 247, "cannot be a repository"),
    ):
        with pytest.raises((WeightsError, ConfigError), match=said) as seen:
            xfer.run(overrides=[*STUDENT[:-1], f"loss.teacher={name}"])
        assert seen.value.number == number and "source" not in seen.value.fix
    assert seen.value.where == "loss.teacher"


def test_a_choice_fetches_what_it_is_told_and_finds_it_again_in_the_cache(
    hub: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import timm

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    typed = ["data=digits_0_4", "choose.heads=[linear]", "choose.freezes=[head_only]"]
    typed += ["choose.minutes=20", "choose.repeats=1", "choose.folds=2", "choose.rungs=1"]
    with pytest.raises(ConfigError, match=r"E045: .*type .*'choose\.backbones=\[resnet18\]'"):
        xfer.run(overrides=[*typed, "choose=cached"])
    hub.add(save(dict(timm.create_model("test_resnet").state_dict())))
    names = "choose.backbones=[test_resnet,test_vit]"
    xfer.run(overrides=[*typed, "choose=cached", names, "stages=[]"])
    shown = capsys.readouterr().out
    assert re.search(r"\ntest_resnet\n  linear head_only .* takes part\n", shown)
    assert "left out: there is no such repository, or it is private" in shown  # test_vit
    hub.close()
    xfer.run(overrides=[*typed, "choose=cached", "stages=[]"])
    shown = capsys.readouterr().out
    assert re.search(r"\ntest_resnet\.r160_in1k\n  linear head_only .* takes part\n", shown)


@pytest.mark.slow
def test_the_command_asks_the_hub_of_the_environment_and_then_its_cache(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm

    hub.add(save(dict(timm.create_model("test_resnet").state_dict())))
    hub.private.add(RESNET)
    words = ["data=digits_0_4", "backbone=timm", "backbone.name=test_resnet", "source=hub"]

    def said(code: int = 0) -> str:
        command = [sys.executable, "-m", "xfer", *words, "stages=[]"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        return " ".join((done.stdout + done.stderr).split())

    assert "or set HF_TOKEN to a token that may read it" in said(4)
    monkeypatch.setenv("HF_TOKEN", hub.login(name="timm"))
    assert f"timm:{RESNET.partition('/')[2]}" in said() and "Signature" not in said()
    hub.close()
    assert f"is taken from the cache as of commit {ONE}" in said()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "offline mode is enabled" in said()
