"""Networks from checkpoints, whole or of an interrupted run."""

import dataclasses
import shlex

import pytest
import torch

from xfer.config import schema
from xfer.config.hydra import compose_specs
from xfer.core.checksum import fingerprint
from xfer.core.errors import ConfigError, WeightsError
from xfer.core.seeds import derive
from xfer.core.types import Network
from xfer.models.backbone.timm import Timm
from xfer.models.backbone.torchvision import Torchvision
from xfer.models.head import Dropout, Keep, Linear, Mlp, Pooled
from xfer.models.network import (
    Parts,
    SkipInit,
    assemble,
    blueprint,
    check,
    fill,
    from_weights,
    shapes,
)
from xfer.models.restore import open_checkpoint
from xfer.plan.make import make_plan
from xfer.weights.content import Weights
from xfer.weights.formats.checkpoint_format import Snapshot, write_snapshot


@pytest.fixture(scope="module")
def plan():
    return make_plan(compose_specs(["experiment=digits_sgd"]))


def save(path, plan, net, keep, frozen):
    state = {n: t for n, t in net.state_dict().items() if keep(n)}
    write_snapshot(path, Snapshot(plan.card, state, {"epoch": 1}, frozen))


def rest(net):
    return fingerprint((n, t) for n, t in net.state_dict().items() if not n.startswith("fc."))


def test_the_blueprint_has_the_shapes_of_the_network(plan):
    _, after = blueprint(plan.parts)
    assert shapes(after.module) == shapes(assemble(plan.parts, plan.state))
    assert {p.device.type for p in after.module.parameters()} == {"meta"}


class Masked(torch.nn.Linear):
    """Two inputs, and one that need not be given."""

    def forward(self, images, mask, scale=1.0):
        return super().forward(images) * mask * scale


def test_a_network_of_several_inputs_is_refused_before_anything_is_trained(plan, monkeypatch):
    build = type(plan.parts.backbone).build

    def masked(self, classes=None):
        return dataclasses.replace(build(self, classes), module=Masked(2, 2), heads=("",))

    monkeypatch.setattr(type(plan.parts.backbone), "build", masked)
    parts = dataclasses.replace(plan.parts, head_from_source=False)
    with pytest.raises(ConfigError, match=r"E200: backbone: takes 2 inputs \(images, mask\)"):
        blueprint(parts)


def test_an_interrupted_runs_checkpoint_is_completed_from_its_source(plan, tmp_path):
    net = assemble(plan.parts, plan.state)
    with torch.no_grad():
        net.fc.weight.add_(1)
    path = tmp_path / "best.ckpt"
    save(path, plan, net, lambda n: n.startswith("fc."), rest(net))
    again, card = open_checkpoint(path, schema.build)
    assert all(t.equal(net.state_dict()[n]) for n, t in again.state_dict().items())
    assert card == plan.card and not again.training


def test_source_weights_that_changed_since_are_refused(plan, tmp_path):
    net = assemble(plan.parts, plan.state)
    path = tmp_path / "best.ckpt"
    save(path, plan, net, lambda n: n.startswith("fc."), "another fingerprint")
    with pytest.raises(WeightsError, match="source weights have changed"):
        open_checkpoint(path, schema.build)


def test_a_whole_checkpoint_with_a_hole_is_refused(plan, tmp_path):
    net = assemble(plan.parts, plan.state)
    path = tmp_path / "best.ckpt"
    save(path, plan, net, lambda n: n != "bn1.weight", None)
    with pytest.raises(WeightsError, match=r"lacks 1 tensor \(bn1.weight\)"):
        open_checkpoint(path, schema.build)


def test_a_tensor_of_another_shape_is_refused(plan):
    net = assemble(plan.parts, plan.state)
    with pytest.raises(WeightsError, match=r"fc\.bias"):
        fill(net, {"fc.bias": torch.zeros(7)})


def test_the_head_depends_on_the_seed_alone(plan):
    parts = dataclasses.replace(plan.parts, head=Mlp())
    torch.manual_seed(123)
    one = assemble(parts, plan.state).fc[0].weight
    torch.manual_seed(456)
    same = assemble(parts, plan.state).fc[0].weight
    other = assemble(dataclasses.replace(parts, seed=1), plan.state).fc[0].weight
    assert one.equal(same) and not one.equal(other)


@pytest.mark.parametrize("head", [Linear(), Dropout(), Mlp(), Pooled()])
def test_every_class_is_equally_likely_before_the_first_step(plan, head):
    net = assemble(dataclasses.replace(plan.parts, head=head), plan.state).eval()
    assert net(torch.rand(2, 3, 32, 32)).eq(0).all()


