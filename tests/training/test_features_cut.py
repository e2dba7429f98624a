"""The cut: what is computed from cached features is what the whole network computes."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from xfer.core.errors import ConfigError
from xfer.core.protocols import Backbone
from xfer.freeze import hold
from xfer.models.backbone import Timm, Torchvision
from xfer.training.features import prove_cut
from xfer.training.features.cut import Cut, Part, Tail, evaluated_from, extract, prefix_state
from xfer.training.features.find_cut import Refusal, find
from xfer.training.features.prove_cut import Whole
from xfer.training.features.shape_tensor import Unsound, tensors

HEAD_ONLY = (("head", 1), ("backbone", 0))
LAYER = (("head", 1), (r"layer\..*", 1), ("backbone", 0))
LAST_STAGE = (("head", 1), (r"layer4\..*", 0.1), ("backbone", 0))
# Backbone, pixels, modules at whose inputs it is cut, numbers an image.
FAMILIES: dict[str, tuple[Backbone, int, tuple[str, ...], int]] = {
    "resnet": (Torchvision("resnet18"), 64, ("fc",), 512),
    # Its last dropout works in place and trains with the head.
    "mobilenet": (Torchvision("mobilenet_v3_small"), 64, ("classifier.2",), 1024),
    "efficientnet": (Torchvision("efficientnet_b0"), 64, ("classifier.0",), 1280),
    "convnext": (Timm("convnext_atto"), 64, ("head.fc",), 320),
    "vit": (Timm("vit_tiny_patch16_224", {"depth": 3}, 32), 32, ("head",), 192),
    "swin": (Timm("swin_tiny_patch4_window7_224", image_size=56), 56, ("head.fc",), 768),
    "squeezenet": (Torchvision("squeezenet1_0"), 64, ("classifier.0",), 512 * 3 * 3),
    "googlenet": (Torchvision("googlenet"), 64, ("dropout",), 1024),
    "two classifiers": (
        Timm("deit_tiny_distilled_patch16_224", {"depth": 2}, 32), 32, ("head", "head_dist"), 384,
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def ready(
    backbone: Backbone, rules: tuple[tuple[str, float], ...] = HEAD_ONLY
) -> tuple[nn.Module, tuple[str, ...]]:
    network = backbone.build(5)
    return thawed(network.module, network.heads, rules), network.heads


def thawed(
    net: nn.Module, heads: tuple[str, ...], rules: tuple[tuple[str, float], ...] = HEAD_ONLY
) -> nn.Module:
    """Frozen by those rules, in the mode in which it trains."""
    for name, parameter in net.named_parameters():
        is_head = name.startswith(tuple(f"{head}." for head in heads))
        rates = {"head": is_head, "backbone": not is_head}
        rule = next(r for r in rules if rates.get(r[0], re.fullmatch(r[0], name)))
        parameter.requires_grad_(rule[1] > 0)
    net.train()
    hold(net)
    return net


def found(net: nn.Module, images: Tensor, heads: tuple[str, ...]) -> Cut:
    cut = find(net, images, heads)
    assert isinstance(cut, Cut), cut
    return cut


def refused(net: nn.Module, images: Tensor, heads: tuple[str, ...]) -> str:
    cut = find(net, images, heads)
    assert isinstance(cut, Refusal), cut
    return cut.reason


def left_by_a_step(net: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    """Answers, gradients and buffers of one training step, and the answers in evaluation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        answers = tensors(net(batch))
    sum(answer.float().square().sum() for answer in answers).backward()
    left = {f"answer {i}": answer.detach() for i, answer in enumerate(answers)}
    left |= {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
    left |= {name: buffer.clone() for name, buffer in net.named_buffers()}
    modes = {module: module.training for module in net.modules()}
    with torch.no_grad():
        answers = tensors(net.eval()(batch))
    for module, mode in modes.items():
        module.training = mode
    net.zero_grad()
    return left | {f"evaluated {i}": answer for i, answer in enumerate(answers)}


def assert_the_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


DIRECT = {"resnet", "mobilenet", "efficientnet", "convnext", "vit", "swin", "squeezenet"}


def unneeded(*_: object) -> None:
    raise AssertionError("a tail was put together")


SLOW = {"swin", "efficientnet"}  # another transformer and other convolutions are left


@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=pytest.mark.slow if f in SLOW else []) for f in FAMILIES]
)
def test_from_the_head_on_everything_is_bit_for_bit_the_whole_networks(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, size, modules, numbers = FAMILIES[family]
    net, heads = ready(backbone)
    images = torch.randn(6, 3, size, size)
    cut = found(net, images, heads)
    assert (cut.modules, cut.size) == (modules, numbers)
    assert bool(cut.direct) is (family in DIRECT)
    if cut.direct:
        with monkeypatch.context() as patch:
            patch.setattr(prove_cut, "Tail", unneeded)
            assert find(net, images, heads, answers=True) == cut, "answers alone need no tail"
        with torch.no_grad(), evaluated_from(net.eval(), cut) as run:
            assert run is not net and run(extract(net, cut, images)).equal(net(images))
        hold(net.train(), "eval")
    whole, cached = copy.deepcopy(net), net
    features = extract(cached, cut, images)
    assert features.shape == (6, numbers)
    kept = features.clone()
    wanted = left_by_a_step(whole, images)
    assert {f"{head}.weight" for head in heads} <= wanted.keys()
    tail = Tail(cached, cut)
    assert_the_same(left_by_a_step(cached, features), wanted)
    assert torch.equal(features, kept), "the caller's features are left alone"
    tail.close()
    assert_the_same(left_by_a_step(cached, images), left_by_a_step(whole, images))


def test_auxiliary_classifiers_are_cut_side_by_side_with_the_last_one() -> None:
    heads = ("aux1", "aux2", "fc")
    net = thawed(Torchvision("googlenet", {"aux_logits": True}).build(5).module, heads)
    images = torch.randn(4, 3, 64, 64)
    cut = found(net, images, heads)
    assert cut.modules == ("aux1", "aux2", "dropout")
    whole, features = copy.deepcopy(net), extract(net, cut, images)
    Tail(net, cut)
    wanted = left_by_a_step(whole, images)
    assert {"answer 2", "evaluated 0", "aux2.conv.conv.weight"} <= wanted.keys()
    assert_the_same(left_by_a_step(net, features), wanted)


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_last_stage_is_cut_off_at_its_input(channels_last: bool) -> None:
    net, heads = ready(Torchvision("resnet18"), LAST_STAGE)
    images = torch.randn(6, 3, 64, 64)
    if channels_last:
        net = net.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    cut = found(net, images, heads)
    assert (cut.modules, cut.size) == (("layer4",), 256 * 4 * 4)
    assert cut.after == ("layer4", "avgpool", "fc")
    assert cut.parts[0].strides == ((1, 1024, 256) if channels_last else (16, 4, 1))
    whole, features = copy.deepcopy(net), extract(net, cut, images)
    Tail(net, cut)
    assert_the_same(left_by_a_step(net, features), left_by_a_step(whole, images))


def test_under_autocast_the_features_have_the_type_in_which_they_are_computed() -> None:
    net, heads = ready(Torchvision("resnet18"), LAST_STAGE)
    images = torch.randn(4, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        cut = found(net, images, heads)
        assert (cut.dtype, cut.bytes_per_image()) == ("bfloat16", 2 * 256 * 4 * 4)
        whole, features = copy.deepcopy(net), extract(net, cut, images)
        assert features.dtype == torch.bfloat16
        Tail(net, cut)
        assert_the_same(left_by_a_step(net, features), left_by_a_step(whole, images))


def test_squeezenet_is_346_kilobytes_an_image() -> None:
    net, heads = ready(Torchvision("squeezenet1_0"))
    cut = found(net, torch.randn(2, 3, 224, 224), heads)
    assert (cut.size, cut.bytes_per_image()) == (86_528, 346_112)


def trained(net: nn.Module, batches: list[Tensor]) -> None:
    rate = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.01, momentum=0.9)
    for i, batch in enumerate(batches):
        torch.manual_seed(i)
        rate.zero_grad()
        net(batch).square().mean().backward()
        rate.step()


def test_every_phase_is_cut_anew_and_trains_as_the_whole_network_does() -> None:
    net, heads = ready(Torchvision("resnet18"))
    whole = copy.deepcopy(net)
    batches = [torch.randn(4, 3, 64, 64) for _ in range(3)]
    sizes = []
    for rules in (HEAD_ONLY, LAST_STAGE, HEAD_ONLY):
        for each in (net, whole):
            thawed(each, heads, rules)
        cut = found(net, batches[0], heads)
        sizes.append(cut.size)
        features = [extract(net, cut, batch) for batch in batches]
        tail = Tail(net, cut)
        trained(net, features)
        tail.close()
        trained(whole, batches)
        assert_the_same(net.state_dict(), whole.state_dict())
    assert sizes == [512, 4096, 512]
    assert not any("forward" in vars(module) for module in net.modules())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in net.modules())


