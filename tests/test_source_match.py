"""What becomes of every tensor: matching, the user's rules, and the report about both."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from test_backbone import BACKBONES

from xfer.errors import ConfigError, WeightsError
from xfer.head import Linear
from xfer.network import Parts, assemble, check
from xfer.patterns import matches, substituted
from xfer.source import File
from xfer.source.account import account
from xfer.source.match import Match
from xfer.source.rules import Rename, Rules
from xfer.weights import Content, Weights

SMALL = BACKBONES["digits_resnet"]
PARTS = Parts(SMALL, Linear(), 2)


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return dict(SMALL.build(7).module.state_dict())


def found(weights: Weights) -> Match:
    return check(PARTS, SMALL.build(), weights)


def through(rules: Rules, state: dict[str, torch.Tensor], **more: Any) -> Weights:
    return rules.weights("file", Content("torch state dict", state, **more), "a.pt", "0" * 64)


def test_every_tensor_of_the_file_and_of_the_network_has_exactly_one_row() -> None:
    state = {f"net.{n}": t for n, t in tensors().items()} | {"net.aux": torch.ones(2)}
    weights = through(Rules(drop=(r"net\.aux",)), state, asides={"epoch": "training state"})
    result = found(weights)
    keys = [row.key for row in result.rows if row.key]
    names = [row.name for row in result.rows if row.name]
    assert sorted(keys) == sorted([*state, "epoch"])
    assert sorted(names) == sorted(SMALL.build().module.state_dict())
    fates = {row.key: (row.fate, row.note) for row in result.rows}
    assert fates["net.aux"] == ("left out", "dropped by source.drop")
    assert fates["epoch"] == ("left out", "training state")
    assert fates["net.fc.weight"] == ("dropped head", "")
    assert fates["net.conv1.weight"] == ("renamed", "")


def test_renames_are_applied_in_order_and_the_report_names_both_sides() -> None:
    state = {n.replace("layer1", "stage_a"): t for n, t in tensors().items()}
    rules = Rules(rename=(Rename("^stage_a", "part1"), Rename(r"^part(\d)", r"layer\1")))
    result = found(through(rules, state))
    row = next(row for row in result.rows if row.name == "layer1.0.conv1.weight")
    assert (row.key, row.fate) == ("stage_a.0.conv1.weight", "renamed")
    assert result.coverage == 1


def test_a_stripped_prefix_leaves_out_what_is_not_below_it() -> None:
    state = {f"teacher.{n}": t for n, t in tensors().items()}
    state |= {f"student.{n}": t + 1 for n, t in tensors().items()}
    with pytest.raises(WeightsError, match=r"'student\.', 'teacher\.'.*source\.strip=student\."):
        found(through(Rules(), state))
    weights = through(Rules(strip="teacher."), state)
    net = assemble(PARTS, weights)
    assert torch.equal(net.conv1.weight, tensors()["conv1.weight"])
    assert weights.asides["student.conv1.weight"] == "not below 'teacher.'"


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ({"drop": ("layr1.*",)}, r"source\.drop\[0\].*'layer1'"),
        ({"rename": (Rename("^nothing", ""),)}, r"source\.rename\[0\]"),
        ({"rename": (Rename("(", ""),)}, r"source\.rename\[0\]\.match.*no pattern"),
        ({"rename": (Rename("conv1", r"\9"),)}, r"source\.rename.*no replacement"),
        ({"rename": (Rename(r"layer\d", "layer1"),)}, r"both become"),
        ({"strip": "model."}, r"source\.strip"),
        ({"allow_missing": ("[",)}, r"source\.allow_missing\[0\].*no pattern"),
    ],
)
def test_a_rule_that_does_nothing_or_cannot_be_read_is_a_mistake(
    rules: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        found(through(Rules(**rules), tensors()))


# Each reads a name in ways that double with every character.
CATASTROPHES: list[tuple[str, dict[str, Any]]] = [
    ("source.drop[1]", {"drop": ("fc.*", r"(.|.)*[A-Z]")}),
    ("source.rename[0]", {"rename": (Rename(r"^(.|.)*[A-Z]", ""),)}),
    ("source.allow_missing[0]", {"allow_missing": (r"(.|.)*[A-Z]",)}),
]


@pytest.mark.parametrize(("key", "rules"), CATASTROPHES)
def test_a_pattern_that_would_take_years_is_a_mistake_that_names_its_key(
    key: str, rules: dict[str, Any]
) -> None:
    state = {n: t for n, t in tensors().items() if not n.startswith("layer3")}
    with pytest.raises(ConfigError, match=rf"{re.escape(key)}: .*takes more than") as told:
        found(through(Rules(**rules), state))
    assert told.value.exit == 2 and "\n" not in str(told.value)


LARGE = {
    "billions": r"((a{1000}){1000}){1000}",
    "characters": "a" * 501,
    "groups": "(" * 5000 + ")" * 5000,
    "count": "a{99999999999999999999}",
    "approximate": "layer{e}",
    "recursive": "(?R)",
    "named list": r"\L<a>",
}


@pytest.mark.parametrize("name", LARGE)
def test_a_pattern_that_is_larger_than_names_need_is_none(name: str) -> None:
    with pytest.raises(ConfigError, match=r"source\.drop\[0\]: .*is no pattern") as told:
        Rules(drop=(LARGE[name],))
    assert len(str(told.value)) < 300


def test_patterns_mean_what_they_mean_in_python() -> None:
    names = ("layer1.0.conv1.weight", "fc.bias", "a{b}", "head.7.w", "head.77.w", "head.777.w")
    for pattern in (
        *(r"layer\d\..*", r"(?!fc).*", r"a\{b\}", r"[a\{]+b?.*", r"head\.\d{1,2}\.w", r".*(?<=w)"),
        *(r"(?i)FC\.BIAS", r"(\w)\1.*", r"(?P<x>.)ead.*", r"fc|fc\.bias", r"\S+?", r"[^.]*", ""),
    ):
        for name in names:
            expected = re.fullmatch(pattern, name) is not None
            assert matches(pattern, name, "source.drop") == expected, (pattern, name)
            ours = substituted(pattern, r"<\g<0>>", name, "source.rename")
            assert ours == re.sub(pattern, r"<\g<0>>", name), (pattern, name)


def test_only_what_is_named_may_be_missing() -> None:
    state = {n: t for n, t in tensors().items() if not n.startswith("layer3")}
    with pytest.raises(WeightsError, match=r"missing \(layer3.*source\.allow_missing"):
        found(through(Rules(), state))
    result = found(through(Rules(allow_missing=(r"layer3\..*",)), state))
    assert {row.note for row in result.rows if row.fate == "missing"} == {"(allowed)"}
    assert 0 < result.coverage < 1 and 0 < result.tensor_coverage < 1
    with pytest.raises(ConfigError, match="matches no tensor that is missing"):
        found(through(Rules(allow_missing=(r"layer3\..*", r"layer1\..*")), state))


def test_coverage_counts_numbers_and_must_reach_what_was_asked() -> None:
    whole = SMALL.build().module.state_dict()
    backbone = {n: t for n, t in whole.items() if not n.startswith("fc.")}
    state = {n: t for n, t in tensors().items() if n != "layer3.0.conv2.weight"}
    share = 1 - whole["layer3.0.conv2.weight"].numel() / sum(t.numel() for t in backbone.values())
    result = found(through(Rules(min_coverage=share - 0.01), state))
    assert result.coverage == pytest.approx(share)
    assert result.tensor_coverage == pytest.approx(1 - 1 / len(backbone))
    with pytest.raises(WeightsError, match="missing"):
        found(through(Rules(min_coverage=share + 0.01), state))


def test_a_file_of_which_nothing_is_used_is_refused_whatever_is_allowed() -> None:
    with pytest.raises(WeightsError, match="another architecture"):
        found(
            through(
                Rules(allow_missing=(".*",), drop=("a",)), {"a": torch.ones(1), "b": torch.ones(1)}
            )
        )
    with pytest.raises(WeightsError):
        found(through(Rules(allow_missing=(".*",), drop=("a",)), {"a": torch.ones(1)}))


def test_a_dense_layer_is_a_convolution_of_one_pixel() -> None:
    state = tensors()
    state["layer2.0.downsample.0.weight"] = state["layer2.0.downsample.0.weight"][:, :, 0, 0]
    result = found(through(Rules(), state))
    row = next(row for row in result.rows if row.fate == "adapted")
    assert row.name == "layer2.0.downsample.0.weight" and " as " in row.note
    net = assemble(PARTS, through(Rules(), state))
    assert torch.equal(net.layer2[0].downsample[0].weight, tensors()[row.name])


def test_half_precision_is_widened_and_said_and_integers_are_no_weights() -> None:
    state = tensors()
    state["conv1.weight"] = state["conv1.weight"].half()
    row = next(r for r in found(through(Rules(), state)).rows if r.name == "conv1.weight")
    assert row.note == "float16 as float32"
    state["conv1.weight"] = state["conv1.weight"].to(torch.int8)
    with pytest.raises(WeightsError, match=r"wrong shape \(conv1\.weight int8 for float32\)"):
        found(through(Rules(), state))


def test_positions_of_a_transformer_are_resampled_only_when_asked() -> None:
    from xfer.backbone import Timm

    old = Timm("vit_tiny_patch16_224", {"depth": 1}, image_size=64).build(5).module.state_dict()
    larger = Timm("vit_tiny_patch16_224", {"depth": 1}, image_size=96)
    parts = Parts(larger, Linear(), 2)
    with pytest.raises(WeightsError, match=r"pos_embed \[1, 17, 192\] for \[1, 37, 192\]"):
        check(parts, larger.build(), through(Rules(), dict(old)))
    result = check(parts, larger.build(), through(Rules(resize_positions=True), dict(old)))
    assert [row.note for row in result.rows if row.fate == "adapted"] == [
        "positions resampled from 4x4 to 6x6"
    ]
    assert torch.equal(result.state["pos_embed"][:, 0], old["pos_embed"][:, 0])


def test_the_class_names_of_a_file_come_from_a_list_or_a_text_or_json_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("cat\ndog\n")
    (tmp_path / "b.json").write_text(json.dumps({"0": "cat", "1": "dog"}))
    (tmp_path / "c.json").write_text(json.dumps(["cat", "dog"]))
    for given in (("cat", "dog"), *(str(tmp_path / n) for n in ("a.txt", "b.json", "c.json"))):
        assert Rules(classes=given).class_names()[0] == ("cat", "dog")
    names, synonyms = Rules(classes="imagenet").class_names()
    assert names is not None and len(names) == len(set(names)) == len(synonyms) == 1000
    for text in ("", "cat\ncat\n", "[1]", "{"):
        (tmp_path / "d.txt").write_text(text)
        with pytest.raises(ConfigError, match=r"source\.classes"):
            Rules(classes=str(tmp_path / "d.txt")).class_names()
    with pytest.raises(ConfigError, match="cannot be read"):
        Rules(classes=str(tmp_path / "missing")).class_names()


def test_the_report_counts_hashes_and_lists(tmp_path: Path) -> None:
    torch.save({"state_dict": tensors(), "epoch": 3}, tmp_path / "a.pt")
    weights = File(str(tmp_path / "a.pt")).load(SMALL)
    result = found(weights)
    facts = json.loads(json.dumps(account(weights, result, ("fc",))))
    assert facts["sha256"] == weights.sha256 and facts["coverage"] == {
        "parameters": 1,
        "tensors": 1,
    }
    assert sum(facts["counts"].values()) == len(facts["rows"]) == len(result.rows)
    assert facts["counts"]["dropped head"] == 2
    other = tensors() | {"conv1.weight": tensors()["conv1.weight"] + 1}
    changed = through(Rules(), other)
    assert account(changed, found(changed), ("fc",))["fingerprint"] != facts["fingerprint"]
    head = through(Rules(), tensors() | {"fc.bias": torch.ones(7)})
    assert account(head, found(head), ("fc",))["fingerprint"] == facts["fingerprint"]
