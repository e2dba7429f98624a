"""What users get wrong is never "a bug in xfer" (exit 1): a wrong value at every key, flags that do
not go together, odd paths, parts of their own that lack something."""

from __future__ import annotations

import copy
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from test_configs import GIVEN, OPTIONS, _parts, content

import xfer
from xfer.__main__ import _main
from xfer.config import schema
from xfer.config.help import GROUPS
from xfer.config.hydra import compose_specs
from xfer.config.provenance import Places
from xfer.config.specs import Builder
from xfer.core.errors import ConfigError, DataError, WeightsError, XferError
from xfer.core.types import Card, InputSpec
from xfer.data import Digits, Folder, Manifest, Mnist
from xfer.evaluation.predict import find
from xfer.plan.make import make_plan
from xfer.weights.source import Shipped

WRONG = [
    *(
        "x",
        "",
        "1",
        "a" * 300,
        "a" * 5000,
        "a[b",
        "a\0b",
        "\ud800",
        "~nobody-of-this-name/x",
        "**x",
    ),
    *(1, -1, 0, 1.5, 1e300, 1e-300, 10**15, 10**30, float("inf"), float("nan"), True, None),
    *([], ["x"], ["x", "x"], [1, 2], [[1]], [None], {}, {"a": 1}, {"a": {"b": 1}}, {1: 2}, b"x"),
    *({"block": "basic"}, [{"match": "(", "lr": 1}]),
]
# A sample of those that are of a right type and wrong all the same, for what plans cost.
PLANNED = [
    *("~nobody-of-this-name/x", "a" * 300, "a\0b", 1e-300, 10**15),
    *(["x"], {"a": 1}, {"block": "basic"}),
]


def targets() -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Group, the key of its node, its class and arguments that build it: every class once."""
    seen = set()
    for group, option in OPTIONS:
        if group == "experiment":
            continue
        node = content(group, option)
        inner = {k: v for k, v in node.items() if isinstance(v, dict) and "_target_" in v}
        nodes = (
            {group: node} if "_target_" in node else {f"{group}.{k}": v for k, v in inner.items()}
        )
        for key, found in nodes.items():
            target, given = found["_target_"], {k: v for k, v in found.items() if v != "???"}
            for text in _parts(GIVEN.get((group, option), "")):
                name, _, value = text.partition("=")
                if name:
                    given[name.split(".")[1]] = _typed(value)
            if target not in seen:
                seen.add(target)
                yield group, key, target, given


def _typed(value: str) -> Any:
    return value if value.strip("0") == "" else yaml.safe_load(value)  # a hash is no number


def told(work: Callable[[], object]) -> object:
    """What ``work`` gives; ``None`` where it tells of a mistake, in one line an error."""
    try:
        return work()
    except XferError as error:
        errors = getattr(error, "errors", [error])
        assert len(str(error).splitlines()) == len(errors)
        assert error.exit in (2, 3, 4, 5, 6, 9), error
        return None


@pytest.fixture
def loggers_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xfer.training.logger.find_spec", lambda name: object())


def test_every_wrong_value_of_every_field_builds_or_is_told(loggers_are_there: None) -> None:
    count = 0
    for group, key, target, given in targets():
        for name in schema.signature(schema.load_class(group, target, str)):
            for value in WRONG:
                node, count = {**given, name: value}, count + 1
                spec = told(lambda g=group, n=node, k=key: schema.build(g, n, str, k))
                if spec is not None:
                    schema.facts(spec, node)
    assert count > 5000


def test_every_wrong_value_in_place_of_a_whole_group_or_general_key_is_told() -> None:
    specs = compose_specs(["experiment=digits_freeze"])
    keys = [*GROUPS, "seed", "stages", "run", "run.dir", "predict", "unknown", "export.tolerance"]
    keys += [f"predict.{name}" for name in ("input", "model", "labels", "recipe")]
    for key in keys:
        for value in WRONG:
            plain = copy.deepcopy(specs.config)
            *above, last = key.split(".")
            node = plain
            for part in above:
                node = node[part]
            node[last] = value
            builder = Builder(plain, Places({}, [], []))
            told(lambda b=builder: b.specs("digits_freeze", []))


@pytest.fixture
def read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The digits and the shipped weights are the same in every plan, and most of what one costs."""
    known: dict[str, Any] = {}

    def once(work: Callable[..., object]) -> Callable[..., object]:
        def done(*given: object) -> object:
            key = repr((work, given))
            if key not in known:
                known[key] = work(*given)
            return known[key]

        return done

    for kind, name in ((Digits, "dataset"), (Shipped, "load")):
        monkeypatch.setattr(kind, name, once(getattr(kind, name)))