def test_the_finder_leaves_network_and_random_numbers_as_they_are() -> None:
    net, heads = ready(Torchvision("mobilenet_v3_small"))
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    chance = random.getstate(), torch.get_rng_state()
    found(net, torch.ones(2, 3, 32, 32), heads)
    assert_the_same(net.state_dict(), state)
    assert modes == [module.training for module in net.modules()]
    assert all(parameter.grad is None for parameter in net.parameters())
    assert random.getstate() == chance[0]
    assert torch.equal(torch.get_rng_state(), chance[1])


class Sized(nn.Module):
    """Notes how many images it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __deepcopy__(self, _: object) -> Sized:
        return self

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add(len(x))
        return x


def test_the_finder_takes_two_images_of_however_many_it_is_given() -> None:
    sized = Sized()
    net = nn.Sequential(sized, nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 2))
    thawed(net, ("3",))
    found(net, torch.randn(24, 3, 8, 8), ("3",))
    assert sized.seen == {1, 2}


class Net(nn.Module):
    """A stem, ``between``, a layer, and a head; ``join`` makes the answer from the head's input,
    the stem's output and the images."""

    def __init__(
        self,
        between: nn.Module | None = None,
        join: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda x, stem, images: x,
    ) -> None:
        super().__init__()
        self.stem, self.between = nn.Linear(12, 6), between or nn.Identity()
        self.layer, self.head, self.join = nn.Linear(6, 6), nn.Linear(6, 2), join

    def forward(self, images: Tensor) -> Tensor:
        stem: Tensor = self.stem(images.flatten(1))
        x: Tensor = self.layer(self.between(stem))
        answer: Tensor = self.head(self.join(x, stem, images))
        return answer


