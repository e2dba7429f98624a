"""What becomes of every tensor: matching, the user's rules, and the report about both."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import BACKBONES
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

from xfer.config.hydra import compose_specs
from xfer.core.errors import ConfigError, WeightsError
from xfer.core.regex import matches, substituted
from xfer.core.types import Network
from xfer.models.backbone import Timm
from xfer.models.head import Linear
from xfer.models.network import Parts, check, from_weights
from xfer.weights.content import Content, Match, Weights, account
from xfer.weights.match_by_order import by_order
from xfer.weights.source import File
from xfer.weights.source.match_rules import Rename, Rules

SMALL = BACKBONES["digits_resnet"]
PARTS = Parts(SMALL, Linear(), 2)


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return dict(SMALL.build(7).module.state_dict())


def found(weights: Weights) -> Match:
    return check(PARTS, weights)


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
    net = from_weights(PARTS, weights)
    assert torch.equal(net.conv1.weight, tensors()["conv1.weight"])
    assert weights.asides["student.conv1.weight"] == "not below 'teacher.'"


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ({"drop": ("layr1.*",)}, r"source\.drop\[0\].*'layer1'"),
        ({"rename": (Rename("^nothing", ""),)}, r"source\.rename\[0\]"),
        ({"rename": (Rename("(", ""),)}, r"source\.rename\[0\]\.match.*not a valid pattern"),
        ({"rename": (Rename("conv1", r"\9"),)}, r"source\.rename.*not a valid replacement"),
        ({"rename": (Rename(r"layer\d", "layer1"),)}, r"both become"),
        ({"strip": "model."}, r"source\.strip"),
        ({"allow_missing": ("[",)}, r"source\.allow_missing\[0\].*not a valid pattern"),
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
    with pytest.raises(ConfigError, match=r"source\.drop\[0\]: .*is not a valid pattern") as told:
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
    net = from_weights(PARTS, through(Rules(), state))
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
    small = Timm("vit_tiny_patch16_224", {"depth": 1}, image_size=64)
    old = dict(small.build(5).module.state_dict())
    larger = Timm("vit_tiny_patch16_224", {"depth": 1}, image_size=96)
    parts = Parts(larger, Linear(), 2)
    # With an entry that is no part of the network, as files of DINOv2 have.
    old["mask_token"] = torch.zeros(1, 192)
    wrong = r"pos_embed \[1, 17, 192\] for \[1, 37, 192\].*source\.resize_positions=true.*"
    with pytest.raises(WeightsError, match=wrong + r"source\.drop=\['mask_token'\]"):
        check(parts, through(Rules(), old))
    rules = Rules(resize_positions=True, drop=("mask_token",))
    result = check(parts, through(rules, old))
    assert [row.note for row in result.rows if row.fate == "adapted"] == [
        "positions resampled from 4x4 to 6x6"
    ]
    assert torch.equal(result.state["pos_embed"][:, 0], old["pos_embed"][:, 0])


def test_registers_in_their_authors_file_load_as_timm_converts_them() -> None:
    net = Timm("vit_small_patch14_reg4_dinov2", {"depth": 1}, image_size=28)
    module = net.build(5).module
    torch.manual_seed(0)
    own = {name: torch.randn_like(t) for name, t in module.state_dict().items()}
    theirs = {n: t for n, t in own.items() if not n.startswith(("reg_token", "head."))}
    theirs |= {"register_tokens": own["reg_token"], "mask_token": torch.zeros(1, 384)}
    theirs["pos_embed"] = torch.randn(1, 1 + 4, 384)
    converted = checkpoint_filter_fn(dict(theirs), module)
    result = check(Parts(net, Linear(), 2), through(Rules(), theirs))
    assert converted.keys() <= result.state.keys()
    assert all(torch.equal(result.state[name], tensor) for name, tensor in converted.items())
    fates = {row.key: (row.name, row.fate) for row in result.rows}
    assert fates["register_tokens"] == ("reg_token", "renamed")
    assert fates["cls_token + pos_embed[:, :1]"] == ("cls_token", "renamed")
    assert fates["mask_token"] == (None, "left out")


def test_query_key_and_value_apart_are_told_from_another_architecture() -> None:
    net = Timm("vit_tiny_patch16_224", {"depth": 2}, image_size=32)
    state: dict[str, torch.Tensor] = {}
    for name, tensor in net.build(5).module.state_dict().items():
        parts = tensor.chunk(3) if ".qkv." in name else [tensor]
        words = ("query", "key", "value") if len(parts) == 3 else ("only",)
        state |= {f"x_{name}.{word}": part for word, part in zip(words, parts, strict=True)}
    with pytest.raises(WeightsError, match=r"query, key and value apart.* \(2 times\)"):
        check(Parts(net, Linear(), 2), through(Rules(), state))
    state = {n: t for n, t in state.items() if ".1." not in n}
    with pytest.raises(WeightsError, match="another architecture"):
        check(Parts(net, Linear(), 2), through(Rules(), state))


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


class Own:
    """A backbone of the user's own: any network, its last layer the head."""

    library, name = "own", "own"

    def __init__(self, make: Callable[[], nn.Module], head: str = "linear") -> None:
        self.make, self.head = make, head

    def build(self, classes: int | None = None) -> Network:
        return Network(self.make(), (self.head,), SMALL.build().input)


