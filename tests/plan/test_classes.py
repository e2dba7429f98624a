"""Classes of the data and of the source: kept, remapped, matched by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import folders
from torch import nn

import xfer
from xfer.config import schema
from xfer.config.hydra import compose_specs
from xfer.core.errors import ConfigError, DataError
from xfer.core.types import Dataset, Samples
from xfer.models.head import Remap, carry
from xfer.models.head.class_match import Naming, adopt, rows
from xfer.models.network import assemble
from xfer.models.restore import open_checkpoint
from xfer.plan.classes import class_mismatch
from xfer.plan.make import make_plan
from xfer.plan.plan import Plan
from xfer.weights.source.match_rules import Rules

SOURCE = Naming(
    ("tabby", "timber wolf", "crane bird", "crane", "Cardigan", "cardigan"),
    (("n1", "cat"), ("n2", "grey wolf"), ("bird",), ("bird",), (), ()),
)


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("tabby", 0),
        ("Timber_Wolf", 1),
        ("grey-wolf", 1),
        ("n1", 0),
        ("Cardigan", 4),
        ("cardigan", 5),
        ("dog", None),
    ],
)
def test_a_class_is_found_by_its_name_or_a_synonym(name: str, index: int | None) -> None:
    assert SOURCE.index(name) == index


@pytest.mark.parametrize("name", ["bird", "CARDIGAN"])
def test_a_name_of_several_classes_is_never_guessed(name: str) -> None:
    with pytest.raises(ConfigError, match=r"may be '.*', '.*say which"):
        SOURCE.index(name)


def test_rows_follow_names_and_aliases_and_are_empty_for_new_classes() -> None:
    found = rows(("wolves", "cat", "fox"), SOURCE, {"wolves": ("timber wolf", "tabby")})
    assert found == ((1, 0), (0,), ())
    with pytest.raises(ConfigError, match=r"the data has no class 'wolfs'.*'wolves'"):
        rows(("wolves",), SOURCE, {"wolfs": ("timber wolf",)})
    with pytest.raises(ConfigError, match=r"no class 'timber wulf'.*'timber wolf'"):
        rows(("wolves",), SOURCE, {"wolves": ("timber wulf",)})
    with pytest.raises(ConfigError, match="knows none of the classes"):
        rows(("wolves", "fox"), SOURCE, {})


CAFE = ("caf\u00e9", "cafe\u0301")
"""One name, as Linux and as a Mac write it."""


@pytest.mark.parametrize("of_data", CAFE)
@pytest.mark.parametrize("of_source", CAFE)
def test_a_class_has_one_name_in_both_forms_of_unicode(of_data: str, of_source: str) -> None:
    known, _ = Rules(classes=(of_source, "dog")).class_names()
    assert known == (CAFE[0], "dog")
    for naming in (Naming(known), Naming((of_source, "dog"))):
        assert rows((of_data, "x"), naming, {"x": ("dog",)}) == ((0,), (1,))
        assert adopt(dataset(of_data), naming, {}).splits["val"].labels.tolist() == [0]
        for typed in CAFE:
            assert rows((of_data,), naming, {typed: ("dog",)}) == ((1,),)
            assert rows(("x", "y"), naming, {"x": (typed,)}) == ((0,), ())
            assert adopt(dataset("x"), naming, {"x": typed}).splits["val"].labels.tolist() == [0]
            kept = adopt(dataset(of_data), naming, {typed: "dog"})
            assert kept.splits["val"].labels.tolist() == [1]


def test_two_forms_of_one_name_are_no_two_classes(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\n".join(CAFE), encoding="utf-8")
    for given in (CAFE, str(tmp_path / "names.txt")):
        with pytest.raises(ConfigError, match=r"source\.classes: .* must hold distinct names"):
            Rules(classes=given).class_names()


@pytest.mark.parametrize("kind", [nn.Linear(3, 4), nn.Conv2d(3, 4, 1)])
def test_carried_rows_are_the_mean_of_their_sources(kind: nn.Module) -> None:
    new = Remap().build(kind, 3)
    carry(kind, new, ((1,), (0, 3), ()))
    for old, own in zip(kind.parameters(), new.parameters(), strict=True):
        assert torch.equal(own[0], old[1])
        assert torch.allclose(own[1], (old[0] + old[3]) / 2)
        assert not own[2].any()


def dataset(*classes: str) -> Dataset:
    labels = np.arange(len(classes), dtype=np.int64)
    return Dataset(classes, {"val": Samples(classes, labels, [], "0")})  # type: ignore[arg-type]


def test_folders_take_the_sources_classes() -> None:
    found = adopt(dataset("wolf", "cat"), SOURCE, {"wolf": "timber wolf"})
    assert found.classes == SOURCE.classes
    assert found.splits["val"].labels.tolist() == [1, 0]
    assert "matched to 6 classes" in found.remarks[0]


def test_a_folder_without_a_class_is_named_and_so_are_two_of_one() -> None:
    with pytest.raises(DataError, match=r"E341: tabi: .*'tabby'") as told:
        adopt(dataset("tabi"), SOURCE, {})
    assert told.value.exit == 3
    with pytest.raises(DataError, match=r"n1: names the class 'tabby', as folder 'cat' does"):
        adopt(dataset("cat", "n1"), SOURCE, {})


KEEP = ["experiment=digits_sgd", "head=keep", "data=digits_0_4", "stages=[evaluate]"]
REMAP = ["experiment=digits_sgd", "head=remap", "head.aliases={5: '0', 6: ['1', '2']}"]


def test_a_kept_head_answers_without_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = xfer.run(overrides=KEEP)
    assert done.facts is not None and done.facts["scores"]["val"]["acc"] > 0.95
    report = json.loads((done.folder / "load_report.json").read_text())
    assert report["counts"] == {"loaded": len(report["rows"])}
    assert done.facts["source"]["coverage"] == 1 and done.facts["source"]["dropped"] == 0


def planned(overrides: list[str]) -> Plan:
    return make_plan(compose_specs(overrides))


def test_a_folder_that_a_kept_head_does_not_know_stops_the_run(tmp_path: Path) -> None:
    root = folders(tmp_path, {f"val/{c}": 3 for c in ("0", "two")})
    with pytest.raises(DataError, match="'two' is none of the source's 5 classes"):
        planned([*KEEP[:2], "data=folder", f"data.root={root}", "stages=[evaluate]"])
    plan = planned(
        [
            *(*KEEP[:2], "data=folder", f"data.root={root}", "stages=[evaluate]"),
            "head.aliases={two: '2'}",
        ]
    )
    assert plan.dataset is not None
    assert set(plan.dataset.splits["val"].labels.tolist()) == {0, 2}


def test_a_remapped_head_starts_from_the_sources_rows() -> None:
    plan = planned(REMAP)
    assert plan.parts.rows == ((0,), (1, 2), (), (), ())
    source = plan.state["fc.weight"]
    head = assemble(plan.parts, plan.state).fc.weight
    assert torch.equal(head[0], source[0]) and not head[2:].any()
    assert torch.allclose(head[1], source[1:3].mean(0))
    whys = {row["key"]: row["why"] for row in plan.facts["auto"]}
    assert whys["trainer.head_start"].startswith(
        "not solved: the head begins from the source's rows"
    )
    assert plan.load["head"] == {"5": ["0"], "6": ["1", "2"], "7": [], "8": [], "9": []}


def test_a_remapped_run_reloads_and_exports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = xfer.run(overrides=[*REMAP, "trainer.max_epochs=1", "stages=[fit,evaluate,export]"])
    net, card = open_checkpoint(done.folder, schema.build)
    assert card.head["_target_"] == "xfer.models.head.Remap" and net.fc.weight.any()
    assert done.facts is not None and len(done.facts["export"]) == 2


def test_nothing_is_scored_untrained_where_a_class_is_new() -> None:
    with pytest.raises(ConfigError, match=r"no class for \['7', '8', '9'\]"):
        planned([*REMAP, "stages=[evaluate]"])


def test_a_second_transfer_keeps_whatever_head_the_first_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = xfer.run(
        overrides=[
            *("experiment=digits_sgd", "head=mlp", "trainer.max_epochs=1"),
            "stages=[fit,evaluate]",
        ]
    )
    again = xfer.run(
        overrides=[
            *("experiment=digits_sgd", "head=keep", "source=run"),
            *(f"source.path={first.folder}", "stages=[evaluate]"),
        ]
    )
    assert first.facts is not None and again.facts is not None
    assert again.facts["scores"]["val"] == first.facts["scores"]["val"]


def test_names_of_classes_must_be_known_to_remap(tmp_path: Path) -> None:
    state = planned(KEEP).state  # with its head
    torch.save(dict(state), tmp_path / "a.pt")
    file = ["experiment=digits_sgd", "source=file", f"source.path={tmp_path / 'a.pt'}"]
    with pytest.raises(ConfigError, match=r"source\.classes.*imagenet"):
        planned([*file, "head=remap"])
    plan = planned([*file, "head=remap", "source.classes=['0','1','2','3','5']"])
    assert plan.parts.rows == ((4,), (), (), (), ())


def test_data_of_other_classes_are_told_the_nearest_name_or_all_classes() -> None:
    told = class_mismatch(("cats", "dog"), ("cats", "dogs"), "run")
    assert told.fix == "did you mean 'dogs'?"
    told = class_mismatch(("bird", "fly"), ("cats", "dogs"), "run")
    assert told.fix == "give data with the 2 classes ['cats', 'dogs']"


def test_a_class_whose_name_is_no_text_is_refused_before_anything_is_paid_for(
    tmp_path: Path,
) -> None:
    folders(tmp_path, {"cat": 3, "dog": 3})
    (tmp_path / "cat").rename(tmp_path / "caf\udce9")
    wanted = (f"data.root={tmp_path}", "backbone=digits_resnet", "source=digits_0_4", "stages=[]")
    with pytest.raises(DataError, match=r"E707.*class 'caf\\udce9' is no UTF-8.*rename its folder"):
        make_plan(compose_specs(wanted))
    (tmp_path / "caf\udce9").rename(tmp_path / "café")
    dataset = make_plan(compose_specs(wanted)).dataset
    assert dataset is not None and dataset.classes == ("café", "dog")
