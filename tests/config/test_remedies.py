"""What an error tells to type works: the words are taken out of its message and typed."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from shipped import SHIPPED

from xfer.__main__ import _main
from xfer.config.hydra import compose_specs
from xfer.core.errors import XferError
from xfer.plan.make import make_plan

Case = tuple[str, int, str] | tuple[str, int, str, str]

DIGITS = "experiment=digits_freeze "
STEPS = "backbone=timm backbone.image_size=32 features=never optim=adamw "
OWN = f"{STEPS}backbone.name=test_resnet "
PHOTOS = f"{OWN}source=none data.root=photos "
FILE = f"{OWN}source=file data.root=photos "
LIST = f"{OWN}source=none data=csv "
RUN = f"{STEPS}source=run source.path={SHIPPED} data.root=photos "

ARGS = "{layers:[1,1,1,1],channels:[8,16,32,64],stem_type:''}"
BLOCKS = f'backbone.name=resnet18 "backbone.args={ARGS}"'

# What is typed, the number of the error, what of its remedy is typed, and, where that has words in
# capitals, what is typed for it. After ``drop`` come keys that are left out.
LIKELY = [
    (f"{PHOTOS}model=resnet18", 201, "backbone=timm backbone.name=resnet18"),
    (f"{DIGITS}data.sampler=balanced loss.class_weights=balanced", 289, "loss.class_weights=none"),
    (
        f"{DIGITS}trainer.precision=16-mixed trainer.accelerator=cpu",
        222,
        "trainer.precision=bf16-mixed",
    ),
    (f"{DIGITS}loss=asymmetric", 61, "loss=cross_entropy"),
    (f"{DIGITS}head=mlp optim=exact", 262, "optim=adamw"),
    (f"{DIGITS}source=file source.path={SHIPPED}", 403, f"source=run source.path={SHIPPED}"),
    (
        "stages=[compare] compare.runs=[a]",
        40,
        "'stages=[compare]' 'compare.runs=[RUN,RUN]'",
        "compare.runs=[a,b]",
    ),
    (f"{PHOTOS}certificate.coverage=0.5 data.root=unlike", 187, "certificate.coverage=null"),
    (f"{LIST}data.file=several.json", 389, "task=multilabel"),
    (f"{FILE}source.path=two.pth", 432, "source.strip=student."),
    (f"{FILE}source.path=moco.pth", 432, "source.strip=module.encoder_q."),
    (
        f"{FILE}source.path=plain.pth head=remap",
        229,
        "source.classes=FILE",
        "source.classes=names.txt",
    ),
    (f"{RUN}backbone.name=test_resnet", 420, BLOCKS),
    (f"{RUN}backbone.name=resnet18", 430, BLOCKS),
]
FURTHER = [
    (f"{DIGITS}data.sampler=balanced loss.class_weights=balanced", 289, "drop data.sampler"),
    (f"{DIGITS}certificate.coverage=0.9 tta=flip", 17, "tta=none"),
    (f"{DIGITS}task=multilabel", 60, "task=single"),
    (f"{DIGITS}trainer.on_oom=halve trainer.devices=2", 1, "trainer.on_oom=error"),
    (
        f"{DIGITS}calibration=vector optim=sgd loss.class_weights=balanced",
        16,
        "calibration=temperature",
    ),
    (
        f"{DIGITS}certificate.coverage=0.999 certificate.by_class=true",
        19,
        "certificate.coverage=0.99",
    ),
    (f"{DIGITS}head=mlp optim=exact", 262, "head=linear"),
    (f"{DIGITS}head=mlp trainer.head_start=solved", 262, "trainer.head_start=zero"),
    (f"{DIGITS}freeze=none optim=sgd data.batch_size=1", 268, "data.batch_size=2"),
    (f"{DIGITS}freeze=lp_ft optim=sgd trainer.max_epochs=1", 238, "trainer.max_epochs=2"),
    (
        f"{DIGITS}freeze=lora optim=sgd trainer.devices=2 trainer.strategy=fsdp",
        28,
        "trainer.strategy=ddp",
    ),
    (
        f"{DIGITS}freeze=lora optim=sgd trainer.devices=2 trainer.strategy=fsdp",
        28,
        "freeze=head_only",
    ),
    (f"{DIGITS}head=keep source=none", 283, "head=linear"),
    (f"{DIGITS}stages=[audit] features=never", 25, "features=auto"),
    (f"{DIGITS}loss.class_weights=[1,2]", 250, "balanced", "loss.class_weights=balanced"),
    (
        f"{DIGITS}stages=[lr_find,fit] data.folds=5",
        8,
        "optim.lr=RATE",
        "data.folds=null stages=[fit] optim.lr=0.1",
    ),
    (f"{DIGITS}stages=[fit,compare] compare.runs=[a,b]", 42, "'stages=[compare]'"),
    (f"{DIGITS}stages=[pack,fit] pack.out=b", 47, "'stages=[pack]'"),
    (f"{DIGITS}stages=[pack]", 48, "pack.out=OUT", "pack.out=b"),
    (f"{DIGITS}head=knn optim=sgd", 32, "optim=auto"),
    (f"{DIGITS}head=prototype freeze=none", 32, "freeze=head_only"),
    (f"{PHOTOS}data.folds=50", 350, "data.folds=10"),
    (f"{PHOTOS}source=plain.pth", 204, "source=file source.path=plain.pth"),
    (f"{PHOTOS}data.root=twins data.leakage=error", 340, "data.leakage=warn"),
    (f"{LIST}data.file=photos.csv", 375, "data.separator=semicolon"),
    (f"{FILE}source.path=odd.pth", 488, "source.key=a"),
    (f"{FILE}source.path=renamed.pth", 435, "source.match=order"),
    (f"{FILE}source.path=plain.pth head=keep", 430, "head=linear"),
    (
        f"{FILE}source.path=plain.pth head=remap source.classes=[x,y,z]",
        226,
        "head.aliases='{CLASS: [NAME]}'",
        "head.aliases='{a: [x], b: [y]}'",
    ),
    (
        f"{FILE}source.path=plain.pth optim=sgd source.optimizer=resume",
        433,
        "drop source.optimizer",
    ),
    (f"{FILE}source=run source.path=plain.pth", 405, "source=file source.path=plain.pth"),
    (
        f"{FILE}source=mindspore \"source.path='my plain.pth'\"",
        478,
        "source=file \"source.path='my plain.pth'\"",
    ),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of images, lists of them and files of weights."""
    here, drawn = tmp_path_factory.mktemp("remedies"), np.random.default_rng(0)

    def image(*path: str) -> None:
        file = here.joinpath(*path)
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn.integers(0, 256, (40, 40, 3), np.uint8)).save(file)

    names = [f"{i}.png" for i in range(10)]
    for kind in "ab":
        for name in names:
            image("photos", kind, name)
            image("unlike", {"a": "unlike"}.get(kind, kind), name)
            image("twins", "train", kind, name)
    image("twins", "val", "b", "0.png")
    twin = (here / "twins/train/a/0.png").read_bytes()
    (here / "twins/val/a").mkdir()
    (here / "twins/val/a/0.png").write_bytes(twin)
    paths = [(f"photos/{kind}/{name}", kind) for kind in "ab" for name in names]
    rows = [
        {"path": path, "labels": [kind, "c"][: 1 + i % 2]} for i, (path, kind) in enumerate(paths)
    ]
    (here / "several.json").write_text(json.dumps(rows))
    lines = [f"{path};{kind}" for path, kind in paths]
    (here / "photos.csv").write_text("\n".join(["path;label", *lines]))
    (here / "names.txt").write_text("a\nb\nz\n")

    state = timm.create_model("test_resnet", num_classes=3).state_dict()
    moco = {f"module.encoder_{one}.{name}": v for one in "qk" for name, v in state.items()}
    below = {
        f"{one}.{name}": value for one in ("student", "teacher") for name, value in state.items()
    }
    renamed = {name.replace("conv", "kernel"): value for name, value in state.items()}
    files = {
        "plain": state,
        "my plain": state,
        "two": below,
        "moco": moco,
        "renamed": renamed,
        "odd": {"a": state, "b": state},
    }
    for name, content in files.items():
        torch.save(content, here / f"{name}.pth")
    return here


