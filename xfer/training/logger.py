"""Where metrics go besides ``metrics.csv``, which is always written. All of these work offline."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from xfer.config.help import DISTRIBUTION
from xfer.core.errors import ConfigError

if TYPE_CHECKING:
    from pytorch_lightning.loggers import Logger


@dataclass(frozen=True)
class Csv:
    """Nothing besides ``metrics.csv``."""

    def build(self, folder: Path, experiment: str) -> Logger | None:
        """No further logger."""
        return None


@dataclass(frozen=True)
class TensorBoard:
    """Event files in ``tensorboard/`` of the run folder."""

    def __post_init__(self) -> None:
        _require("tensorboard")

    def build(self, folder: Path, experiment: str) -> Logger | None:
        """The logger of this run."""
        from pytorch_lightning.loggers import TensorBoardLogger

        return TensorBoardLogger(folder, name="tensorboard", version="")


@dataclass(frozen=True)
class Mlflow:
    """An MLflow store: ``uri`` as MLflow has it, or ``mlflow.db`` in the run folder."""

    uri: str | None = None
    """tracking address as MLflow has it; ``null`` is ``mlflow.db`` in the run folder"""

    def __post_init__(self) -> None:
        _require("mlflow")

    def build(self, folder: Path, experiment: str) -> Logger | None:
        """The logger of this run."""
        from pytorch_lightning.loggers import MLFlowLogger

        uri = self.uri or f"sqlite:///{(folder / 'mlflow.db').resolve()}"
        return MLFlowLogger(experiment_name=experiment, run_name=folder.name, tracking_uri=uri)


@dataclass(frozen=True)
class Wandb:
    """Weights & Biases; ``offline`` keeps everything in the run folder for a later sync."""

    project: str = "xfer"
    """project"""
    offline: bool = True
    """keep everything in the run folder"""

    def __post_init__(self) -> None:
        _require("wandb")

    def build(self, folder: Path, experiment: str) -> Logger | None:
        """The logger of this run."""
        from pytorch_lightning.loggers import WandbLogger

        class Closing(WandbLogger):
            """Ends its run, or the next one of this process would continue it."""

            def finalize(self, status: str) -> None:
                super().finalize(status)
                self.experiment.finish()

        return Closing(
            name=folder.name, project=self.project, save_dir=folder, offline=self.offline
        )


def _require(package: str) -> None:
    if find_spec(package) is None:
        what = f"the package '{package}' is not installed"
        raise ConfigError("logger", what, f'pip install "{DISTRIBUTION}[{package}]"', 80)
