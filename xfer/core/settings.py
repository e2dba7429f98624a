"""What is read of the groups whose options are values alone: no custom part replaces them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol

from xfer.core.protocols import Graphs
from xfer.core.types import Plain


class Trainer(Protocol):
    """How training runs."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def max_epochs(self) -> int | Literal["auto"]:
        """``auto`` until the plan has decided it."""

    @property
    def epochs(self) -> int:
        """How many epochs are trained, once that is decided."""

    @property
    def accelerator(self) -> str:
        """``auto``, ``cpu``, ``gpu`` or ``mps``."""

    @property
    def devices(self) -> int:
        """How many of them on each machine."""

    @property
    def nodes(self) -> int:
        """How many machines."""

    @property
    def ranks(self) -> int:
        """How many processes train together."""

    @property
    def shards(self) -> bool:
        """Whether the network is divided among them."""

    @property
    def precision(self) -> str:
        """``auto`` until the plan has decided it."""

    @property
    def numbers(self) -> Any:
        """The precision that is computed in, once that is decided."""

    @property
    def accumulate(self) -> int:
        """Batches an optimizer step."""

    @property
    def clip_norm(self) -> float:
        """The largest gradient norm; 0 is off."""

    @property
    def ema_decay(self) -> float | Literal["auto"]:
        """``auto`` until the plan has decided it."""

    @property
    def averages(self) -> float:
        """The decay of the average of the weights, once that is decided; 0 is off."""

    @property
    def patience(self) -> int:
        """Epochs without a better value before the run stops; 0 is off."""

    @property
    def compile(self) -> bool:
        """Whether the network goes through torch.compile."""

    @property
    def channels_last(self) -> bool:
        """The memory layout of images."""

    @property
    def deterministic(self) -> bool:
        """Whether only reproducible kernels are used."""

    @property
    def on_oom(self) -> str:
        """``error`` or ``halve``."""

    @property
    def standardize(self) -> bool:
        """Whether the input of a new head is standardised."""

    @property
    def head_start(self) -> str:
        """``auto``, ``zero`` or ``solved``."""

    @property
    def metrics(self) -> Mapping[str, Plain]:
        """Further metrics by name, each as ``_target_`` and arguments."""

    @property
    def callbacks(self) -> Sequence[Plain]:
        """Callbacks of Lightning, each as ``_target_`` and arguments."""


class Checkpoint(Protocol):
    """Which epoch is the best, what is kept, and what is resumed."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def path(self) -> str | None:
        """A checkpoint to use in place of training."""

    @property
    def resume(self) -> str | None:
        """``auto`` or a run folder."""

    @property
    def monitor(self) -> str:
        """The metric that decides."""

    @property
    def mode(self) -> str:
        """``max`` or ``min``."""

    @property
    def start_epoch(self) -> int:
        """The first that may be the best."""

    @property
    def interval(self) -> int:
        """Epochs from one that may be the best to the next."""

    @property
    def every_n_epochs(self) -> int:
        """Epochs from one copy to the next; 0 is off."""

    @property
    def every_n_steps(self) -> int:
        """Steps from one copy to the next; 0 is off."""

    @property
    def keep(self) -> int:
        """Copies that are kept; 0 keeps all."""

    @property
    def prefix(self) -> str:
        """How the names of copies begin."""

    def looks_at(self, epoch: int) -> bool:
        """Whether epoch ``epoch`` (1-based) may become the best."""

    def improves(self, value: float, best: float | None) -> bool:
        """Whether ``value`` takes the place of ``best``."""


class Features(Protocol):
    """Whether the output of a frozen prefix is kept."""

    @property
    def use(self) -> str:
        """``never``, ``auto`` or ``require``."""

    def views_of(self, augments: bool, epochs: int) -> int | None:
        """Augmented views an image; ``None`` for the evaluation view alone."""

    def store(self) -> Graphs | None:
        """Where else may be cached what takes long to compute; ``None`` for nowhere."""


class Gate(Protocol):
    """How strictly exported files are compared with the network."""

    @property
    def tolerance(self) -> float:
        """See :func:`xfer.export.parity.allowed`."""

    @property
    def images(self) -> int:
        """How many images are compared."""

    @property
    def max_drop(self) -> float:
        """Of accuracy, where numbers are approximate."""


class Sweep(Protocol):
    """Several runs as one."""

    @property
    def params(self) -> Mapping[str, str]:
        """Key or group to values in the syntax of Hydra."""

    @property
    def sampler(self) -> str:
        """``grid``, or the name of a sampler of Optuna."""

    @property
    def n_trials(self) -> int | None:
        """How many trials in all; ``None`` for a grid."""

    @property
    def seed(self) -> int:
        """Of the sampler."""

    @property
    def objectives(self) -> Mapping[str, Literal["maximize", "minimize"]]:
        """Metric to direction; none is ``checkpoint.monitor``."""

    @property
    def pruner(self) -> str:
        """What ends trials that fall behind."""

    @property
    def prune_trials(self) -> int:
        """Trials that have ended before any is pruned."""

    @property
    def prune_epochs(self) -> int:
        """Epochs before a trial may be pruned."""

    @property
    def storage(self) -> str | None:
        """URL of an Optuna storage."""

    @property
    def study(self) -> str | None:
        """The name of the study there."""

    @property
    def dir(self) -> str | None:
        """The folder of the sweep."""

    @property
    def baseline(self) -> tuple[str, ...]:
        """Overrides that mark a job."""

    @property
    def retries(self) -> int:
        """Further attempts of a failed job."""

    @property
    def fail_fast(self) -> bool:
        """Whether the first failure ends the sweep."""

    @property
    def batch(self) -> int:
        """Trials at work at a time, but for slots."""

    @property
    def soup_least(self) -> float:
        """What a soup must gain at least over its best member, as a share of images."""


class Choose(Protocol):
    """Whether candidates are compared before a model is made."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def chooses(self) -> bool:
        """Whether they are; its options then are those of :class:`xfer.sweep.choose.Choice`."""
