"""The model that timm opens in a repository of a hub, whose config.json says what it is of."""

from __future__ import annotations

import json

import pytest
from hub_server import ONE, TWO
from safetensors.torch import save
from test_source_hub import BACKBONE, FILE, same, state

from xfer.core.errors import RepositoryError, WeightsError
from xfer.models.backbone import Timm, Torchvision
from xfer.weights.hub import huggingface
from xfer.weights.source.hub import Hub

RECIPE = {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.25] * 3, "crop_pct": 0.5}
RECIPE |= {"interpolation": "bilinear"}


def described(**more: object) -> bytes:
    facts = {"architecture": "test_resnet", "num_classes": 1000, "pretrained_cfg": RECIPE}
    return json.dumps({**facts, **more}).encode()


def test_a_repository_says_what_its_tensors_are_of(hub, caplog):
    names = [f"c{i}" for i in range(1000)]
    hub.add(save(state(1)), repo="me/mine", name=FILE)
    hub.add(described(label_names=names), repo="me/mine", name="config.json")
    source = Hub(path="hf://me/mine")
    weights = source.load(BACKBONE)
    assert same(weights, state(1)) and weights.classes == tuple(names) and not weights.task
    assert "label_names" not in caplog.text
    assert weights.input.size == (64, 64) and weights.input.resize == 128
    assert weights.pinned == {"path": "hf://me/mine", "revision": ONE}
    hub.add(save(state(2)), repo="me/mine", commit=TWO, name=FILE)
    several = {"problem_type": "multi_label_classification", "thresholds": {"a": 0.5}}
    hub.add(described(**several), repo="me/mine", commit=TWO, name="config.json")
    later = source.load(BACKBONE)
    assert same(later, state(2)) and later.classes is None and later.task
    hub.close()
    assert same(Hub(**weights.pinned).load(BACKBONE), state(1))
    assert same(Hub(path=f"hf://me/mine@{ONE}", local_files_only=True).load(BACKBONE), state(1))


@pytest.mark.parametrize("names", [["a", "b"], ["a"] * 1000])
def test_names_that_are_not_those_of_the_classes_are_told(hub, names, caplog):
    hub.add(save(state(1)), repo="me/mine", name=FILE)
    hub.add(described(label_names=names), repo="me/mine", name="config.json")
    weights = Hub(path="hf://me/mine").load(BACKBONE)
    assert same(weights, state(1)) and weights.classes is None
    told = f"has {len(set(names))} different label_names and num_classes 1000: it brings no classes"
    assert f"hf://me/mine@{ONE}: its config.json {told}" in caplog.text


@pytest.mark.parametrize(
    "config",
    [
        *(b"", b"[]", b"{}", b'{"architecture": "test_resnet"}', b"\xff"),
        described(label_names=[1, 2]),
        described(pretrained_cfg={**RECIPE, "input_size": [3, 1 << 40, 64]}),
        described(pretrained_cfg={**RECIPE, "std": [0, 0, 0]}),
        described(model_args=[1]),
    ],
)
def test_a_description_that_is_none_is_told_in_one_line(hub, config):
    hub.add(save(state(1)), repo="me/mine", name=FILE)
    hub.add(config, repo="me/mine", name="config.json")
    with pytest.raises(WeightsError, match=r"hf://me/mine@1+: its config\.json is none") as told:
        Hub(path="hf://me/mine").load(BACKBONE)
    assert told.value.number == 455 and "\n" not in str(told.value)


def test_a_repository_of_another_backbone_names_it(hub):
    hub.add(save(state(1)), repo="me/mine", name=FILE)
    hub.add(described(model_args={"img_size": 64}), repo="me/mine", name="config.json")
    for other in (Timm("test_vit"), Torchvision("resnet18"), Timm("test_resnet")):
        with pytest.raises(RepositoryError, match=r"backbone\.name=test_resnet .*img_size:64"):
            Hub(path="hf://me/mine").load(other)
    assert same(Hub(path="hf://me/mine").load(Timm("test_resnet", image_size=64)), state(1))
    with pytest.raises(WeightsError, match=r"hf://me/none/config\.json: revision 'main' has no"):
        hub.add(b"", repo="me/none", name="w")
        Hub(path="hf://me/none").load(BACKBONE)


def test_tensors_and_description_are_of_one_commit(hub, monkeypatch):
    for commit, seed in ((ONE, 1), (TWO, 2)):
        hub.add(save(state(seed)), repo="me/mine", commit=commit, name=FILE)
        hub.add(described(), repo="me/mine", commit=commit, name="config.json")
    hub.refs["me/mine", "main"], ask = ONE, huggingface.find

    def find(*given: object) -> huggingface.HubFile:
        answer = ask(*given)
        hub.refs["me/mine", "main"] = TWO  # somebody pushes in between
        return answer

    monkeypatch.setattr(huggingface, "find", find)
    assert same(Hub(path="hf://me/mine").load(BACKBONE), state(1))