def cifar_resnet20() -> nn.Module:
    """The layers of the file's own network, by the names of its authors."""
    net, width = nn.Module(), 16
    net.conv1, net.bn1 = nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16)
    for stage, out in ((1, 16), (2, 32), (3, 64)):
        blocks = nn.Sequential()
        for _ in range(3):
            block = nn.Module()
            block.conv1, block.bn1 = nn.Conv2d(width, out, 3, bias=False), nn.BatchNorm2d(out)
            block.conv2, block.bn2 = nn.Conv2d(out, out, 3, bias=False), nn.BatchNorm2d(out)
            blocks.append(block)
            width = out
        net.add_module(f"layer{stage}", blocks)
    net.linear = nn.Linear(64, 10)
    return net


def test_a_wrappers_prefix_is_found_in_files_older_than_the_counters(assets: Path) -> None:
    backbone = Own(cifar_resnet20)
    path = str(assets / "wild" / "resnet20-12fca82f.th")
    parts = Parts(backbone, Linear(), 2)
    result = check(parts, File(path).load(backbone))
    assert (result.prefix, result.coverage) == ("module.", 1)
    # A rule for one layer, which is then found without the prefix.
    renamed = File(path, rename=(Rename(r"^module\.layer3\.2\.", "layer3.2."),))
    result = check(parts, renamed.load(backbone))
    assert (result.prefix, result.coverage) == ("module.", 1)
    row = next(row for row in result.rows if row.name == "layer3.2.bn2.running_mean")
    assert row.key == "module.layer3.2.bn2.running_mean"


def test_the_prefix_is_found_whichever_names_the_file_lacks() -> None:
    state = {f"module.{n}": t for n, t in tensors().items()}
    for lost in sorted(state, key=len)[-4:]:
        few = {n: t for n, t in state.items() if n != lost}
        result = found(through(Rules(min_coverage=0.01), few))
        assert result.prefix == "module." and 0.5 < result.coverage <= 1


def test_the_right_architecture_under_other_names_is_proposed_and_taken(assets: Path) -> None:
    backbone = Timm("tf_efficientnet_lite0")
    path = str(assets / "wild" / "efficientnet-lite0-57934424.pth")
    parts = Parts(backbone, Linear(), 2)
    with pytest.raises(WeightsError, match=r"_bn0\.weight -> bn1\.weight") as told:
        check(parts, File(path).load(backbone))
    assert "type source.match=order" in told.value.fix and told.value.number == 435
    result = check(parts, File(path, match="order").load(backbone))
    assert result.coverage == 1 and not result.of("left out", "unexpected", "missing")
    right = File(str(assets / "weights" / "tf_efficientnet_lite0_imagenet.safetensors"))
    for name, tensor in (right.load(backbone).state or {}).items():
        if not name.startswith("classifier"):
            assert torch.equal(result.state[name], tensor), name
    whole = check(
        replace(parts, head_from_source=True),
        File(path, match="order").load(backbone),
        backbone.build(),
    )
    assert "classifier.weight" in whole.state


def test_order_tells_nothing_where_names_contradict_it_or_a_shape_differs() -> None:
    own = {n: torch.ones(4, 4) for n in ("a.query.weight", "a.key.weight", "a.value.weight")}
    other = {n: torch.ones(4, 4) for n in ("b.k.weight", "b.q.weight", "b.v.weight")}
    assert by_order(own, other, ()) == {}
    straight = {n: other[n] for n in ("b.q.weight", "b.k.weight", "b.v.weight")}
    assert list(by_order(own, straight, ()).values()) == list(straight)
    shifted = {n: torch.ones(4) for n in ("_bn0.weight", "_bn1.weight", "_bn2.weight")}
    layers = {n: torch.ones(4) for n in ("bn1.weight", "bn2.weight", "bn3.weight")}
    assert list(by_order(layers, shifted, ()).values()) == list(shifted)
    biases = {"x.weight": torch.ones(4), "x.bias": torch.ones(4)}
    assert by_order(biases, {"y.beta": torch.ones(4), "y.gamma": torch.ones(4)}, ()) == {}
    assert by_order(biases, {"y.gamma": torch.ones(4), "y.beta": torch.ones(4)}, ())
    assert by_order(biases, {"y.gamma": torch.ones(5), "y.beta": torch.ones(4)}, ()) == {}
    # A head of theirs behind the body, as fastai has it; the next block of a deeper one is none.
    body = {f"0.{n}": t for n, t in straight.items()}
    assert (
        by_order(own, {**body, "1.2.weight": torch.ones(4)}, ())["a.key.weight"] == "0.b.k.weight"
    )
    assert by_order(own, {**body, "0.4.weight": torch.ones(4)}, ()) == {}
    with pytest.raises(WeightsError, match=r"E436.*drop source\.match"):
        found(through(Rules(match="order"), {"a.weight": torch.ones(3)}))


