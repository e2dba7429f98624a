"""Which parameters train and how fast: one learning-rate multiple a parameter, phase by phase.

The idea of ordered name patterns with learning-rate multiples follows big_vision; frozen means
inference mode, as in Keras: no gradient, no dropout, no moving statistics.
"""

from xfer.freeze.apply import apply, batch_norms, hold, lone_norm
from xfer.freeze.audit import audit, check_read, frozen, hashes, verdict
from xfer.freeze.lora import Lora
from xfer.freeze.policies import (
    Discriminative,
    FirstN,
    Gradual,
    LastStage,
    Later,
    LayerDecay,
    LpFt,
    OrderedRules,
    Policy,
    Rule,
    UpTo,
)
from xfer.freeze.rows import BatchNorm, Layout, ParameterRow, Phase, ever
from xfer.freeze.stages import layout, stages

__all__ = [
    "BatchNorm",
    "Discriminative",
    "FirstN",
    "Gradual",
    "LastStage",
    "Later",
    "LayerDecay",
    "Layout",
    "Lora",
    "LpFt",
    "OrderedRules",
    "ParameterRow",
    "Phase",
    "Policy",
    "Rule",
    "UpTo",
    "apply",
    "audit",
    "batch_norms",
    "check_read",
    "ever",
    "frozen",
    "hashes",
    "hold",
    "layout",
    "lone_norm",
    "stages",
    "verdict",
]