SMALL = torch.linspace(-1, 1, 60).sin().reshape(5, 3, 2, 2)


def test_a_network_of_which_nothing_is_frozen_is_refused() -> None:
    net = thawed(Net(), ("head",), ((".*", 1),))
    reason = "nothing frozen is computed before the first layer that trains or is random"
    assert refused(net, SMALL, ("head",)) == reason


def test_one_image_proves_nothing() -> None:
    assert "two" in refused(thawed(Net(), ("head",)), SMALL[:1], ("head",)).replace("2", "two")


@pytest.mark.parametrize(
    ("between", "late", "why"),
    [
        (nn.BatchNorm1d(6), "'between.running_mean' differs", "'0.running_mean' differs"),
        (nn.Dropout(0.5), "random numbers are drawn before 'head'", "or is random"),
    ],
)
def test_what_moves_or_is_random_is_never_inside_the_prefix(
    between: nn.Module, late: str, why: str
) -> None:
    net = thawed(Net(between), ("head",))
    assert Whole(net, SMALL).refutes(CUT) is None
    net.between.train()
    assert late in str(Whole(net, SMALL).refutes(CUT))
    cut = found(net, SMALL, ("head",))
    assert cut.modules == ("between",), "its input is still the same in every epoch"
    first = nn.Sequential(between, nn.Flatten(), nn.Linear(6, 2))
    thawed(first, ("2",))
    between.train()
    assert why in refused(first, torch.randn(4, 6), ("2",))


def test_what_enters_the_cut_may_not_train() -> None:
    why = "what enters 'head' depends on what trains"
    assert Whole(thawed(Net(), ("head",), LAYER), SMALL).refutes(CUT) == why