def odd_nodes() -> Iterator[tuple[str, dict[str, Any]]]:
    """Group and node of each odd value that its class takes, and of one a field that it refuses.

    To build all groups takes many times as long as one class, which the test above tries alone
    with every value.
    """
    for group, _, target, given in targets():
        if group in ("sweep", "export", "logger") or target.endswith("Canidae"):
            continue
        if group == "backbone":
            given["name"] = {"timm": "resnet10t"}.get(target.rpartition(".")[2].lower(), "resnet18")
        for name in schema.signature(schema.load_class(group, target, str)):
            nodes = [{**given, name: value} for value in PLANNED]
            built = [told(lambda g=group, n=node: schema.build(g, n, str, g)) for node in nodes]
            refused = [node for node, spec in zip(nodes, built, strict=True) if spec is None]
            taken = [node for node, spec in zip(nodes, built, strict=True) if spec is not None]
            yield from ((group, node) for node in taken + refused[:1])


def test_every_odd_value_of_the_right_type_plans_or_is_told(read_once: None) -> None:
    specs = compose_specs(["experiment=digits_sgd"])
    planned = 0
    for group, node in odd_nodes():
        plain = {**specs.config, group: node}
        if group == "backbone":
            plain["source"] = {"_target_": "xfer.weights.source.Scratch"}
        builder = Builder(plain, Places({}, [], []))
        odd = told(lambda b=builder: b.specs("digits_sgd", []))
        if odd is not None:
            planned += told(lambda s=odd: make_plan(s)) is not None
    assert planned > 50


