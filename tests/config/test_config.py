"""What the configuration refuses, and in which words. No test here touches data or weights."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
import yaml
from shipped import SHIPPED

from xfer.config import other_tools, schema
from xfer.config.general_keys import STAGES
from xfer.config.help import GROUPS, config_dir
from xfer.config.hydra import QUICK_START, compose_specs, prepare_overrides
from xfer.config.provenance import _accepted
from xfer.core.errors import ConfigError, DataError, Problems, SafetyError, XferError
from xfer.core.types import Dataset
from xfer.models.head.class_match import Naming, adopt
from xfer.plan.make import make_plan

LINE = re.compile(r"xfer: error E\d{3}: .+: .+\. Fix: .+")
TASK = "experiment=digits_sgd"


def refused(*typed: str, config_dirs: tuple[str, ...] = ()) -> XferError:
    """The error, which is an exit 2 told in whole lines."""
    with pytest.raises(XferError) as caught:
        compose_specs([TASK, *typed], config_dirs)
    lines = str(caught.value).splitlines()
    assert all(LINE.fullmatch(line) for line in lines), lines
    return caught.value


def message(*typed: str) -> str:
    error = refused(*typed)
    assert error.exit == 2
    return str(error)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("sed=1", "seed"),
        ("optim.lrr=1", "optim.lr"),
        ("optimm.lr=1", "optim.lr"),
        ("Optim.LR=1", "optim.lr"),
        ("lr=0.1", "optim.lr"),
        ("epochs=5", "trainer.max_epochs"),
        ("batch_size=8", "data.batch_size"),
        ("run.dri=x", "run.dir"),
        ("predict=photos", "predict.input"),
        ("backbone.image_sise=32", "backbone.image_size"),
        ("export.tolerence=1", "export.tolerance"),
        ("export.onnx.opsett=20", "export.onnx.opset"),
        ("optimm=sgd", "optim"),
    ],
)
def test_an_unknown_key_is_met_with_the_closest_whole_key(typed: str, offered: str) -> None:
    key = typed.partition("=")[0]
    assert message(typed).startswith(f"xfer: error E201: command line: {key}: ")
    assert message(typed).endswith(f"Fix: did you mean '{offered}'?")


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_a_plus_gains_nothing(prefix: str) -> None:
    assert message(f"{prefix}optim.foo=1").startswith("xfer: error E201: command line: optim.foo:")
    assert "E201: command line: foo:" in message(f"{prefix}foo=1")
    assert compose_specs([TASK, f"{prefix}optim.nesterov=true"]).facts["optim"]["nesterov"] is True
    assert compose_specs([TASK, f"{prefix}optim=adamw"]).facts["optim"]["betas"] == [0.9, 0.999]


def test_a_key_of_another_option_names_that_option() -> None:
    assert message("head.p=0.2").endswith("Fix: choose head=dropout, which has it, or drop it")
    assert message("optim.betas=[0.9,0.99]").endswith(
        "choose optim=adamw, which has it, or drop it"
    )
    assert message("logger.x=1").endswith("Fix: drop it: logger takes no keys")


def test_an_unknown_key_inside_a_rule_is_refused() -> None:
    text = message("freeze.rules=[{match: head, lr: 1, rate: 2}]")
    assert "there is no key 'freeze.rules[0].rate'" in text


@pytest.mark.parametrize("typed", ["sweep.x=1", "experiment.x=1", "run=5", "run.x=1"])
def test_no_corner_of_the_configuration_takes_strange_keys(typed: str) -> None:
    assert "E201" in message(typed)


@pytest.mark.parametrize(
    ("typed", "allowed", "form"),
    [
        ("optim.lr=-1", "greater than 0", "optim.lr=NUMBER"),
        ("optim.lr=0", "greater than 0", "optim.lr=NUMBER"),
        ("optim.lr=nan", "a finite number", "optim.lr=NUMBER"),
        ("optim.lr=inf", "a finite number", "optim.lr=NUMBER"),
        ("optim.lr=abc", "a number or 'auto'", "optim.lr=NUMBER or auto"),
        ("optim.lr='0.1'", "a number or 'auto'", "optim.lr=NUMBER or auto"),
        ("optim.lr=null", "a number or 'auto'", "optim.lr=NUMBER or auto"),
        ("optim.lr.x=1", "a number or 'auto'", "optim.lr=NUMBER or auto"),
        ("data.batch_size=0", "greater than 0", "data.batch_size=NUMBER"),
        ("data.workers=-1", "greater than or equal to 0", "data.workers=NUMBER"),
        (
            "trainer.max_epochs=1.5",
            "a whole number or 'auto'",
            "trainer.max_epochs=WHOLE_NUMBER or auto",
        ),
        (
            "trainer.max_epochs=true",
            "a whole number or 'auto'",
            "trainer.max_epochs=WHOLE_NUMBER or auto",
        ),
        ("trainer.deterministic=1", "true or false", "trainer.deterministic=true|false"),
        ("seed=-1", "greater than or equal to 0", "seed=NUMBER"),
        ("seed=4294967296", "less than 4294967296", "seed=NUMBER"),
        ("seed=1.5", "a whole number", "seed=WHOLE_NUMBER"),
        ("stages=fit", "a list", "'stages=[fit]'"),
        ("run.dir=5", "text", "run.dir=TEXT"),
        ("backbone.args=3", "{name: value}", "backbone.args='{NAME: VALUE}'"),
        ("backbone.image_size=4", "greater than or equal to 8", "backbone.image_size=NUMBER"),
        ("export.onnx.opset=3", "greater than or equal to 18", "export.onnx.opset=NUMBER"),
    ],
)
def test_a_wrong_value_is_met_with_what_is_allowed(typed: str, allowed: str, form: str) -> None:
    key = form.strip("'").partition("=")[0]
    text = message(typed)
    assert text.startswith(f"xfer: error E202: command line: {key}: is ")
    assert text.endswith(f", but must be {allowed}. Fix: type {form}")


def test_a_wrong_choice_is_met_with_the_closest_one() -> None:
    assert message("trainer.precision=bf16-mix").endswith("Fix: did you mean 'bf16-mixed'?")
    assert message("loss.class_weights=balance").endswith("Fix: did you mean 'balanced'?")


def test_a_wrong_value_inside_a_list_is_named_by_its_place() -> None:
    rules = "freeze.rules=[{match: head, lr: 1}, {match: backbone, lr: -1}]"
    assert "freeze.rules[1].lr is -1, but must be greater than or equal to 0" in message(rules)
    assert "freeze.rules[0].lr must be given" in message("freeze.rules=[{match: head}]")
    assert 'loss.class_weights[1] is "a", but must be a number' in message(
        "loss.class_weights=[1,a]"
    )


def test_a_rule_of_a_spec_names_the_place_too() -> None:
    text = message("checkpoint.prefix=a/b")
    assert text.startswith("xfer: error E270: command line: checkpoint.prefix: 'a/b' is not a")


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("optim=sgdd", "E204: optim: there is no option 'sgdd'. Fix: did you mean 'sgd'?"),
        ("experiment=digits_frezze", "E204: experiment: there is no option"),
        ("optim=5", "E204: command line: 'optim=5' names no option. Fix: type optim=OPTION"),
        ("optim=null", "E204: command line: 'optim=null' names no option"),
        (
            "data=[folder,csv]",
            "E205: command line: data: must be one option. Fix: type data=OPTION",
        ),
        ("~optim", "E205: command line: optim: must be one option. Fix: type optim=OPTION"),
        (
            "~experiment",
            "E205: command line: experiment: must be one option. Fix: type experiment=OPTION",
        ),
        (
            "export.gate.images=20",
            "E205: command line: export.gate: has keys, and export chooses no format 'gate'",
        ),
        ("export.gate.images=20", "or drop export.gate; the keys of all are export.images, "),
        ("~export", "'~export' cannot be removed"),
        ("~foo", "there is no key 'foo'. Fix: drop '~foo'"),
        ("~optim.lr", "E203: optim.lr: must be given. Fix: type optim.lr=VALUE"),
        ("~seed", "E202: command line: seed: is null"),
        ("optim@there=sgd", "there is no group 'optim@there'. Fix: type optim=OPTION"),
        ("optim/fast=sgd", "there is no group 'optim/fast'. Fix: did you mean 'optim'?"),
        ("hydra/launcher=jobliib", "E204: hydra/launcher: there is no option 'jobliib'"),
        ("backbone.name=resnet5O", "E210: command line: backbone.name: timm has no model"),
        ("stages=[fti]", "E208: stages: there is no stage 'fti'. Fix: did you mean 'fit'?"),
    ],
)
def test_a_wrong_option_is_met_with_a_right_one(typed: str, told: str) -> None:
    assert told in message(typed)


@pytest.mark.parametrize(
    "typed", ["stages=[fit", "optim.lr", "=3", "/optim=sgd", "a=b=[", "data root=x"]
)
def test_what_is_no_override_is_told_with_how_to_write_one(typed: str) -> None:
    assert message(typed).startswith(f"xfer: error E207: command line: '{typed}' is not understood")
    assert "write key=value" in message(typed)


@pytest.mark.parametrize("name", ["caf\u00e9", "cafe\u0301", "\u732b", "my \u00dcbung/b"])
def test_letters_beyond_ascii_need_no_quotes(name: str) -> None:
    assert compose_specs([f"data.root={name}"]).data.root == name
    listed = ["source=file", "source.path=a.pt", f"source.classes=[a b,{name}, {name} 2]"]
    assert compose_specs([TASK, *listed]).source.classes == ("a b", name, f"{name} 2")
    assert compose_specs([f"data.root='{name}'"]).data.root == name
    aliases = ["head=keep", f"head.aliases={{a: {name}}}"]
    assert compose_specs([TASK, *listed, *aliases]).head.aliases == {"a": name}


def test_names_that_cannot_be_typed_go_into_a_file(tmp_path: Path) -> None:
    told = message("head=keep", "head.aliases={caf\u00e9: x}")
    assert told.endswith("before a colon into an experiment file")
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ndefaults: [override /data: digits, override /head: keep]\n"
    for folder in ("caf\u00e9", "a: b", "it's", "null", "a b", "0", "007"):
        wanted = r"head\.aliases='(\{.*\})'|write head: \{aliases: (.*)\} in an experiment"
        with pytest.raises(DataError, match=wanted) as caught:
            adopt(Dataset((folder,), {}), Naming(("x",)), {})
        typed, written = re.search(wanted, caught.value.fix).groups()
        (tmp_path / "experiment" / "mine.yaml").write_text(
            f"{text}head: {{aliases: {written or {}}}}\n", encoding="utf-8"
        )
        more = [f"head.aliases={typed}"] if typed else []
        specs = compose_specs(["experiment=mine", *more], [str(tmp_path)])
        assert specs.head.aliases == {folder: "NAME"}


def test_several_values_without_a_sweep_are_told() -> None:
    assert message("optim.lr=0.1,0.2").endswith(
        "'optim.lr=0.1,0.2' is several values. Fix: add -m for several runs"
    )


def test_interpolations_that_lead_nowhere_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    assert "the variable NOT_SET is not set. Fix: set NOT_SET=" in message(
        "data.split_seed=${oc.env:NOT_SET}"
    )
    assert "'${optim.lrr}' names no key" in message("optim.lr=${optim.lrr}")
    assert "Recursive interpolation" in message("optim.lr=${optim.lr}")


def test_the_defaults_of_a_file_may_name_a_choice_in_an_interpolation(tmp_path: Path) -> None:
    chosen = "defaults: [digits_sgd, '/more@_global_': '${experiment}_more']\n"
    mine = f"# @package _global_\n{chosen}"
    for file, text in (("experiment/mine", mine), ("more/mine_more", "seed: 7\n")):
        path = tmp_path / f"{file}.yaml"
        path.parent.mkdir()
        path.write_text(text)
    assert compose_specs(["experiment=mine"], [str(tmp_path)]).seed == 7


def test_an_interpolation_in_an_override_works_and_the_command_keeps_it() -> None:
    specs = compose_specs([TASK, "optim.lr=${schedule.warmup_epochs}", "schedule.warmup_epochs=2"])
    assert specs.optim.lr == 2
    assert "${schedule.warmup_epochs}" in specs.command


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["predict.input=x"], "E209: predict.input: is given but stages has no 'predict'"),
        (["stages=[predict]"], "E203: predict.input: must be given"),
        (["stages=[predict]", "predict.input=[]"], "E203: predict.input: must be given"),
        (["trainer=cpu", "trainer.precision=16-mixed"], "Fix: type trainer.precision=bf16-mixed"),
        (["augment=standard", "augment.scale=[0.5,0.2]"], "Fix: type 'augment.scale=[0.2,0.5]'"),
    ],
)
def test_values_that_contradict_each_other_are_refused(typed: list[str], told: str) -> None:
    assert told in message(*typed)


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["checkpoint.path=x"], "E281: checkpoint.path: a run that fits makes its own"),
        (["stages=[evaluate]"], "E282: stages: ['evaluate'] has no model to work on"),
        (["head=keep", "source=none"], "E283: head: keep needs a source with a head of its own"),
    ],
)
def test_a_model_from_two_places_or_none_is_refused(typed: list[str], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_plan(compose_specs([TASK, *typed]))
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "key"),
    [
        (["backbone=resnet50"], "backbone"),
        (["backbone.name=resnet50"], "backbone"),
        (["head=mlp"], "head"),
    ],
)
def test_a_typed_contradiction_of_the_checkpoint_is_refused(typed: list[str], key: str) -> None:
    asked = [f"checkpoint.path={SHIPPED}", "stages=[evaluate]", "data=digits_0_4", *typed]
    with pytest.raises(ConfigError) as caught:
        make_plan(compose_specs(asked))
    assert caught.value.exit == 2
    assert str(caught.value.where).startswith(key)
    assert LINE.fullmatch(str(caught.value))


def test_what_agrees_with_the_checkpoint_may_be_typed_and_the_checkpoint_wins() -> None:
    asked = [f"checkpoint.path={SHIPPED}", "stages=[evaluate]", "data=digits_0_4"]
    plan = make_plan(compose_specs([*asked, "head=linear"]))
    assert plan.card.backbone["image_size"] == 32


def test_fractions_that_leave_nothing_to_train_on_are_refused() -> None:
    typed = ["data.val_fraction=0.6", "data.test_fraction=0.6"]
    with pytest.raises(
        ConfigError, match=r"data\.val_fraction: adds up to more than 1 with data\.test_fraction"
    ):
        make_plan(compose_specs([TASK, *typed]))


def test_all_problems_are_told_together() -> None:
    error = refused(
        "optim.lrr=1", "data.batch_size=0", "stages=[fit,x]", "foo=1", "export.images=1"
    )
    assert isinstance(error, Problems)
    keys = ("optim.lrr", "data.batch_size", "stages", "foo", "export.images")
    assert len(error.errors) == 5
    assert all(any(key in str(line.where) for line in error.errors) for key in keys)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of the user's with an experiment that holds mistakes."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /data: digits\n  - override /optim: odd\n"
        "optim: {lrr: 3}\ntrainer: {max_epochs: 0}\nlearning: {rate: 1}\n"
    )
    (tmp_path / "optim").mkdir()
    (tmp_path / "optim" / "odd.yaml").write_text("_target_: xfer.training.optim.Sgd\nlr: fast\n")
    return tmp_path


def test_the_file_that_holds_the_wrong_key_is_named(folder: Path) -> None:
    with pytest.raises(Problems) as caught:
        compose_specs(["experiment=mine"], [str(folder)])
    mine = folder / "experiment" / "mine.yaml"
    assert {str(e.where) for e in caught.value.errors} == {
        f"{mine}: optim.lrr",
        f"{folder}/optim/odd.yaml: optim.lr",
        f"{mine}: trainer.max_epochs",
        f"{mine}: learning.rate",
    }


def test_the_command_line_is_named_before_a_file(folder: Path) -> None:
    with pytest.raises(Problems) as caught:
        compose_specs(["experiment=mine", "trainer.max_epochs=-3"], [str(folder)])
    assert "command line: trainer.max_epochs: is -3" in str(caught.value)


def test_a_broken_file_is_named(folder: Path) -> None:
    (folder / "optim" / "odd.yaml").write_text("lr: [1\n")
    with pytest.raises(ConfigError) as caught:
        compose_specs(["experiment=mine"], [str(folder)])
    assert f"{folder}/optim/odd.yaml" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.Popen",
        "torch.optim.SGD",
        "xfer.data.Folder",
        "xfer.optimistic.Sgd",
        "xfer.training.schedule._position",
        "xfer.training.optim.ConfigError",
        "system",
        "5",
    ],
)
def test_a_class_from_elsewhere_is_refused_for_safety(target: str) -> None:
    error = refused(f"optim._target_={target}")
    assert isinstance(error, SafetyError)
    assert error.exit == 6
    assert str(error.where) == "command line: optim._target_"


def test_what_a_module_merely_imports_is_not_on_offer() -> None:
    error = refused("source._target_=xfer.weights.source.local.Path")
    assert (error.exit, error.number) == (6, 602)


def test_a_misspelt_class_of_xfer_is_a_configuration_error() -> None:
    assert (
        "E206: command line: optim._target_: 'xfer.training.optim.Sdg' cannot be imported"
        in message("optim._target_=xfer.training.optim.Sdg")
    )


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of the user's with one head."""
    (tmp_path / "my_heads.py").write_text(
        "class Tall:\n"
        "    def __init__(self, height: int, width: int = 2) -> None:\n"
        "        if height > 9:\n"
        "            raise ValueError('too tall')\n"
        "        self.height = height\n"
        "    def build(self, old, classes):\n"
        "        return old\n"
        "def function() -> None: ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_heads", raising=False)
    return "head._target_=my_heads.Tall"


