"""A logger that may fail: the run goes on without it, and says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger

from xfer.core import protocols
from xfer.core.custom_parts import custom_part_error
from xfer.core.log import log


class GuardedLogger(Logger):
    """Passes everything to ``logger``, which ``spec`` has built, until that fails for the first
    time; ``problem`` then says what of, and no more is asked of it: each further call might wait
    for a server that is gone.
    """

    def __init__(self, spec: protocols.Logger, logger: Logger) -> None:
        super().__init__()
        self._spec, self._logger = spec, logger
        self.problem: str | None = None

    @property
    def name(self) -> str | None:
        """The logger's."""
        return self._logger.name

    @property
    def version(self) -> int | str | None:
        """The logger's."""
        return self._logger.version

    @property
    def log_dir(self) -> str | None:
        """The logger's."""
        return self._logger.log_dir

    @property
    def save_dir(self) -> str | None:
        """The logger's."""
        return self._logger.save_dir

    @property
    def experiment(self) -> Any:
        """What the logger's library works with, which Lightning asks for as a fit begins; ``None``
        where the logger has failed."""
        made: list[Any] = []
        self._try(lambda: made.append(getattr(self._logger, "experiment", None)))
        return made[0] if made else None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """The row of an epoch, or what a callback logs."""
        self._try(lambda: self._logger.log_metrics(dict(metrics), step))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """What Lightning or a callback says of the run."""
        self._try(lambda: self._logger.log_hyperparams(params, *args, **kwargs))

    def save(self) -> None:
        """Write what is still in memory."""
        self._try(self._logger.save)

    def finalize(self, status: str) -> None:
        """The fit has ended."""
        self._try(lambda: self._logger.finalize(status))

    def attach(self, files: Mapping[str, Path], step: int) -> None:
        """Hand over ``files`` of the run, where the logger takes any."""
        spec = self._spec
        if isinstance(spec, protocols.TakesFiles):
            self._try(lambda: spec.attach(self._logger, files, step))

    def _try(self, do: Callable[[], object]) -> None:
        if self.problem is not None:
            return
        try:
            do()
        except Exception as error:  # any library, whose files or server are gone
            custom = custom_part_error(error)
            place = f"{custom.where}: " if custom else ""
            said = (str(error).splitlines() or [""])[0][:160]
            kind = type(self._spec).__name__
            self.problem = (
                f"the logger {kind} failed, and has nothing of what came after "
                f"({place}{type(error).__name__}: {said})"
            )
            log.warning(self.problem)
