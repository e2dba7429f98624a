"""What a network's answers are followed by, as layers, for a file that gives it too: the labels of
an image that may have several, and what its certificate promises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from xfer.evaluation.certificate_answers import entering
from xfer.evaluation.onnx_session import LABELS, P_UNLIKE, PREDICTION_SET, PROBABILITIES

if TYPE_CHECKING:
    from xfer.core.certificate import Certificate, Unlike


class Certified(nn.Module):
    """The answers of ``answering`` (n, classes), then prediction sets bool (n, classes) and, where
    the certificate has them, p-values float32 (n,).

    ``answering`` is ``net`` or has it inside; its answers have these ``names``, and are logits
    where none of them are probabilities.
    """

    least: torch.Tensor

    def __init__(
        self,
        answering: nn.Module,
        net: nn.Module,
        certificate: Certificate,
        names: Sequence[str],
    ) -> None:
        super().__init__()
        self.answering, self.several = answering, certificate.several
        self.at = names.index(PROBABILITIES) if PROBABILITIES in names else None
        self.register_buffer("least", torch.from_numpy(certificate.least))
        self.far = Far(certificate.unlike) if certificate.unlike is not None else None
        # Beside the module: torch's exporter refuses tensors that a forward pass leaves in it.
        self.__dict__["net"] = net

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of what comes after the answers."""
        return (PREDICTION_SET,) if self.far is None else (PREDICTION_SET, P_UNLIKE)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See the class."""
        features: dict[str, torch.Tensor] = {}
        layers = self.far.layers if self.far is not None else ()
        with entering(self.__dict__["net"], layers, features.__setitem__):
            given = self.answering(images)
        answers: tuple[torch.Tensor, ...] = given if isinstance(given, tuple) else (given,)
        shares = answers[0].softmax(1) if self.at is None else answers[self.at]
        sets = shares >= self.least
        if not self.several:  # as xfer.core.certificate.Certificate has it
            sets = sets | (shares >= shares.amax(1, keepdim=True))
        if self.far is None:
            return *answers, sets
        return *answers, sets, self.far(torch.cat([features[path] for path in layers], dim=1))


class Far(nn.Module):
    """The p-values, float32 (n,), of features (n, d): :class:`xfer.core.certificate.Unlike`."""

    mean: torch.Tensor
    scale: torch.Tensor
    basis: torch.Tensor
    whiten: torch.Tensor
    centres: torch.Tensor
    radius: torch.Tensor
    noise: torch.Tensor
    reference: torch.Tensor

    def __init__(self, unlike: Unlike) -> None:
        super().__init__()
        self.layers = unlike.layers
        for name in ("mean", "scale", "basis", "whiten", "centres", "radius", "noise", "reference"):
            self.register_buffer(name, torch.from_numpy(getattr(unlike, name)))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """See the class."""
        away = (features - self.mean) * self.scale
        inside = away @ self.basis.T
        outside = ((away**2).sum(1) - (inside**2).sum(1)).clamp(min=0) * self.noise
        white = inside @ self.whiten.T
        near = ((white.unsqueeze(1) - self.centres) ** 2).sum(2) + outside.unsqueeze(1)
        distance = (near / self.radius).amin(1, keepdim=True)
        count = len(self.reference)
        return (1 + (self.reference >= distance).sum(1)).float() / (1 + count)


class Labelling(nn.Module):
    """The answers of ``answering`` (n, classes), then, where these are logits, the probabilities
    float32 (n, classes), and which labels an image is said to have, bool (n, classes): from a
    class's threshold on. The answers of a file that takes pictures are ``probabilities``."""

    least: torch.Tensor

    def __init__(self, answering: nn.Module, thresholds: list[float], probabilities: bool) -> None:
        super().__init__()
        self.answering, self.probabilities = answering, probabilities
        self.register_buffer("least", torch.tensor(thresholds))

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of what comes after the answers."""
        return (LABELS,) if self.probabilities else (PROBABILITIES, LABELS)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See the class."""
        answers: torch.Tensor = self.answering(images)
        if self.probabilities:
            return answers, answers >= self.least
        shares = answers.sigmoid()
        return answers, shares, shares >= self.least