def test_a_class_of_the_user_is_used_when_allowed_and_only_then(
    plugin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = refused(plugin, "head.height=3")
    assert (error.exit, error.fix) == (6, "add --allow my_heads if you trust it")
    assert "my_heads" not in sys.modules
    monkeypatch.setenv("XFER_ALLOW", "other, my_heads")
    specs = compose_specs([TASK, plugin, "head.height=3"])
    assert specs.head.height == 3  # type: ignore[attr-defined]
    assert specs.facts["head"] == {"_target_": "my_heads.Tall", "height": 3}


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["head.hight=3"], "did you mean 'head.height'?"),
        (["head.height=tall"], 'command line: head.height: is "tall", but must be a whole number'),
        (["head.height=10"], "Tall refuses its arguments (too tall)"),
        ([], "E203: head.height: must be given"),
        (["head.height=3", "head._target_=my_heads.Small"], "'my_heads.Small' cannot be imported"),
        (["head._target_=my_headz.Tall"], "add --allow my_headz"),
        (["head._target_=my_heads.function"], "'my_heads.function' is not a class for head"),
    ],
)
def test_a_class_of_the_user_is_checked_like_any_other(
    typed: list[str], told: str, plugin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XFER_ALLOW", "my_heads")
    assert told in str(refused(plugin, *typed))


@pytest.mark.parametrize(
    "typed",
    [
        "experiment=default",
        "data=folder",
        "data.root=x",
        "data.file=x.csv",
        "checkpoint.path=x",
        "+data.root=x",
    ],
)
def test_a_task_on_the_command_line_keeps_the_quick_start_away(typed: str) -> None:
    assert QUICK_START not in prepare_overrides([typed])


@pytest.mark.parametrize(
    "typed", [[], ["checkpoint.resume=auto"], ["optim.lr=1", "head=mlp"], ["stages=[]"]]
)
def test_without_a_task_the_quick_start_is_chosen(typed: list[str]) -> None:
    assert prepare_overrides(typed)[0] == QUICK_START
    assert compose_specs(typed).experiment == "digits_freeze"


def test_a_folder_of_images_alone_is_a_whole_command() -> None:
    specs = compose_specs(["data.root=photos"])
    assert specs.experiment == "photos"
    for file in ("labels.csv", "labels.json"):
        typed = ["task=multilabel", "data=csv", f"data.file=more/{file}"]
        assert compose_specs(typed).experiment == "labels"
    assert (specs.data.root, specs.backbone.name) == ("photos", "resnet50")  # type: ignore[union-attr]
    assert specs.explicit == {"data.root"}


@pytest.mark.parametrize("images", ["more", "'more/**/*.jp[eg]'", "[more,others]", "'a/more/*'"])
def test_data_is_not_asked_for_where_no_stage_needs_it(images: str) -> None:
    typed = ["stages=[predict]", f"predict.input={images}", "checkpoint.path=y"]
    specs = compose_specs(typed)
    assert specs.data is None
    # What is predicted gives its name to the run, which else would be called ???.
    assert specs.experiment == "more"
    with pytest.raises(ConfigError, match=r"E203: data\.root: must be given"):
        compose_specs(["stages=[evaluate]", "checkpoint.path=y"])


def test_the_resolved_configuration_spells_out_every_default() -> None:
    config = compose_specs([TASK]).config
    assert config["optim"]["nesterov"] is False
    assert config["checkpoint"]["tie"] == "loss"
    assert set(config) >= {"seed", "stages", "run", "predict", "data", "export"}


def test_a_folder_with_a_space_and_a_comma_can_hold_options(tmp_path: Path) -> None:
    place = tmp_path / "my conf, old=1"
    (place / "head").mkdir(parents=True)
    (place / "head" / "wide.yaml").write_text("_target_: xfer.models.head.Mlp\nhidden: 1024\n")
    assert compose_specs([TASK, "head=wide"], [str(place)]).facts["head"]["hidden"] == 1024


def test_composing_imports_no_torch() -> None:
    code = (
        "import sys; from xfer.config.hydra import compose_specs; compose_specs([]);"
        "sys.exit(bool({'torch', 'timm', 'torchvision', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_spec_is_built_from_its_facts_alone() -> None:
    facts = {"_target_": "xfer.models.head.Mlp", "hidden": 8, "dropout": 0.1}
    spec = schema.build("head", facts)
    assert schema.facts(spec, facts) == facts
    with pytest.raises(ConfigError, match="choose head=OPTION"):
        schema.build("head", {"hidden": 8})


SLOTS = {
    "NAME": "resnet34",
    "FILE": "a.pt",
    "DIR": "d",
    "PIXELS": "64",
    "NUMBER": "0.5",
    "DEGREES": "9",
}


OFFERED = [
    *other_tools.ADVICE,
    *(typed for others in other_tools.OPTIONS.values() for typed in others),
]


def filled(offered: str) -> list[str]:
    """The words of an offer, with a value in each slot."""
    for slot, value in SLOTS.items():
        offered = offered.replace(f"={slot}", f"={value}")
    # A share where the schema wants one, else a whole number.
    share = re.search("fraction|lr|momentum|ema|hue", offered)
    return shlex.split(offered if share else offered.replace("=0.5", "=1"))


@cache
def taken_together() -> frozenset[str]:
    """Offers that compose beside others, of which no two say anything of one group: as many at once
    as there are groups, which takes a tenth of the time that they take one by one."""
    fine, waiting = set[str](), dict.fromkeys(OFFERED)
    while waiting:
        batch: dict[str, str] = {}
        for offer in waiting:
            words = [*filled(offer), *(["data"] if "data" in offer else [])]
            groups = {re.split("[.=]", word)[0] for word in words}
            if not groups & batch.keys() and not {"stages", "predict", "checkpoint"} & groups:
                batch |= dict.fromkeys(groups, offer)
        if not batch:
            break
        offers = set(batch.values())
        with suppress(XferError):
            compose_specs(["data.root=d", *(word for offer in offers for word in filled(offer))])
            fine |= offers
        waiting = {offer: None for offer in waiting if offer not in offers}
    return frozenset(fine)


@pytest.mark.parametrize("typed", OFFERED)
def test_what_the_words_of_other_tools_lead_to_can_be_typed(typed: str) -> None:
    if typed == "logger=wandb":
        pytest.importorskip("wandb")
    assert typed in taken_together() or compose_specs(["data.root=d", *filled(typed)])


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("weights=a.pt", "source=file source.path=FILE"),
        ("model=mine", "backbone=timm backbone.name=NAME"),
        ("model=resnet34", "backbone=timm backbone.name=resnet34"),
        ("model.name=vit_b_16", "backbone=torchvision backbone.name=vit_b_16"),
        ("data.path=d", "data.root=DIR"),
        ("imgsz=64", "backbone.image_size=PIXELS"),
        ("optim.learning_rate=1", "optim=adamw optim.lr=NUMBER"),
        ("backbone=resnet34", "backbone=timm backbone.name=resnet34"),
        ("backbone=vit_b_16", "backbone=torchvision backbone.name=vit_b_16"),
        ("source=runs/best.pt", "source=file source.path=runs/best.pt"),
        ("source=imagenet", "source=hub"),
        ("checkpoint=a.ckpt", "checkpoint.path=a.ckpt"),
        ("optim=Adam", "optim=torch optim.name=Adam"),
        ("data=my/images", "data.root=my/images"),
        ("data=my_images", "data.root=my_images"),
        ("data=my/images.csv", "data=csv data.file=my/images.csv"),
        ("warmup_epochs=3", "schedule=cosine schedule.warmup_epochs=NUMBER"),
        ("trainer.warmup_epochs=3", "schedule=cosine schedule.warmup_epochs=NUMBER"),
        ("ema=true", "trainer.ema_decay=NUMBER"),
        ("freeze=true", "freeze=head_only"),
        ("freeze=false", "freeze=none"),
        ("loss=bce", "loss=cross_entropy"),
        ("loss=CrossEntropyLoss", "loss=cross_entropy"),
        ("schedule=onecycle", "schedule=warmup_decay"),
        ("optim=RMSprop", "optim=torch optim.name=RMSprop"),
        ("source=img.jpg", "'stages=[predict]' predict.input=img.jpg checkpoint.path=RUN"),
        ("stages=train", "'stages=[fit]'"),
    ],
)
def test_words_of_other_tools_are_known(typed: str, offered: str) -> None:
    told = message(typed)
    assert told.endswith(f"type {offered}")
    if "=NAME" not in offered and not offered.isupper():
        for slot, value in SLOTS.items():
            offered = offered.replace(f"={slot}", f"={value if slot != 'NUMBER' else '0.1'}")
        own = [] if offered.startswith("data=") else ["data.root=d"]
        assert compose_specs([*own, *shlex.split(offered)])