def test_advice_that_names_a_key_leads_on_when_it_is_typed() -> None:
    state = tensors()
    extra = {"aux.conv.weight": torch.ones(3), "aux.bn.bias": torch.ones(3), "ema": torch.ones(1)}
    short = {n: t for n, t in state.items() if not n.endswith("bn1.bias")}
    wrapped = {f"module.{n}": t for n, t in (state | extra).items()}
    parts = ("pos_embed", "embed.bias", "blocks.0.bias", "norm.bias", "pred.bias", "out.bias")
    decoder = {f"decoder_{n}": torch.ones(2) for n in parts} | {"mask_token": torch.ones(1)}
    for given in (
        state | decoder,
        state | extra,
        short,
        wrapped,
        {n: t for n, t in state.items() if "bn2" not in n},
    ):
        with pytest.raises(WeightsError) as told:
            found(through(Rules(), given))
        typed = shlex.split(told.value.fix.rpartition(": ")[2])
        values = compose_specs(["data=digits", "source=file", "source.path=a.pt", *typed]).source
        kept = Rules(drop=values.drop, allow_missing=values.allow_missing)
        assert kept != Rules(), told.value.fix
        result = found(through(kept, given))
        assert result.coverage > 0.8 and len(result.state) >= min(len(given), len(state)) - 5, (
            told.value.fix
        )


@pytest.mark.parametrize(
    ("of", "into"),
    [("resnet18", "resnet34"), ("resnet34", "resnet18"), ("resnet50", "resnet101"),
     ("resnet34", "resnet50")],
)  # fmt: skip
def test_another_depth_of_the_same_network_is_named(of: str, into: str) -> None:
    state = dict(Timm(of).build().module.state_dict())
    backbone = Timm(into)
    parts = Parts(backbone, Linear(), 2)
    with pytest.raises(WeightsError, match=r"backbone\.name=") as told:
        check(parts, through(Rules(), state))
    name = told.value.fix.rpartition("backbone.name=")[2]
    assert name == of and "allow_missing" not in told.value.fix
    right = Timm(name)
    assert check(Parts(right, Linear(), 2), through(Rules(), state)).coverage == 1


def test_a_shallower_or_deeper_file_is_not_called_incomplete_where_no_model_is_known() -> None:
    state = tensors()
    shallow = {n: t for n, t in state.items() if not n.startswith("layer3.0")}
    deep = state | {n.replace("layer1.0", "layer1.1"): t for n, t in state.items() if "layer1" in n}
    with pytest.raises(WeightsError, match=r"deeper network, with layer1\.1"):
        found(through(Rules(), deep))
    assert shallow  # its one block is lost whole, which says nothing of depth
    net = Own(lambda: nn.Sequential(*(nn.Linear(2, 2) for _ in range(4))), "3")
    backbone = {
        f"{i}.{n}": torch.ones(s) for i in (0, 1) for n, s in (("weight", (2, 2)), ("bias", 2))
    }
    with pytest.raises(WeightsError, match=r"shallower network, without 2") as told:
        check(Parts(net, Linear(), 2), through(Rules(), backbone))
    assert "allow_missing" not in told.value.fix


def test_another_architecture_is_said_after_shapes_were_compared() -> None:
    with pytest.raises(WeightsError, match=r"another architecture \(0 of the network's \d+ shapes"):
        found(through(Rules(), {"a": torch.ones(3, 7)}))
    shuffled = {f"x{i}": t for i, t in enumerate(reversed(list(tensors().values())))}
    with pytest.raises(WeightsError, match=r"under other names, in another order: give source"):
        found(through(Rules(), shuffled))
    larger = shuffled | {f"y{i}": t for i, t in enumerate(shuffled.values()) if i % 2}
    with pytest.raises(WeightsError, match=r"order, and \d+ tensors more: if .* larger network"):
        found(through(Rules(), larger))