class Sizes(nn.Module):
    """Takes and gives a size beside the tensor, as MViT's blocks do."""

    def forward(self, x: Tensor, size: torch.Size) -> tuple[Tensor, torch.Size]:
        return x, size


def test_sizes_among_inputs_and_outputs_stay_sizes() -> None:
    net = Net()
    net.sizes = Sizes()
    net.join = lambda x, stem, images: net.sizes(x, stem.shape)[0].reshape(stem.shape)
    assert find(thawed(net, ("head",)), SMALL, ("head",)) == CUT


class AcrossTheBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def test_features_that_depend_on_their_batch_are_refused() -> None:
    assert "the other images of the batch" in str(
        Whole(thawed(Net(AcrossTheBatch()), ("head",)), SMALL).refutes(CUT)
    )


CUT = Cut((Part("head", 0, (6,), (1,)),), "float32", (3, 2, 2), "float32", ("head",))
AT_LAYER = Cut((Part("layer", 0, (6,), (1,)),), "float32", (3, 2, 2), "float32", ("layer", "head"))


def test_a_skip_connection_across_the_cut_is_an_error_and_not_a_number() -> None:
    net = thawed(Net(join=lambda x, stem, images: x + stem), ("head",), LAYER)
    features = extract(net, AT_LAYER, SMALL)
    Tail(net, AT_LAYER)
    with pytest.raises(Unsound, match="used after it as well"):
        net(features)


def poisons() -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    def written(x: Tensor, stem: Tensor, images: Tensor) -> Tensor:
        x = x.clone()
        x[:, 0] = stem[:, 0]
        return x

    return {
        "adds": lambda x, stem, images: x + stem,
        "asks the images": lambda x, stem, images: x * images.mean(),
        "reads a number": lambda x, stem, images: x * stem.sum().item(),
        "branches": lambda x, stem, images: x if stem.sum() > 0 else -x,
        "writes": written,
        "indexes": lambda x, stem, images: x[:, stem[0].argsort()],
        "as numpy": lambda x, stem, images: x * float(stem.detach().numpy().sum()),
    }


@pytest.mark.parametrize("poison", poisons())
def test_a_tail_that_uses_a_value_from_before_the_cut_fails(poison: str) -> None:
    net = thawed(Net(join=poisons()[poison]), ("head",), LAYER)
    for answers in (False, True):
        assert Whole(net, SMALL).refutes(AT_LAYER, answers) is not None
        assert isinstance(find(net, SMALL, ("head",), answers), Refusal)
    features = extract(net, AT_LAYER, SMALL)
    Tail(net, AT_LAYER)
    with pytest.raises((Unsound, RuntimeError)):
        net(features)


def test_a_tail_may_use_the_shape_and_type_of_what_is_before_the_cut() -> None:
    net = thawed(Net(join=lambda x, stem, images: x.to(stem.dtype) * stem.shape[1]), ("head",))
    cut = found(net, SMALL, ("head",))
    whole, features = copy.deepcopy(net), extract(net, cut, SMALL)
    Tail(net, cut)
    assert_the_same(left_by_a_step(net, features), left_by_a_step(whole, SMALL))


class More(nn.Linear):
    """A head that is handed something besides."""

    def forward(self, x: Tensor, more: Tensor) -> Tensor:
        return super().forward(x) + more


class ByHand(nn.Sequential):
    """A sequence that is not called as one."""

    def forward(self, x: Tensor) -> Tensor:
        for module in self:
            x = module(x)
        return x


def relu_between(head: nn.Module, x: Tensor) -> Tensor:
    """Each module of the head by itself, with something in place between them."""
    first, second = head.children()
    return second(first(x).relu_())


class Ends(Net):
    """What ``end`` makes of features and head, as the answer."""

    def __init__(self, end: Callable[[nn.Module, Tensor], Tensor], head: nn.Module) -> None:
        super().__init__()
        self.head, self.end = head, end

    def forward(self, images: Tensor) -> Tensor:
        return self.end(self.head, self.layer(self.stem(images.flatten(1))))


def row(kind: type[nn.Sequential] = nn.Sequential) -> nn.Module:
    return kind(nn.Linear(6, 4), nn.Linear(4, 2))


