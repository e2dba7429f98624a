"""The contract of every backbone: its head, its input, the names of its tensors."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from backbones import BACKBONES, TORCHVISION, shipped

from xfer.core.errors import ConfigError
from xfer.core.protocols import Backbone
from xfer.data.preprocess import of_torchvision
from xfer.models.backbone import Timm, Torchvision, index
from xfer.models.head import Linear
from xfer.models.network import Parts, blueprint, shapes


def check_contract(backbone: Backbone) -> None:
    """Heads are plain layers; a swap changes no tensor outside them, and they give the classes."""
    before, after = blueprint(Parts(backbone, Linear(), 2))
    assert before.heads and before.heads == after.heads
    for path in before.heads:
        old, new = before.module.get_submodule(path), after.module.get_submodule(path)
        assert isinstance(old, torch.nn.Linear | torch.nn.Conv2d), path
        assert new.weight.shape[:2] == (2, old.weight.shape[1])
    prefixes = tuple(f"{path}." for path in before.heads)
    kept, now = (
        {n: s for n, s in shapes(network.module).items() if not n.startswith(prefixes)}
        for network in (before, after)
    )
    assert kept == now and kept
    own = {f"{path}.{n}" for path in before.heads for n in ("weight", "bias")}
    assert own == {n for n in shapes(after.module) if n.startswith(prefixes)}


def test_conf_has_the_backbones_that_these_tests_go_through() -> None:
    assert len(shipped()) == 9


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_has_heads_that_swap_and_nothing_else_changes(name: str) -> None:
    check_contract(BACKBONES[name])


@pytest.mark.parametrize("name", TORCHVISION[:4])
def test_a_torchvision_backbone_has_the_recipe_of_its_default_weights(name: str) -> None:
    from torchvision import models

    spec = Torchvision(name).build().input
    assert spec == of_torchvision(models.get_model_weights(name).DEFAULT.transforms())
    assert spec.size == ((299, 299) if name == "inception_v3" else (224, 224))


def test_a_timm_backbone_has_the_recipe_that_timm_resolves() -> None:
    spec = Timm("mobilenetv3_large_100").build().input
    assert (spec.size, spec.resize, spec.interpolation) == ((224, 224), 256, "bicubic")
    other = Timm("resnet18.tv_in1k").build().input
    assert (other.resize, other.interpolation) == (256, "bilinear")
    assert Timm("resnet18.a1_in1k").build().input.resize == 235


def test_two_headed_networks_name_both() -> None:
    assert Timm("deit_tiny_distilled_patch16_224").build().heads == ("head", "head_dist")
    assert Timm("levit_128s").build().heads == ("head.linear", "head_dist.linear")


def test_auxiliary_classifiers_are_not_built_and_may_be_dropped() -> None:
    network = Torchvision("googlenet").build()
    assert not [n for n in network.module.state_dict() if n.startswith(network.dropped)]
    assert network.dropped == ("aux1", "aux2", "AuxLogits")
    assert Torchvision("squeezenet1_0").build().dropped == ()


def test_a_fixed_size_transformer_is_built_for_the_size_asked_for() -> None:
    net = Timm("vit_small_patch16_224", image_size=32).build().module
    assert net.pos_embed.shape[1] == 1 + (32 // 16) ** 2
    with torch.device("meta"):
        encoder = Torchvision("vit_b_16", image_size=32).build().module.encoder
    assert encoder.pos_embedding.shape[1] == 1 + (32 // 16) ** 2


def test_a_misspelt_name_offers_the_closest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'resnet18'"):
        Timm("resnt18")
    with pytest.raises(ConfigError, match=r"backbone=torchvision backbone\.name=squeezenet1_0"):
        Timm("squeezenet1_0")
    with pytest.raises(ConfigError, match="backbone=timm"):
        Torchvision("mobilenetv3_small_100")


# Neither the list nor any file of a library spells them.
MISSPELT = ["resnt18", "resnet18.a9_in1k", "resnet18.", "ResNet18", "../x", ""]


def test_a_misspelt_name_costs_no_import_of_torch_whatever_is_installed() -> None:
    """The index is of other versions here: it has three models."""
    script = (
        "import sys\nfrom xfer.models.backbone import Timm, Torchvision, index\n"
        "index._shipped = lambda: {'timm': ['resnet18', 'resnet34'], 'torchvision': ['vgg11']}\n"
        "for kind in (Timm, Torchvision):\n"
        f"    for name in {MISSPELT!r}:\n"
        "        try: kind(name)\n        except Exception as e: print(e)\n"
        "        else: raise SystemExit(name)\n"
        "assert not {'torch', 'timm', 'torchvision'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and "did you mean 'resnet18'?" in done.stdout, done.stderr
    assert done.stdout.count("xfer: error E210: backbone.name: ") == 2 * len(MISSPELT)


@pytest.mark.parametrize(
    ("kind", "name"),
    [(Timm, "resnet50"), (Timm, "resnet50.a1_in1k"), (Torchvision, "googlenet")],
)
def test_a_name_of_a_newer_library_is_asked_of_it(
    kind: type[Timm] | type[Torchvision], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "_shipped", lambda: {"timm": ["a"], "torchvision": ["b"]})
    assert kind(name).name == name
    # `relu` is spelled in the files of both and is no model.
    for misspelt in ("resnt50", "relu"):
        with pytest.raises(ConfigError, match=r"E210: .*has no model"):
            kind(misspelt)


@pytest.mark.parametrize("kind", [Timm, Torchvision])
def test_a_name_that_the_installed_version_lacks_is_told_in_one_line(
    kind: type[Timm] | type[Torchvision], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = {"timm": ["gone_18", "resnet18.gone"], "torchvision": ["gone_18"]}
    monkeypatch.setattr(index, "_shipped", lambda: gone)
    for name in gone[kind.library]:
        with pytest.raises(
            ConfigError, match=rf"E210: .*{kind.library} \d\S* has no model '{name}'"
        ):
            kind(name).build()


def test_arguments_that_a_library_refuses_are_named() -> None:
    with pytest.raises(ConfigError, match=r"backbone\.args"):
        Timm("resnet18", args={"colour": 1}).build()
    with pytest.raises(ConfigError, match=r"backbone\.args"):
        Torchvision("squeezenet1_0", args={"colour": 1}).build()


@pytest.mark.parametrize("classifier", [None, "head.fc", ("fc", "head_dist")])
def test_a_network_without_a_classifier_is_refused_in_one_line(
    classifier: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as timm's `qwen3_vit_88m_enc`, which its older versions do not have."""
    net = timm.create_model("resnet10t")
    net.pretrained_cfg = {**net.pretrained_cfg, "classifier": classifier}
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: net)
    with pytest.raises(ConfigError, match=r"E213: .*without a classifier"):
        Timm("resnet10t").build()


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_every_model_of_the_installed_library_is_known(library: str) -> None:
    """Whichever version that is: a name that the index lacks is found in the library's files."""
    names = index._installed(library)
    assert len(names) >= 80
    for name in names:
        index.check(library, name)
        assert index._words(library).issuperset(name.split(".", 1)), name


def test_the_index_keeps_the_names_of_other_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "_FILE", tmp_path / "index.json")
    monkeypatch.setattr(index, "_shipped", lambda: {"timm": ["gone"], "torchvision": []})
    index.write()
    written = json.loads((tmp_path / "index.json").read_text())
    assert set(written["timm"]) == {"gone", *index._installed("timm")}
    assert written["torchvision"] == sorted(index._installed("torchvision"))


@pytest.mark.slow
def test_every_torchvision_classification_model_keeps_the_contract() -> None:
    names = sorted(index._installed("torchvision"))
    failed = {n: e for n in names if (e := _failure(Torchvision(n)))}
    assert not failed


@pytest.mark.slow
def test_sixty_timm_models_drawn_by_chance_keep_the_contract() -> None:
    names = random.Random(7).sample(timm.list_models(), 60)
    failed = {n: e for n in names if (e := _failure(Timm(n)))}
    assert not failed


def _failure(backbone: Backbone) -> str | None:
    try:
        check_contract(backbone)
    except ConfigError as error:
        return None if error.number in (212, 213) else str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]
    return None
