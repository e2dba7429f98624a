"""A network with its certificate as layers, for a file that answers with both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from xfer.evaluation.certified import mean_features
from xfer.evaluation.onnx_session import P_UNLIKE, PREDICTION_SET

if TYPE_CHECKING:
    from xfer.core.certificate import Certificate, Unlike


class Certified(nn.Module):
    """The answers of ``answering`` (n, classes), then prediction sets bool (n, classes) and, where
    the certificate has them, p-values float32 (n,).

    ``answering`` is ``net`` or has it inside; its answers are logits, or ``probabilities``.
    """

    least: torch.Tensor

    def __init__(
        self, answering: nn.Module, net: nn.Module, certificate: Certificate, probabilities: bool
    ) -> None:
        super().__init__()
        self.answering, self.probabilities = answering, probabilities
        self.register_buffer("least", torch.from_numpy(certificate.least))
        self.far = Far(certificate.unlike) if certificate.unlike is not None else None
        # Beside the module: torch's exporter refuses tensors that a forward pass leaves in it.
        self.__dict__["watched"] = (
            net.get_submodule(certificate.unlike.layer) if certificate.unlike else None
        )

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of what comes after the answers."""
        return (PREDICTION_SET,) if self.far is None else (PREDICTION_SET, P_UNLIKE)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See the class."""
        features: list[torch.Tensor] = []
        layer = self.__dict__["watched"]
        hook = None
        if layer is not None:
            hook = layer.register_forward_pre_hook(
                lambda _, args: features.append(mean_features(layer, args[0]))
            )
        answers: torch.Tensor = self.answering(images)
        if hook is not None:
            hook.remove()
        shares = answers if self.probabilities else answers.softmax(1)
        sets = (shares >= self.least) | (shares >= shares.amax(1, keepdim=True))
        return (answers, sets) if self.far is None else (answers, sets, self.far(features[0]))


class Far(nn.Module):
    """The p-values, float32 (n,), of features (n, d): :class:`xfer.core.certificate.Unlike`."""

    mean: torch.Tensor
    basis: torch.Tensor
    whiten: torch.Tensor
    centres: torch.Tensor
    noise: torch.Tensor
    reference: torch.Tensor

    def __init__(self, unlike: Unlike) -> None:
        super().__init__()
        for name in ("mean", "basis", "whiten", "centres", "noise", "reference"):
            self.register_buffer(name, torch.from_numpy(getattr(unlike, name)))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """See the class."""
        away = features - self.mean
        inside = away @ self.basis.T
        outside = ((away**2).sum(1) - (inside**2).sum(1)).clamp(min=0) * self.noise
        white = inside @ self.whiten.T
        near = ((white.unsqueeze(1) - self.centres) ** 2).sum(2).amin(1)
        distance = (near + outside).unsqueeze(1)
        count = len(self.reference)
        return (1 + (self.reference >= distance).sum(1)).float() / (1 + count)
