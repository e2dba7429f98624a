"""Files and answers of the real MindSpore. Run by MindSpore's own python, which has no torch:

ONEDNN_MAX_CPU_ISA=AVX2 $XFER_MINDSPORE tests/proofs/mindspore_proof.py NETWORK FOLDER SIZE...

writes ``NETWORK.ckpt``, ``.safetensors`` and ``.mindir`` with random weights, for each size
``x_SIZE.npy`` and ``logits_SIZE.npy``, and ``statistics.npz``, the moving statistics after a step
of training on the last of them. Needs mindspore and, for the networks whose names start with
``cv``, mindcv.
"""

from __future__ import annotations

import sys
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

CLASSES = 7


def conv(inside: int, outside: int, k: int, stride: int = 1, explicit: bool = False) -> nn.Cell:
    """The model zoo pads ``same``, but its resnet18 and 34 as torch does."""
    if explicit and k > 1:
        return nn.Conv2d(inside, outside, k, stride, pad_mode="pad", padding=k // 2)
    return nn.Conv2d(inside, outside, k, stride, pad_mode="same")


class Basic(nn.Cell):
    """The residual block of the zoo's resnet18: its two norms have names of their own."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(inside, outside, 3, stride, explicit=True)
        self.bn1d = nn.BatchNorm2d(outside, eps=1e-4, momentum=0.9)
        self.conv2 = conv(outside, outside, 3, explicit=True)
        self.bn2d = nn.BatchNorm2d(outside, eps=1e-4, momentum=0.9)
        self.relu = nn.ReLU()
        self.down_sample_layer = None
        if stride != 1 or inside != outside:
            norm = nn.BatchNorm2d(outside, eps=1e-5, momentum=0.1)
            self.down_sample_layer = nn.SequentialCell([conv(inside, outside, 1, stride), norm])

    def construct(self, x: Tensor) -> Tensor:
        y = self.bn2d(self.conv2(self.relu(self.bn1d(self.conv1(x)))))
        return self.relu(y + (x if self.down_sample_layer is None else self.down_sample_layer(x)))


class Bottleneck(nn.Cell):
    """The residual block of the zoo's resnet50, the stride in its 3x3 convolution."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        wide = outside * 4
        self.conv1, self.bn1 = conv(inside, outside, 1), nn.BatchNorm2d(outside, eps=1e-4)
        self.conv2, self.bn2 = conv(outside, outside, 3, stride), nn.BatchNorm2d(outside, eps=1e-4)
        self.conv3, self.bn3 = conv(outside, wide, 1), nn.BatchNorm2d(wide, eps=1e-4)
        self.relu = nn.ReLU()
        self.down_sample_layer = None
        if stride != 1 or inside != wide:
            norm = nn.BatchNorm2d(wide, eps=1e-4)
            self.down_sample_layer = nn.SequentialCell([conv(inside, wide, 1, stride), norm])

    def construct(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(y)))))
        return self.relu(y + (x if self.down_sample_layer is None else self.down_sample_layer(x)))