def words(typed: str) -> dict[str, str]:
    return dict(word.partition("=")[::2] for word in shlex.split(typed))


def spelt(given: dict[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in given.items()]


def planned(given: dict[str, str]) -> None:
    specs = compose_specs(spelt(given))
    if not {"compare", "pack"} & {*specs.stages}:
        make_plan(specs)


def cases(likely: list[Case], further: list[Case]) -> pytest.MarkDecorator:
    """``further`` ones are slow together."""
    return pytest.mark.parametrize(
        "case",
        [
            pytest.param(case, id=f"E{case[1]:03d} {case[2].partition('=')[0]}", marks=marks)
            for some, marks in ((likely, ()), (further, (pytest.mark.slow,)))
            for case in some
        ],
    )


@cases(LIKELY, FURTHER)
def test_what_a_remedy_tells_to_type_works(
    case: Case, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    typed, number, told, *meant = case
    given = words(typed)
    with pytest.raises(XferError) as caught:
        planned(given)
    assert (caught.value.number, told in caught.value.fix) == (number, True), str(caught.value)
    given.pop("model", None)  # no key here, whatever is typed in its place
    if told.startswith("drop "):
        del given[told.removeprefix("drop ")]
    else:
        given |= words((meant or [told])[0])
    planned(given)


SWEPT = [
    ("seed=0,1 sweep.pruner=median", 153, "sweep.sampler=tpe sweep.n_trials=32"),
    ("optim.lr=shuffle(0.1,0.2)", 166, "optim.lr=A,B", "optim.lr=0.1,0.2"),
]
SWEPT_TOO = [
    ("seed=0,1 sweep.storage=sqlite:///x.db", 155, "sweep.sampler=tpe sweep.n_trials=32"),
    ("seed=0,1 sweep.n_trials=2", 151, "sweep.sampler=tpe"),
    ("seed=0,1 sweep.sampler=tpe", 152, "sweep.n_trials=32"),
    ("optim.lr=interval(0.1,1)", 156, "sweep.sampler=tpe sweep.n_trials=32"),
    ("head=linear,mlp sweep.sampler=cmaes sweep.n_trials=2", 176, "sweep.sampler=tpe"),
    ("seed=0", 163, "'seed=choice(0)'"),
]


@cases(SWEPT, SWEPT_TOO)
def test_what_a_remedy_of_a_sweep_tells_to_type_works(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["xfer"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    typed, number, told, *meant = case
    given, plan = words(typed), ["-m", DIGITS.strip(), "stages=[]"]
    assert _main([*plan, *spelt(given)]) == 2
    line = capsys.readouterr().err
    assert f"error E{number}: " in line and told in line, line
    given |= words((meant or [told])[0])
    assert _main([*plan, *spelt(given)]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "key"),
    [
        ("--epochs 3", "trainer.max_epochs=3"),
        ("--lr=0.1", "optim.lr=0.1"),
        ("--batch-size 8", "data.batch_size=8"),
        ("--pretrained", "source=hub"),
        ("--seed 3", "seed=3"),
        ("--optimizer adam", "optim=adamw"),
        ("--batch 32", "data.batch_size=32"),
        ("--weights x.pt", "source=file source.path=x.pt"),
        ("--model resnet50", "backbone=timm backbone.name=resnet50"),
    ],
)
def test_a_flag_of_another_tool_is_a_key_here(
    flags: str, key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["xfer"])
    assert _main(["experiment=digits_sgd", *flags.split()]) == 2
    told = capsys.readouterr().err.rpartition("Fix: type ")[2].strip()
    assert told == key
    compose_specs(["experiment=digits_sgd", *told.split()])