# What is done with the head's answer; the cut is at its first module, where it has several.
ENDS: dict[str, tuple[Callable[[nn.Module, Tensor], Tensor], nn.Module]] = {
    "direct": (lambda head, x: head(x), nn.Linear(6, 2)),
    "direct, flattened": (lambda head, x: head(x[:, :, None, None]).flatten(1), nn.Conv2d(6, 2, 1)),
    "direct, in a row": (lambda head, x: head(x), row()),
    "of its own class": (lambda head, x: head(x), row(ByHand)),
    "something between": (relu_between, row()),
    "something follows": (lambda head, x: head(x).softmax(1), nn.Linear(6, 2)),
    "something in place": (lambda head, x: head(x).add_(1), nn.Linear(6, 2)),
    "another shape": (lambda head, x: head(x).T, nn.Linear(6, 5)),
    "something is added": (lambda head, x: head(x, torch.ones(2)), More(6, 2)),
    "called twice": (lambda head, x: (head(x), head(x))[1], nn.Linear(6, 2)),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_cut_is_direct_where_its_modules_alone_give_the_answer(end: str) -> None:
    net = thawed(Ends(*ENDS[end]), ("head",))
    several = isinstance(net.head, nn.Sequential)
    first = Part("head.0" if several else "head", 0, (6,), (1,))
    row = ("head.0", "head.1") if several else ("head",)
    direct = Whole(net, SMALL).direct(replace(CUT, parts=(first,)))
    assert direct == (row if end.startswith("direct") else ())
    cut = find(net, SMALL, ("head",))
    if isinstance(cut, Cut):
        assert Cut.from_plain(json.loads(json.dumps(cut.to_plain()))).direct == cut.direct
    if end.startswith("direct"):
        whole = Whole(net, SMALL)
        assert whole.refutes(found(net, SMALL, ("head",)), answers=True) is None


@pytest.mark.parametrize("change", ["as it is", "a hook", "not direct"])
def test_what_is_evaluated_from_a_cut_is_what_the_network_gives(change: str) -> None:
    net = thawed(Net(), ("head",))
    cut = found(net, SMALL, ("head",))
    assert cut.direct
    features = extract(net, cut, SMALL)
    if change == "a hook":
        net.register_forward_hook(lambda *seen: seen[2] + 1)
    cut = replace(cut, direct=() if change == "not direct" else cut.direct)
    with torch.no_grad():
        whole = net.eval()(SMALL)
        with evaluated_from(net, cut) as run:
            assert run(features).equal(whole)
            assert run(features[:2]).equal(net.eval()(SMALL[:2]) if run is not net else whole[:2])
        assert net(SMALL).equal(whole), "the network is whole again"


def test_the_facts_of_a_cut_are_json_and_come_back() -> None:
    net, heads = ready(Torchvision("resnet18"), LAST_STAGE)
    cut = found(net, torch.randn(2, 3, 64, 64), heads)
    assert Cut.from_plain(json.loads(json.dumps(cut.to_plain()))) == cut


def test_the_state_before_the_cut_is_all_that_the_features_depend_on() -> None:
    net, heads = ready(Torchvision("resnet18"), LAST_STAGE)
    cut = found(net, torch.randn(2, 3, 64, 64), heads)
    names = {name for name, _ in prefix_state(net, cut)}
    stages = {"conv1", "bn1", "layer1", "layer2", "layer3"}
    assert names == {name for name in net.state_dict() if name.split(".")[0] in stages}


def test_features_of_another_cut_are_refused() -> None:
    net = thawed(Net(), ("head",))
    cut = found(net, SMALL, ("head",))
    Tail(net, cut)
    with pytest.raises(ConfigError, match=r"features are \(5, 7\), the cut asks for \(n, 6\)"):
        net(torch.randn(5, 7))


def test_a_cut_of_another_network_is_refused() -> None:
    net = thawed(Net(), ("head",))
    cut = found(net, SMALL, ("head",))
    with pytest.raises(ConfigError, match="no module 'head'"):
        extract(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), cut, SMALL)
    net.layer, net.head = nn.Linear(6, 3), nn.Linear(3, 2)
    with pytest.raises(ConfigError, match="'head' takes"):
        extract(net, cut, SMALL)