@pytest.fixture
def empty_memory_is_nan():
    """Whatever is made and not written is NaN, and no longer what happens to be in memory."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def drawn(parts, state):
    """The network as it is when every number is drawn first and then replaced."""
    network = parts.bare()
    found = check(parts, Weights("file", state), network)
    fill(network.module, found.state)
    torch.manual_seed(derive("head", parts.seed))
    parts.finish(network)
    return network.module


def tensors(net):
    """All of them, those that no state has as well."""
    return {**dict(net.named_parameters()), **dict(net.named_buffers())}


LIGHT = [
    *(Timm("resnet18"), Timm("mobilenetv3_small_050"), Timm("vit_tiny_patch16_224")),
    *(Timm("swin_tiny_patch4_window7_224"), Timm("convnext_atto"), Timm("efficientnet_lite0")),
    *(Torchvision("squeezenet1_1"), Torchvision("googlenet"), Torchvision("vit_b_16")),
]


LARGE = {"vit_b_16", "swin_tiny_patch4_window7_224"}  # a smaller transformer is left


@pytest.mark.parametrize(
    "backbone",
    [pytest.param(b, marks=pytest.mark.slow if b.name in LARGE else []) for b in LIGHT],
    ids=lambda b: b.name,
)
def test_what_weights_replace_is_not_drawn_and_nothing_else_is_missed(
    backbone, empty_memory_is_nan
):
    parts = Parts(backbone, Mlp(), 3)
    state = parts.bare().module.state_dict()
    expected = tensors(drawn(parts, state))
    with SkipInit():
        matrices = [p for p in parts.bare().module.parameters() if p.ndim > 1]
    left = sum(p.numel() for p in matrices if p.isnan().all())
    assert left > 0.98 * sum(p.numel() for p in matrices)
    found = tensors(from_weights(parts, Weights("file", state)))
    assert found.keys() == expected.keys()
    assert [name for name, tensor in found.items() if not tensor.equal(expected[name])] == []


def test_what_weights_leave_out_is_drawn(empty_memory_is_nan):
    parts = Parts(Timm("resnet18"), Mlp(), 3)
    whole = parts.bare().module.state_dict()
    some = {n: t for n, t in whole.items() if not n.startswith("layer4")}
    weights = Weights("file", some, allow_missing=("layer4.*",))
    one, same = from_weights(parts, weights), from_weights(parts, weights)
    assert all(t.equal(same.state_dict()[n]) for n, t in one.state_dict().items())
    assert one.layer4[0].conv1.weight.std() > 0.01
    assert one.layer1[0].conv1.weight.equal(whole["layer1.0.conv1.weight"])


@dataclasses.dataclass(frozen=True)
class Own:
    """Somebody's own, with numbers that no state has and that follow from those that are drawn."""

    library = "own"
    name = "projected"

    def build(self, classes=None):
        torch.rand(1)
        module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, classes or 2))
        module.register_buffer("basis", torch.randn(3) * module[0].weight.sum(), persistent=False)
        return Network(module, ("1",), None)


def test_somebodys_own_network_is_drawn_as_ever(empty_memory_is_nan):
    parts = Parts(Own(), Linear(), 2)
    torch.manual_seed(derive("initial", 0))
    state = (basis := parts.bare().module).state_dict()
    assert from_weights(parts, Weights("file", state)).basis.equal(basis.basis)


def test_to_open_a_checkpoint_moves_nobodys_random_numbers(plan, tmp_path):
    path = tmp_path / "best.ckpt"
    save(path, plan, assemble(plan.parts, plan.state), lambda n: True, None)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    open_checkpoint(path, schema.build)
    assert torch.rand(1).equal(expected)


def test_a_head_that_stays_is_not_left_undrawn(empty_memory_is_nan):
    parts = Parts(Timm("resnet18"), Keep(), 1000)
    state = {n: t for n, t in parts.bare().module.state_dict().items() if n[:3] != "fc."}
    weights = Weights("file", state, allow_missing=("fc.*",))
    assert from_weights(parts, weights).fc.weight.isfinite().all()


def test_an_onnx_file_as_a_checkpoint_says_how_one_predicts_with_it(tmp_path):
    import onnx

    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    x, y = (onnx.helper.make_tensor_value_info(n, 1, [1]) for n in "xy")
    path = tmp_path / "model.onnx"
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [x], [y])), path)
    typed = ["stages=[predict]", f"checkpoint.path={path}", "predict.input=photos"]
    with pytest.raises(WeightsError, match=r"E437.*is an ONNX network") as told:
        make_plan(compose_specs(typed))
    advised = told.value.fix.removeprefix("type ").removesuffix(" in place of checkpoint.path")
    assert compose_specs([*shlex.split(advised), "predict.input=photos"]).predict_with.path == str(
        path
    )
