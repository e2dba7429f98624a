"""A folder that timm and the Hugging Face hub take as it is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from xfer.core.errors import ExportError, PushError, printable
from xfer.core.files import write_json, write_text
from xfer.core.log import hush_hub_client, log
from xfer.core.protocols import Runner
from xfer.core.types import Array, Card, InputSpec, Plain
from xfer.export.metadata import library_of
from xfer.export.model_card import model_card
from xfer.export.parity import run_torch
from xfer.export.safetensors import in_order, library_model, state_of, why_of_no_library

if TYPE_CHECKING:
    import torch

PUSH = "export.hub.push"


@dataclass(frozen=True)
class HubFolder:
    """A folder with ``config.json``, ``model.safetensors`` and ``README.md``, which
    ``timm.create_model("local-dir:FOLDER", pretrained=True)`` opens.

    Names of files and paths of the machine that trained are not in it.
    """

    file: ClassVar[str] = "hub"
    format: ClassVar[str] = "hub"
    main: ClassVar[str] = "model.safetensors"

    push: str | None = None
    """`USER/NAME` on the Hugging Face hub that the folder is sent to; a new one is private"""
    license: str = "unknown"
    """what the model card says of the license, as the hub spells it: `mit`, `apache-2.0`, ..."""

    def check(self, card: Card) -> None:
        """Raise ExportError for a network that timm does not build, for a recipe that it does not
        know, and where the hub refuses the push, which is asked of it here."""
        if reason := _why_not_timm(card):
            raise ExportError("export.hub", reason, "type export=safetensors, or export=onnx", 14)
        if self.push is not None:
            _check_push(self.push, model_card(card, {}, self.license, self.push))

    def write(self, net: torch.nn.Module, images: Array, card: Card, path: Path) -> Plain:
        """The tensors of ``net`` and the configuration that timm builds its model from."""
        from safetensors.torch import save

        state = state_of(net)
        library, reason = library_model(card, state)
        if library is None:
            raise ExportError("export.hub", reason, "type export=safetensors, or export=onnx", 14)
        # Nothing of the card: it has paths of this machine, and this folder is for the world.
        (path / self.main).write_bytes(in_order(save(state, {"format": "pt"})))
        write_json(path / "config.json", _config(card, library))
        return {"load": 'timm.create_model("local-dir:hub", pretrained=True)'}

    def open(self, path: Path, net: torch.nn.Module) -> Runner:
        """The folder alone, by timm, in the layout that the network itself is asked in."""
        import timm
        import torch

        with torch.random.fork_rng(devices=[]):
            model = timm.create_model(f"local-dir:{path}", pretrained=True)
        return run_torch(model.eval().to(memory_format=torch.channels_last))

    def describe(self, path: Path, card: Card, figures: Plain) -> None:
        """Write ``README.md``, the model card."""
        write_text(path / "README.md", model_card(card, figures, self.license, self.push))

    def upload(self, folder: Path) -> None:
        """Send ``folder`` to the hub, where that was asked for. Raises ExportError."""
        if self.push is None:
            return
        from huggingface_hub import HfApi

        hush_hub_client()
        api = HfApi()
        try:
            api.create_repo(repo_id=self.push, private=True, exist_ok=True)
            made = api.upload_folder(
                repo_id=self.push, folder_path=folder, commit_message="Add model"
            )
        except Exception as error:  # of the hub, of the network, of the disk
            what = f"the hub does not take the folder: {_in_a_line(error)}"
            raise ExportError(PUSH, what, f"use {printable(folder)}, or try again", 16) from error
        log.info(f"{printable(folder)} is at {made.repo_url}, commit {made.oid}")


def _why_not_timm(card: Card) -> str:
    """Why timm cannot build the network of ``card``, or nothing, as far as the card knows."""
    if library_of(card) == "torchvision":
        name = card.backbone["name"]
        return f"timm has no loader for torchvision's {name}, and the hub has none of its own"
    if reason := why_of_no_library(card):
        return reason
    spec = card.input
    if spec.resize is not None and spec.size[0] != spec.size[1]:
        return f"timm cannot crop {spec.size[0]} x {spec.size[1]} pixels from a short side"
    if spec.resize is not None and spec.resize < spec.size[0]:
        return f"timm cannot crop {spec.size[0]} pixels from a short side of {spec.resize}"
    return ""


def _config(card: Card, library: torch.nn.Module) -> Plain:
    """``config.json`` as timm reads it; ``library`` is timm's own model of the network."""
    theirs: Any = library.pretrained_cfg
    known = ("first_conv", "classifier", "fixed_input_size", "pool_size")
    config: Plain = {
        "architecture": card.backbone["name"].partition(".")[0],
        "num_classes": len(card.classes),
        "num_features": library.num_features,
        "label_names": list(card.classes),
    }
    if card.task:  # timm answers with logits: what they mean is for whoever reads them
        config["problem_type"] = "multi_label_classification"
        config["thresholds"] = dict(zip(card.classes, card.task["thresholds"], strict=True))
    if args := card.backbone.get("args"):
        config["model_args"] = args
    config["pretrained_cfg"] = {
        "num_classes": len(card.classes),
        **_recipe(card.input),
        **{key: theirs[key] for key in known if theirs.get(key) is not None},
    }
    return config


