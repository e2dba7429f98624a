"""Where metrics go besides ``metrics.csv``, which is always written, and the figures, the best
checkpoint and the card with them. All of these work offline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from xfer.config.help import DISTRIBUTION
from xfer.core.errors import CombinationError, ConfigError
from xfer.core.files import read_text
from xfer.core.run_folder import BEST, checkpoints

if TYPE_CHECKING:
    from pytorch_lightning.loggers import Logger

    from xfer.core.types import Plain
    from xfer.plan.plan import Plan
    from xfer.training.guarded_logger import GuardedLogger


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

    def attach(self, logger: Any, files: Mapping[str, Path], step: int) -> None:
        """The figures as images, and the card as text."""
        import numpy as np
        from PIL import Image

        writer = logger.experiment
        for name, path in _figures(files):
            with Image.open(path) as picture:
                writer.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")
        if CARD_TEXT in files:
            writer.add_text("card", read_text(files[CARD_TEXT]), step)
        writer.close()


@dataclass(frozen=True)
class Mlflow:
    """An MLflow store: ``uri`` as MLflow has it, or ``mlflow.db`` in the run folder."""

    uri: str | None = None
    """tracking address as MLflow has it; ``null`` is ``mlflow.db`` in the run folder"""

    def __post_init__(self) -> None:
        _require("mlflow")

    def build(self, folder: Path, experiment: str) -> Logger | None:
        """The logger of this run."""
        from mlflow.exceptions import MlflowException
        from pytorch_lightning.loggers import MLFlowLogger

        # MLflow would put files into the working folder.
        place = None if self.uri else (folder / "mlflow").resolve().as_uri()
        uri = self.uri or f"sqlite:///{(folder / 'mlflow.db').resolve()}"
        try:
            return MLFlowLogger(
                experiment_name=experiment,
                run_name=folder.name,
                tracking_uri=uri,
                artifact_location=place,
            )
        except MlflowException as error:
            what = f"MLflow refuses '{uri}' ({str(error).splitlines()[0][:200]})"
            fix = "type logger.uri=null, or an address such as sqlite:///runs.db"
            raise CombinationError("logger.uri", what, fix, 30) from error

    def attach(self, logger: Any, files: Mapping[str, Path], step: int) -> None:
        """Every file, in the folders that they have in the run."""
        for name, path in files.items():
            place = PurePosixPath(name).parent.as_posix()
            logger.experiment.log_artifact(logger.run_id, str(path), place.removeprefix("."))


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
            """Ends the run of a fit that failed, or the next one of this process would continue
            it; that of any other is ended when it has its files."""

            def finalize(self, status: str) -> None:
                super().finalize(status)
                if status != "success":
                    self.experiment.finish(exit_code=1)

        return Closing(
            name=folder.name, project=self.project, save_dir=folder, offline=self.offline
        )

    def attach(self, logger: Any, files: Mapping[str, Path], step: int) -> None:
        """The figures as images, the best checkpoint and the card as artifacts."""
        import wandb

        run = logger.experiment
        try:
            figures = {name: wandb.Image(str(path)) for name, path in _figures(files)}
            run.log({**figures, "trainer/global_step": step})
            for kind, names in (("model", MODEL), ("card", CARD)):
                chosen = {name: files[name] for name in names if name in files}
                if chosen:
                    artifact = wandb.Artifact(f"{kind}-{run.id}", type=kind)
                    for name, path in chosen.items():
                        # Immutable: it would copy the file to a folder of its own until synced.
                        artifact.add_file(str(path), name=name, policy="immutable")
                    run.log_artifact(artifact)
        finally:
            run.finish()


MODEL = ((checkpoints(Path()) / BEST).as_posix(),)
CARD_TEXT = "report.md"
CARD = ("report.html", CARD_TEXT, "result.json")


def _figures(files: Mapping[str, Path]) -> list[tuple[str, Path]]:
    """Names without their ending, as ``figures/curves``."""
    return [(n.removesuffix(".png"), path) for n, path in files.items() if n.endswith(".png")]


def _require(package: str) -> None:
    if find_spec(package) is None:
        what = f"the package '{package}' is not installed"
        raise ConfigError("logger", what, f'pip install "{DISTRIBUTION}[{package}]"', 80)


def logged(plan: Plan, folder: Path, rows: list[Plain]) -> GuardedLogger | None:
    """The logger of a run without epochs, with ``rows`` in it."""
    built = plan.specs.logger.build(folder, plan.specs.experiment)
    if built is None:
        return None
    from xfer.training.guarded_logger import GuardedLogger

    logger = GuardedLogger(plan.specs.logger, built)
    for row in rows:
        known = {k: v for k, v in row.items() if k != "step" and v is not None}
        logger.log_metrics(known, step=int(row["step"]))
    logger.finalize("success")
    return logger