def test_the_verbs_of_other_tools_name_the_stage() -> None:
    for verb, stage in (("train", "fit"), ("val", "evaluate"), ("test", "evaluate")):
        assert message(f"stages=[{verb}]").endswith(f"did you mean '{stage}'?")
    assert set(other_tools.STAGES.values()) <= set(STAGES)
    assert message("data=foldr").endswith("did you mean 'folder'?")
    assert message("num_classes=3").endswith("the classes are the folders of data.root")


def test_every_key_and_option_that_a_message_names_is_there() -> None:
    files = {group: list(Path(config_dir(), group).glob("*.yaml")) for group in GROUPS}
    keys = {g: {key for f in files[g] for key in _accepted(g, f)} for g in GROUPS}
    # Formats share theirs, which stand in the configuration itself.
    keys["export"] |= {*yaml.safe_load((Path(config_dir()) / "config.yaml").read_text())["export"]}
    options = {group: {file.stem for file in found} for group, found in files.items()}
    count, group = 0, "|".join(GROUPS)
    for path in Path(other_tools.__file__).parents[1].rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = node.value if isinstance(node, ast.Constant) else None
            for known, end in ((keys, r"\.(\w+)="), (options, r"=([a-z_0-9]+)")):
                for found in re.finditer(rf"(?<![\w.])({group}){end}", str(text or "")):
                    assert found[2] in known[found[1]], f"{path}: {found[0]}"
                    count += 1
    assert count > 200


