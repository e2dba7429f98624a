"""A traced graph serves any weights of its layers, makes the file that a fresh trace makes, and is
traced again wherever anything else could have changed."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from xfer import api
from xfer.core.errors import OutputError
from xfer.export import Evidence, Onnx, export, onnx_graph
from xfer.export.onnx import tensors
from xfer.export.onnx_graph import GraphCache, UnknownLayer, filled, layers_of, trace
from xfer.training.features.store import Store

Images = np.ndarray[Any, np.dtype[np.float32]]


@pytest.fixture(scope="module")
def graph(digits: api.Model, images: Images) -> bytes:
    return trace(tensors(digits.net, images), 20)


def other_weights(net: nn.Module) -> nn.Module:
    """The same layers with every weight and statistic another."""
    net, noise = copy.deepcopy(net), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(1 + 0.3 * torch.rand(tensor.shape, generator=noise))
    return net


def of_torch(net: nn.Module, images: Images) -> Any:
    """The model that torch's exporter makes by itself, folded and fused, of activations that write
    over nothing."""
    net = copy.deepcopy(net)
    for module in net.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    traced = tensors(net, images)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        program: Any = torch.onnx.export(
            net,
            (traced.example,),
            dynamo=True,
            external_data=False,
            input_names=["images"],
            output_names=["logits"],
            opset_version=20,
            dynamic_shapes=(traced.free,),
        )
    return program.model_proto


def content(model: Any) -> list[Any]:
    """Nodes with what enters them, tensors as bytes, in order; without names of constants, and of
    what an output was called before it was exported."""
    held = {i.name: i for i in model.graph.initializer}
    rows = []
    for node in model.graph.node:
        entering = [
            (list(held[name].dims), held[name].data_type, held[name].raw_data)
            if name in held
            else name
            for name in node.input
        ]
        rows.append((node.op_type, entering, list(node.output), list(node.attribute)))
    for end in model.graph.output:
        end.ClearField("metadata_props")
    return [*rows, list(model.graph.input), list(model.graph.output), list(model.opset_import)]


def same_as_fresh(net: nn.Module, images: Images, graph: bytes) -> None:
    changed = other_weights(net)
    made, fresh = filled(graph, changed), filled(trace(tensors(changed, images), 20), changed)
    assert made.SerializeToString() == fresh.SerializeToString()
    assert content(made) == content(of_torch(changed, images))
    # Not because weights play no part.
    assert made.SerializeToString() != filled(graph, net).SerializeToString()


def test_a_graph_filled_with_other_weights_is_their_fresh_trace_byte_for_byte(
    digits: api.Model, images: Images, graph: bytes
) -> None:
    same_as_fresh(digits.net, images, graph)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["squeezenet1_0", "tf_efficientnet_lite0"])
def test_real_networks_too(name: str, assets: Path) -> None:
    import torchvision

    make: Any = timm.create_model if name.startswith("tf_") else torchvision.models.get_model
    net = make(name)
    net.load_state_dict(load_file(assets / "weights" / f"{name}_imagenet.safetensors"))
    net.eval()
    images = np.random.default_rng(0).normal(size=(2, 3, 224, 224)).astype(np.float32)
    same_as_fresh(net, images, trace(tensors(net, images), 20))


def test_the_graph_holds_no_weight(digits: api.Model, graph: bytes) -> None:
    state = digits.net.state_dict()
    used = {f"weights/{n}" for n in state if not n.endswith("num_batches_tracked")}
    held = onnx.ModelProto.FromString(graph).graph.initializer
    elsewhere = {t.name for t in held if t.data_location == onnx.TensorProto.EXTERNAL}
    assert elsewhere == used
    assert len(graph) < 0.5 * sum(t.nbytes for t in state.values())


# ---- what a graph depends on


class _Masked(nn.Sequential):
    """A buffer that is no weight, as shifted windows have one; of torch, as far as one can tell."""

    def __init__(self, fill: float) -> None:
        super().__init__(nn.Linear(3, 2))
        self.register_buffer("mask", torch.full((2,), fill), persistent=False)


_Masked.__module__ = "torch.nn.modules.masked"


def _net(change: Callable[[nn.Sequential], object] | None = None) -> nn.Sequential:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Linear(4, 2)).eval()
    if change:
        change(net)
    return net


CHANGES: dict[str, Callable[[nn.Sequential], object]] = {
    "another stride": lambda net: setattr(net[0], "stride", (2, 2)),
    "another eps": lambda net: setattr(net[1], "eps", 1e-3),
    "another layer": lambda net: net.__setitem__(2, nn.ReLU6()),
    "another order": lambda net: net.append(net.pop(2)),
    "more classes": lambda net: net.__setitem__(3, nn.Linear(4, 5)),
    "no bias": lambda net: net.__setitem__(3, nn.Linear(4, 2, bias=False)),
    "one layer more": lambda net: net.append(nn.Identity()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_layers_that_differ_have_another_key(change: str) -> None:
    assert layers_of(_net()) == layers_of(other_weights(_net()))
    assert layers_of(_net(CHANGES[change])) != layers_of(_net())


def test_values_that_are_no_weights_are_in_the_key() -> None:
    assert layers_of(_Masked(1.0)) == layers_of(_Masked(1.0))
    assert layers_of(_Masked(1.0)) != layers_of(_Masked(2.0))


class OfTheUser(nn.Linear):
    """Its forward pass may be another one tomorrow."""


SPOILT: dict[str, Callable[[nn.Sequential], object]] = {
    "^4: test_onnx_graph.OfTheUser is code of no library, and may change$": lambda net: net.append(
        OfTheUser(2, 2)
    ),
    "^0 has a hook$": lambda net: net[0].register_forward_hook(lambda *seen: None),
    "^0 has a forward pass that is not that of its class$": lambda net: setattr(
        net[0], "forward", lambda x: x
    ),
    "^'scale' of 0: the function .*lambda.* may hold values of its own$": lambda net: setattr(
        net[0], "scale", lambda x: x
    ),
    "^'thing' of 0: values of the type object cannot be written down$": lambda net: setattr(
        net[0], "thing", object()
    ),
}


@pytest.mark.parametrize("reason", SPOILT)
def test_code_of_ones_own_is_traced_each_time_and_the_reason_is_said(
    reason: str, digits: api.Model, traces: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    net, stored = _net(SPOILT[reason]), _Wrong(b"")
    with pytest.raises(UnknownLayer, match=reason) as error:
        layers_of(net)
    caplog.set_level("INFO", "xfer")
    traced = tensors(net, np.zeros((1, 3, 8, 8), np.float32))
    for turn in (1, 2):
        GraphCache(stored).graph("model.onnx", traced, 20)
        said = f"export/model.onnx is traced at every export: {error.value}"
        assert caplog.messages.count(said) == len(traces) == turn


# ---- the cache


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch, graph: bytes) -> list[int]:
    """The opset of each trace that is asked for, and answered with the one graph of all weights."""
    asked: list[int] = []

    def answered(traced: Any, opset: int) -> bytes:
        asked.append(opset)
        return graph

    monkeypatch.setattr(onnx_graph, "trace", answered)
    return asked


def exported(
    model: api.Model, images: Images, folder: Path, graphs: GraphCache | None, opset: int = 20
) -> bytes:
    evidence = Evidence(graphs=graphs)
    export(model.net, images, [Onnx(opset=opset)], model.card, folder, 1e-3, evidence)
    return (folder / "model.onnx").read_bytes()


def test_a_second_run_reads_the_graph_and_a_spoilt_one_is_traced_again_with_a_word(
    digits: api.Model,
    images: Images,
    tmp_path: Path,
    traces: list[int],
) -> None:
    store = Store(tmp_path / "cache", 1.0)
    first, again = GraphCache(store), GraphCache(store)
    made = exported(digits, images, tmp_path / "a", first)
    assert (len(traces), first.hits) == (1, ())
    assert exported(digits, images, tmp_path / "b", again) == made
    assert (len(traces), again.hits) == (1, ("model.onnx",))
    assert exported(digits, images, tmp_path / "c", None) == made, "without a cache too"

    other = api.Model(other_weights(digits.net), digits.card)
    there = exported(other, images, tmp_path / "d", GraphCache(store))
    assert len(traces) == 2, "for the file without a cache alone"
    assert there == exported(other, images, tmp_path / "e", None) != made

    (entry,) = store.folder.glob("*.npy")
    data = bytearray(entry.read_bytes())
    data[-1000] ^= 1
    entry.write_bytes(data)
    spoilt = GraphCache(store)
    assert exported(digits, images, tmp_path / "f", spoilt) == made
    assert (traces.count(20), spoilt.hits) == (4, ())
    assert exported(digits, images, tmp_path / "g", GraphCache(store)) == made
    assert traces.count(20) == 4


class _Wrong:
    """A store that gives the graph of another network."""

    def __init__(self, data: bytes) -> None:
        self.data, self.forgotten = data, list[str]()

    def content(self, key: Any, make: Callable[[], bytes]) -> tuple[bytes, bool]:
        return (make(), False) if self.forgotten else (self.data, True)

    def known(self, key: Any) -> bytes | None:
        return None

    def forget(self, key: Any, reason: str) -> None:
        self.forgotten.append(reason)


def test_a_file_of_a_stale_graph_is_not_refused_but_traced_again(
    digits: api.Model, images: Images, graph: bytes, tmp_path: Path, traces: list[int]
) -> None:
    model = onnx.ModelProto.FromString(graph)
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    relu.op_type = "Abs"
    stored = _Wrong(model.SerializeToString())
    graphs = GraphCache(stored)
    made = exported(digits, images, tmp_path / "a", graphs)
    assert stored.forgotten == ["the file made of it does not answer as the network does"]
    assert (traces, graphs.hits) == ([20], ())
    assert made == exported(digits, images, tmp_path / "b", None)


class _Full(_Wrong):
    def content(self, key: Any, make: Callable[[], bytes]) -> tuple[bytes, bool]:
        raise OutputError("cache", "cannot be written (full)", "free space", 12)


def test_a_cache_that_cannot_be_written_costs_a_trace_and_a_line(
    digits: api.Model, images: Images, tmp_path: Path, traces: list[int]
) -> None:
    exported(digits, images, tmp_path, GraphCache(_Full(b"")))
    assert traces == [20]


class _Shortcut(nn.Module):
    """A pre-activation block: where its activation writes over the input, the shortcut adds what
    it wrote."""

    def __init__(self, reads_it: bool) -> None:
        super().__init__()
        self.act, self.conv, self.reads_it = nn.ReLU6(inplace=True), nn.Conv2d(3, 3, 1), reads_it

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        shortcut = x if self.reads_it else x.clone()
        return (self.conv(self.act(x)) + shortcut).mean((2, 3))


@pytest.mark.parametrize("reads_it", [True, False])
def test_a_shortcut_that_reads_what_an_activation_wrote_over_stays_as_it_is(
    reads_it: bool, images: Images, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net, spread = _Shortcut(reads_it).eval(), 6 * images
    with torch.no_grad():
        expected = net(torch.from_numpy(spread)).numpy()
    onnx.save(filled(trace(tensors(net, spread), 20), net), tmp_path / "x.onnx")
    session = ort.InferenceSession(tmp_path / "x.onnx")
    np.testing.assert_allclose(session.run(None, {"images": spread})[0], expected, atol=1e-5)
    assert net.act.inplace