def _recipe(spec: InputSpec) -> Plain:
    """The input recipe in timm's words."""
    return {
        "input_size": [3, *spec.size],
        "interpolation": spec.interpolation,
        # timm rounds the size over this share down to whole pixels.
        "crop_pct": 1.0 if spec.resize is None else spec.size[0] / (spec.resize + 0.01),
        "crop_mode": "squash" if spec.resize is None else "center",
        "mean": list(spec.mean),
        "std": list(spec.std),
    }


def _check_push(repo: str, card: str) -> None:
    """Raise ExportError for a name that is none, for a login that the hub does not know or lets
    write under no such name, and for a model ``card`` that it does not take."""
    from huggingface_hub import HfApi, get_token

    owner, _, name = repo.partition("/")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        what = f"'{printable(repo)}' is not the name of a model on the hub"
        raise ExportError(PUSH, what, f"type {PUSH}=USER/NAME", 17)
    if get_token() is None:
        what = "nobody is logged in to the Hugging Face hub"
        fix = "type hf auth login, set HF_TOKEN, or leave export.hub.push out"
        raise ExportError(PUSH, what, fix, 15)
    api = HfApi()
    try:
        login = api.whoami()
        taken = api.repo_exists(repo)
    except Exception as error:  # of the hub or of the network
        raise _no_answer(error) from error
    ours = [login["name"], *(team["name"] for team in login.get("orgs") or ())]
    if owner.lower() not in map(str.lower, ours):
        what = f"the login of '{login['name']}' cannot write to '{owner}'"
        fix = " or ".join(f"{PUSH}={space}/{name}" for space in ours[:3])
        raise PushError(PUSH, what, f"type {fix}", 0)
    if (login.get("auth") or {}).get("accessToken", {}).get("role") == "read":
        what = f"the token of '{login['name']}' may only read"
        fix = "make one that may write at https://huggingface.co/settings/tokens, and set HF_TOKEN"
        raise PushError(PUSH, what, fix, 1)
    _check_card(card)
    if taken:
        log.info(f"{repo} is on the hub already: the folder becomes its next commit")


def _check_card(card: str) -> None:
    from huggingface_hub import ModelCard

    try:
        ModelCard(card).validate()
    except ValueError as error:
        what = f"the hub does not take the model card: {_in_a_line(error)}"
        fix = "type export.hub.license=NAME with a name of the hub's list, or leave it out"
        raise PushError("export.hub.license", what, fix, 2) from error
    except Exception as error:  # of the network
        raise _no_answer(error) from error


def _no_answer(error: Exception) -> ExportError:
    what = f"the hub does not answer to this login: {_in_a_line(error)}"
    fix = "type hf auth login, or leave export.hub.push out and send the folder later"
    return ExportError(PUSH, what, fix, 18)


def _in_a_line(error: BaseException) -> str:
    """``error`` and what it is due to: of an upload the client says no more than which file.
    Queries of addresses may be signed."""
    text = re.sub(r"[?][^\s']*", "", str(error))
    said = printable(" ".join(text.split())[:300] or type(error).__name__)
    cause = error.__cause__ if isinstance(error, RuntimeError) else None
    return f"{said.rstrip('.')}: {_in_a_line(cause)}" if cause else said
