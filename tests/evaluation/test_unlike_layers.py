"""Which layers of a network tell what is unlike: its stages, where a row is an image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from xfer.evaluation.certificate_answers import features_at, layer_paths
from xfer.freeze.stages import layout


class Odd(nn.Module):
    """Stages whose first layers are no use: called twice, on windows, after the head, never."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 4, 4)
        self.twice = nn.ModuleDict({"a": nn.Conv2d(4, 4, 1), "b": nn.Conv2d(4, 4, 1)})
        self.windows = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
        self.late = nn.ModuleDict({"a": nn.Linear(2, 2)})
        self.unused = nn.ModuleDict({"a": nn.Linear(2, 2)})
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice["b"](self.twice["a"](self.twice["a"](self.stem(x))))
        x = x.permute(0, 2, 3, 1)
        split = self.windows["a"](x.reshape(-1, 2, 4)).reshape(x.shape)
        x = self.windows["b"](split).mean((1, 2))
        out: Tensor = self.late["a"](self.head(x))
        return out


def test_each_stage_is_seen_at_its_first_layer_that_has_a_row_an_image() -> None:
    net = Odd().eval()
    paths = layer_paths(net, layout(net, ["head"]), (16, 16))
    assert paths == ("twice.b", "windows.b", "head.1")
    images = torch.randn(3, 3, 16, 16)
    with torch.inference_mode(), features_at(net, paths) as seen:
        net(images)
        net(images[:1])
    assert [[block.shape for block in seen[path]] for path in paths] == [[(3, 4), (1, 4)]] * 3
    with torch.inference_mode():
        entering = net.twice["a"](net.twice["a"](net.stem(images)))
    torch.testing.assert_close(torch.from_numpy(seen["twice.b"][0]), entering.mean((2, 3)))
    assert not any(module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", [*(f"layer{i}.0.conv1" for i in range(1, 5)), "fc"]),
        ("vit_tiny_patch16_224", [*(f"blocks.{i}.attn.qkv" for i in (0, 3, 6, 9)), "head"]),
        (
            "swin_tiny_patch4_window7_224",
            # What enters the attention's layer is cut into windows.
            [
                "layers.0.blocks.0.mlp.fc1",
                *(f"layers.{i}.downsample.reduction" for i in (1, 2, 3)),
                "head.fc",
            ],
        ),
    ],
)
@pytest.mark.slow
def test_networks_of_timm_are_seen_at_up_to_four_stages(name: str, expected: list[str]) -> None:
    import timm

    net = timm.create_model(name, num_classes=2).eval()
    (head,) = [p for p in ("fc", "head") if hasattr(net, p)]
    assert list(layer_paths(net, layout(net, [head]), (224, 224))) == expected