FLAGS = {
    ("--resolve",): "add --cfg job",
    ("--cfg", "foo"): "allowed: job, hydra, all",
    ("--info", "foo"): "allowed: all, config",
    ("--shell-completion",): "type --shell-completion install=bash",
    ("--shell-completion", "install=foo"): "type --shell-completion install=bash",
    ("-m", "--cfg", "job"): "drop --cfg",
    ("--info", "config", "-m"): "drop -m",
    ("--cfg", "job", "-p", "nowhere"): "such as -p data",
    ("run.dir='~nobody-of-this-name/x'",): "write the path out",
    (f"checkpoint.path={'a' * 300}", "stages=[evaluate]"): "write the path out",
    ("checkpoint.resume='~nobody-of-this-name'",): "write the path out",
    ("source=file", f"source.path={'a' * 5000}"): "write the path out",
    ("stages=[leaderboard]", "sweep.dir='~nobody-of-this-name'"): "write the path out",
    ("data.root='a[b'", "source=none"): "put one folder of images per class into",
    ('data.root="a[b]{c}"', "source=none"): "put one folder of images per class into",
    ("run.dir='a[b'", "optim.lr=-1"): "type optim.lr=NUMBER",
}


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> Callable[..., Any]:
    """Runs the command line in this process; its exit code and what it printed."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["xfer"])
        try:
            code = _main([*arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        found = capsys.readouterr()
        return code, found.out + found.err

    return run


@pytest.mark.parametrize("arguments", FLAGS, ids=lambda a: " ".join(a)[:40])
def test_flags_and_paths_that_cannot_be_are_told(
    arguments: tuple[str, ...], typed: Callable[..., Any]
) -> None:
    code, said = typed(*arguments)
    assert code in (2, 3), said
    assert FLAGS[arguments] in said and "bug in xfer" not in said


def test_shell_completion_is_printed(typed: Callable[..., Any]) -> None:
    code, said = typed("--shell-completion", "install=bash")
    assert code == 0 and "complete -o nospace" in said


def test_a_working_folder_that_was_deleted_is_told(
    typed: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "gone").mkdir()
    os.chdir(tmp_path / "gone")
    shutil.rmtree(tmp_path / "gone")
    code, said = typed("stages=[]")
    assert code == 9 and "E930: working folder: has been deleted" in said


ODD_INPUTS = ["a" * 300, "a" * 5000, "a\0b", "**x", "/**x", "*" * 300, "*/" * 500]


ODD = "E344.*(cannot be searched for|names no image)|E301.*a character that file names cannot have"


def test_odd_inputs_to_predict_are_told() -> None:
    for text in ODD_INPUTS:
        with pytest.raises(DataError, match=ODD):
            find([text])
    with pytest.raises(WeightsError, match="longer than a path can be"):
        xfer.load("a" * 300)


def test_paths_of_data_that_no_file_can_have_are_told() -> None:
    for text in ("a" * 300, "a\0b", "~nobody-of-this-name/x"):
        for spec in (Folder(root=text), Manifest(file=text), Mnist(root=text)):
            with pytest.raises(DataError):
                spec.dataset(True)


OWN = {
    "loss": "class P:\n    def build(self, counts): ...\n",
    "augment": "class P:\n    random, seed = False, 0\n    def mix(self, classes): ...\n",
    "head": "class P:\n    def build(self, old): ...\n",
    "schedule": "class P:\n    factor = 3\n",
}
MISSING = {
    "loss": "P has no method weights and no method guessing. Fix: derive it from xfer.",
    "augment": "P has no method transform. Fix: derive it from xfer.data.augment.Plain, or add",
    "head": r"P has a method build that does not take 2 argument\(s\). Fix: add them",
    "schedule": "P has no method factor",
}


def own_part(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (folder / "part_of_mine.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "part_of_mine", raising=False)
    monkeypatch.setenv("XFER_ALLOW", "part_of_mine")


@pytest.mark.parametrize("group", OWN)
def test_a_part_of_ones_own_that_lacks_a_method_is_told(
    group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_part(tmp_path, monkeypatch, OWN[group])
    with pytest.raises(ConfigError, match=MISSING[group]):
        schema.build(group, {"_target_": "part_of_mine.P"})


def test_every_shipped_part_has_what_a_part_of_ones_own_must_have(loggers_are_there: None) -> None:
    for group, key, target, given in targets():
        spec = schema.build(group, given, str, key)
        assert schema._lacks(spec, group)[0] == [], target


def test_an_error_in_a_part_of_ones_own_is_told_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: Callable[..., Any]
) -> None:
    loss = "from xfer.training.loss import CrossEntropy\nclass P(CrossEntropy):\n"
    own_part(tmp_path, monkeypatch, f"{loss}    def weights(self, counts):\n        return 1 / 0\n")
    code, said = typed("experiment=digits_sgd", "loss._target_=part_of_mine.P", "stages=[]")
    assert code == 2 and "E221: part_of_mine, line 4: ZeroDivisionError" in said, said


def test_a_batch_of_one_is_refused_where_a_batch_norm_would_have_one_value() -> None:
    one = ["experiment=digits_sgd", "data.batch_size=1", "source=none"]
    with pytest.raises(ConfigError, match=r"E268: data.batch_size: is 1.*type data.batch_size=2"):
        make_plan(compose_specs([*one, "freeze=none"]))
    make_plan(compose_specs([*one, "freeze=none", "backbone.image_size=64"]))
    make_plan(compose_specs([*one, "freeze=head_only"]))


class Bright(torch.nn.Module):
    """Says ``b`` for a bright image, from its mean."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean = images.mean((1, 2, 3))
        return torch.stack([-mean, mean], 1)


def test_pictures_in_memory_are_answered_as_their_files_are(tmp_path: Path) -> None:
    grey = (0.5, 0.5, 0.5)
    spec = InputSpec((8, 8), 8, "bilinear", grey, grey)
    card = Card({}, {}, ("a", "b"), spec, {}, "", {})
    model = xfer.Model(Bright(), card)
    pixels = np.full((8, 8, 3), 250, np.uint8)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "a.png")
    (file,) = model.predict(tmp_path / "a.png")
    assert file.label == "b"
    for given in (picture, pixels, [picture], pixels[None], pixels[..., 0], picture.convert("L")):
        (found,) = model.predict(given)
        assert (found.path, found.probabilities) == ("image 0", file.probabilities)
    assert [p.path for p in model.predict([picture, pixels])] == ["image 0", "image 1"]
    for bad in (
        None,
        3,
        b"x",
        pixels.astype(float),
        pixels[:0],
        ["a.png", picture],
        torch.zeros(3),
    ):
        with pytest.raises(DataError, match=r"E363: image 0"):
            model.predict(bad)  # type: ignore[arg-type]