class ZooResNet(nn.Cell):
    """The zoo's resnet18 (``basic``) and resnet50."""

    def __init__(self, basic: bool, layers: tuple[int, ...]) -> None:
        super().__init__()
        self.basic = basic
        self.conv1 = conv(3, 64, 7, 2, explicit=basic)
        self.bn1 = nn.BatchNorm2d(64, eps=1e-5 if basic else 1e-4, momentum=0.1 if basic else 0.9)
        self.relu = nn.ReLU()
        self.pad = nn.Pad(((0, 0), (0, 0), (1, 1), (1, 1)))
        self.pool = nn.MaxPool2d(3, 2, pad_mode="valid" if basic else "same")
        inside = 64
        for i, count in enumerate(layers):
            block, wide = (Basic, 1) if basic else (Bottleneck, 4)
            blocks = []
            for j in range(count):
                blocks.append(block(inside, 64 << i, 2 if i and not j else 1))
                inside = (64 << i) * wide
            setattr(self, f"layer{i + 1}", nn.SequentialCell(blocks))
        self.end_point = nn.Dense(inside, CLASSES)

    def construct(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.pool(self.pad(x) if self.basic else x)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.end_point(x.mean((2, 3)))


class ConvNorm(nn.Cell):
    """Convolution, norm and ReLU of the zoo's GoogLeNet."""

    def __init__(self, inside: int, outside: int, k: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = conv(inside, outside, k, stride)
        self.bn = nn.BatchNorm2d(outside, eps=0.001)
        self.relu = nn.ReLU()

    def construct(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))


class Inception(nn.Cell):
    """Four branches; ``widths`` as torchvision orders them."""

    def __init__(self, inside: int, *widths: int) -> None:
        super().__init__()
        one, red3, three, red5, five, pool = widths
        self.b1 = ConvNorm(inside, one, 1)
        self.b2 = nn.SequentialCell([ConvNorm(inside, red3, 1), ConvNorm(red3, three, 3)])
        self.b3 = nn.SequentialCell([ConvNorm(inside, red5, 1), ConvNorm(red5, five, 3)])
        self.maxpool = nn.MaxPool2d(3, 1, pad_mode="same")
        self.b4 = ConvNorm(inside, pool, 1)

    def construct(self, x: Tensor) -> Tensor:
        return ops.concat((self.b1(x), self.b2(x), self.b3(x), self.b4(self.maxpool(x))), 1)


WIDTHS = {
    "3a": (192, 64, 96, 128, 16, 32, 32),
    "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128),
    "5a": (832, 256, 160, 320, 32, 128, 128),
    "5b": (832, 384, 192, 384, 48, 128, 128),
}


class ZooGoogLeNet(nn.Cell):
    """The zoo's GoogLeNet; without its top it gives the map of 1024 channels."""

    def __init__(self, top: bool = True) -> None:
        super().__init__()
        self.top = top
        self.conv1, self.maxpool1 = ConvNorm(3, 64, 7, 2), nn.MaxPool2d(3, 2, pad_mode="same")
        self.conv2, self.conv3 = ConvNorm(64, 64, 1), ConvNorm(64, 192, 3)
        self.maxpool2 = nn.MaxPool2d(3, 2, pad_mode="same")
        self.maxpool3 = nn.MaxPool2d(3, 2, pad_mode="same")
        self.maxpool4 = nn.MaxPool2d(2, 2, pad_mode="same")
        for name, widths in WIDTHS.items():
            setattr(self, f"block{name}", Inception(*widths))
        self.classifier = nn.Dense(1024, CLASSES) if top else None

    def construct(self, x: Tensor) -> Tensor:
        x = self.maxpool2(self.conv3(self.conv2(self.maxpool1(self.conv1(x)))))
        x = self.maxpool3(self.block3b(self.block3a(x)))
        x = self.block4e(self.block4d(self.block4c(self.block4b(self.block4a(x)))))
        x = self.block5b(self.block5a(self.maxpool4(x)))
        return self.classifier(x.mean((2, 3))) if self.top else x


class Mean(nn.Cell):
    """The pooling of the tutorials' own heads."""

    def construct(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def build(network: str) -> nn.Cell:
    """``zoo_...``: the model zoo's, written here from its facts; ``cv_...``: mindcv's own."""
    if network == "zoo_resnet18":
        return ZooResNet(True, (2, 2, 2, 2))
    if network == "zoo_resnet50":
        return ZooResNet(False, (3, 4, 6, 3))
    if network == "zoo_googlenet":
        return ZooGoogLeNet()
    if network == "zoo_googlenet_sequential":
        return nn.SequentialCell([ZooGoogLeNet(top=False), Mean(), nn.Dense(1024, CLASSES)])
    from mindcv.models import create_model

    return create_model(network.removeprefix("cv_"), num_classes=CLASSES)


def draw(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Numbers that keep activations near one, and statistics that are no zeros and ones."""
    last = name.rpartition(".")[2]
    if last in ("gamma", "moving_variance"):
        # A residual branch that is small keeps deep networks from growing.
        small = name.endswith(("bn3.gamma", "bn2d.gamma"))
        return rng.uniform(0.5, 1.5, shape) * (0.3 if small else 1)
    if len(shape) < 2 or last in ("pos_embed", "cls_token"):
        return rng.normal(0, 0.2, shape)
    return rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)


def main(network: str, folder: Path, sizes: list[int]) -> None:
    """Write the files and answers of one network."""
    rng = np.random.default_rng(5)
    net = build(network)
    for name, parameter in net.parameters_and_names():
        parameter.set_data(Tensor(draw(name, parameter.shape, rng).astype(np.float32)))
    net.set_train(False)
    folder.mkdir(parents=True, exist_ok=True)
    ms.save_checkpoint(net, str(folder / f"{network}.ckpt"))
    ms.save_checkpoint(net, str(folder / f"{network}.safetensors"), format="safetensors")
    for size in sizes:
        x = rng.normal(0, 1.5, (2, 3, size, size)).astype(np.float32)
        np.save(folder / f"x_{size}.npy", x)
        np.save(folder / f"logits_{size}.npy", net(Tensor(x)).asnumpy())
    ms.export(net, Tensor(x), file_name=str(folder / network), file_format="MINDIR")
    net.set_train(True)
    net(Tensor(x))
    moved = {n: p.asnumpy() for n, p in net.parameters_and_names() if ".moving_" in n}
    np.savez(folder / "statistics.npz", **moved)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), [int(size) for size in sys.argv[3:]])
