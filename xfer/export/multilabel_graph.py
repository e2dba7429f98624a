"""A network of several labels an image as layers, for a file that answers with its labels too."""

from __future__ import annotations

import torch
from torch import nn

from xfer.evaluation.onnx_session import LABELS, PROBABILITIES


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