# Of `yolo train`, timm's train.py, Trainer of Lightning and of Hugging Face, fastai and Keras.
COMMON = """
mode model epochs patience batch imgsz save save_period cache device workers project pretrained
optimizer resume amp lr0 lrf momentum weight_decay warmup_epochs dropout cos_lr freeze_layers
fliplr degrees hsv_h mosaic mixup cutmix erasing auto_augment int8 format plots classes
data_dir initial_checkpoint num_classes img_size input_size mean std interpolation batch_size
validation_batch_size grad_accum_steps opt clip_grad layer_decay sched lr min_lr warmup_lr
decay_rate decay_epochs hflip color_jitter aa reprob smoothing drop model_ema model_ema_decay
checkpoint_hist output eval_metric log_wandb torchcompile train_dir val_dir test_dir
accelerator devices precision max_epochs accumulate_grad_batches gradient_clip_val
default_root_dir ckpt_path strategy num_workers
num_train_epochs per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps
warmup_ratio warmup_steps max_grad_norm label_smoothing_factor output_dir save_total_limit fp16
resume_from_checkpoint report_to load_best_model_at_end metric_for_best_model lr_scheduler_type
path valid_pct bs item_tfms arch base_lr wd freeze_epochs loss_func
directory validation_split image_size shuffle class_weight learning_rate metrics val_path
"""


def test_the_commonest_words_of_other_tools_lead_to_a_key_of_ours() -> None:
    lost = {"resume", "epochs", "lr", "batch_size", "workers", "patience", "weight_decay"}
    lost |= {"accelerator", "devices", "precision", "max_epochs", "warmup_lr"}  # our own, or none
    assert {word for word in COMMON.split() if not other_tools.for_key(word, GROUPS)} == lost
    for word in lost - {"warmup_lr"}:
        assert re.search(rf"did you mean '\w+\.\w*{word}'\?$", message(f"{word}=1")), word
    assert message("freeze=10").endswith(
        "type freeze=first_n freeze.n=NUMBER, of stages and not of layers"
    )
    assert message("val_dir=x").endswith("be folders in one folder, and type data.root=DIR")
    assert message("data=digits", "data.root=d").endswith(
        "choose data=folder, which has it, or drop it"
    )
    assert compose_specs(["data=folder", "data.root=d"]).data.root == "d"
