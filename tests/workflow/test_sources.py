"""What works on a folder works on every other source, with the same answers, bit for bit."""

from __future__ import annotations

import csv
import json
import re
import tarfile
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import labelled
import numpy as np
import pytest
import warm
from image_tables import PLAIN, png, write_parquet
from sklearn.datasets import load_digits
from sweeps import quick_sweep

import xfer
from xfer.config.hydra import compose_specs
from xfer.config.verbs import spelt_out
from xfer.core.bounded_yaml import read_yaml
from xfer.core.files import read_json
from xfer.core.torch_file import load_tensors
from xfer.data import Manifest
from xfer.data.pack import pack
from xfer.evaluation.out_of_fold import TABLE
from xfer.evaluation.predict import find
from xfer.plan.make import make_plan
from xfer.plan.table import brief
from xfer.plan.table import table as plan_table
from xfer.report.comparison.thumbnails import InTable, images_of, thumbnail

DIGITS, TRAIN, VAL = (2, 5, 6, 9), 12, 5
NETWORK = ["backbone=digits_resnet", "source=digits_0_4", "data.workers=0", "data.leakage=ignore"]
SOURCES = ("shards", "parquet", "hf", "arrays")
TASKS = ("single", "several")
CLOCKS = {"epoch_s", "step_ms", "data_share"}
# A group is a folder here, and a column there.
GROUP = {"folder": "FOLDER"} | dict.fromkeys(SOURCES, "film")


@dataclass(frozen=True)
class Row:
    """An image: its path in the folder, its labels (of one label an image the first), its split,
    its group, its pixels."""

    name: str
    labels: list[str]
    split: str
    film: str
    pixels: np.ndarray

    @property
    def image(self) -> dict[str, Any]:
        return {"bytes": png(self.pixels), "path": self.name}


def rows_of(task: str, films: bool) -> list[Row]:
    """Real digits, in the order of their paths; in folders of ``films`` or without."""
    images, targets = load_digits(return_X_y=True)
    rows = []
    for digit in DIGITS:
        for i, pixels in enumerate(images[targets == digit][: TRAIN + VAL]):
            split = "train" if i < TRAIN else "val"
            film, labels = f"{split}{i % 4}/" if films else "", [str(digit)]
            folder = f"{split}/{digit}/{film}"
            if task == "several":
                labels = [] if i == 7 else sorted(labelled.of_digit(digit))
                folder = f"{split}/{film}" + "".join(f"{label}/" for label in labels)
            grey = np.round(pixels.reshape(8, 8) * (255 / 16)).astype(np.uint8)
            shown = np.repeat(grey.repeat(4, 0).repeat(4, 1)[..., None], 3, axis=2)
            rows.append(Row(folder, labels, split, film, shown))
    # Numbered in the order of paths: a data set of Hugging Face has their last part alone.
    rows.sort(key=lambda row: row.name)
    return [replace(row, name=f"{row.name}{i:03}.png") for i, row in enumerate(rows)]


def write_folder(place: Path, rows: list[Row], several: bool) -> list[str]:
    for row in rows:
        path = place / "folder" / row.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(row.pixels))
    return ["data=folder", f"data.root={place / 'folder'}"]


def write_shards(place: Path, rows: list[Row], several: bool) -> list[str]:
    """A pack of a list of the images in the folder."""
    write_folder(place, rows, several)
    with (place / "list.csv").open("w", newline="") as stream:
        cells = [(row.name, "|".join(row.labels), row.split, row.film) for row in rows]
        csv.writer(stream).writerows([("path", "label", "split", "film"), *cells])
    how = {"group": "film"} if rows[0].film else {"columns": ("path", "label", "split")}
    given = Manifest(file=str(place / "list.csv"), root=str(place / "folder"), **how)
    return ["data=shards", f"data.root={pack(given, str(place / 'shards'), 1, several)}"]


def write_table(place: Path, rows: list[Row], several: bool) -> list[str]:
    cells = [
        {
            "image": row.image,
            "label": row.labels if several else row.labels[0],
            "split": row.split,
            "film": row.film,
        }
        for row in rows
    ]
    path = write_parquet(place / "images.parquet", cells, **PLAIN)
    return ["data=parquet", f"data.root={path}"]


def write_data_set(place: Path, rows: list[Row], several: bool) -> list[str]:
    import datasets

    datasets.disable_progress_bars()
    names = sorted({label for row in rows for label in row.labels})
    one = datasets.ClassLabel(names=names)
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.Sequence(one) if several else one,
            "film": datasets.Value("string"),
        }
    )
    parts = {}
    for split, part in (("train", "train"), ("val", "validation")):
        some = [row for row in rows if row.split == split]
        labels = [[names.index(label) for label in row.labels] for row in some]
        columns = {
            "image": [row.image for row in some],
            "label": labels if several else [row[0] for row in labels],
            "film": [row.film for row in some],
        }
        parts[part] = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict(parts).save_to_disk(str(place / "saved"))
    return ["data=hf", f"data.root={place / 'saved'}"]


def write_arrays(place: Path, rows: list[Row], several: bool) -> list[str]:
    names = sorted({label for row in rows for label in row.labels})
    matrix = np.array([[int(name in row.labels) for name in names] for row in rows])
    np.savez(
        place / "images.npz",
        images=np.stack([row.pixels for row in rows]),
        labels=matrix if several else np.array([row.labels[0] for row in rows]),
        classes=np.array(names),
        split=np.array([row.split for row in rows]),
        film=np.array([row.film for row in rows]),
    )
    return ["data=arrays", f"data.root={place / 'images.npz'}"]


WRITERS = {
    "folder": write_folder,
    "shards": write_shards,
    "parquet": write_table,
    "hf": write_data_set,
    "arrays": write_arrays,
}
NEEDS = {"parquet": "pyarrow", "hf": "datasets"}


def written(place: Path, task: str, source: str, films: bool = True) -> list[str]:
    """The words that name the images of a ``source``, which are written below ``place``."""
    if source in NEEDS:
        pytest.importorskip(NEEDS[source], reason=f"{NEEDS[source]} is not installed")
    place.mkdir(parents=True, exist_ok=True)
    words = WRITERS[source](place, rows_of(task, films), task == "several")
    return [*words, *["task=multilabel"] * (task == "several")]


def run(place: Path, *typed: str) -> Path:
    """A run in this process, with a cache of its own: nothing comes from that of another source."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("XFER_CACHE", str(place / "cache"))
        return (place / xfer.run(None, [*NETWORK, *typed]).folder).resolve()


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def timeless(facts: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in facts.items() if k != "seconds" and not k.endswith("_s")}


def told(folder: Path, source: str) -> dict[str, Any]:
    """All that a run has found out, images being called as they are called in a ``source``."""
    called = {"hf": lambda path: Path(path).name, "arrays": lambda path: ""}.get(source, str)
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*.csv")):
        rows = [{k: v for k, v in row.items() if k not in CLOCKS} for row in table(path)]
        named = [{k: called(row[k]) for k in ("path", "twin") if k in row} for row in rows]
        found[path.name] = [row | names for row, names in zip(rows, named, strict=True)]
    if source == "arrays" and (folded := found.pop(TABLE, None)):
        # Folds hang on names, and a picture in an array is called by the file and its row.
        found["folded"] = [len(folded), sorted(row["label"] for row in folded)]
    result = read_json(folder / "result.json")
    for key in ("scores", "cv", "solved", "calibration", "worth", "teacher"):
        if (source, key) == ("arrays", "cv"):
            continue
        found[key] = json.loads(json.dumps(result.get(key)), object_hook=timeless)
    if (folder / "checkpoints" / "best.ckpt").exists():
        tensors = load_tensors(folder / "checkpoints" / "best.ckpt")["state_dict"]
        found["weights"] = {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
    found["figures"] = {path.name: path.read_bytes() for path in folder.glob("figures/*.png")}
    for page in folder.glob("*.html"):
        found[page.name] = re.findall("data:image/[a-z]+;base64,[^\"']+", page.read_text())
    if (folder / "embeddings.npz").exists():
        with np.load(folder / "embeddings.npz") as file:
            found["embeddings"] = [file[k].tobytes() for k in ("features", "labels", "splits")]
    return found


def compare(one: Path, two: Path, source: str) -> dict[str, Any]:
    """Hold what two runs have found out to each other; that of the first."""
    first, second = told(one, source), told(two, source)
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert value == second[key], key
    return first


STAGES = ["stages=[fit,evaluate,audit]", "data.folds=2", "data.repeats=2"]


def grouped(source: str) -> str:
    return f"data.group={GROUP[source]}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Gives what a command has found out on the folder of a task; each is run once."""
    place = tmp_path_factory.mktemp("folders")
    words = {task: written(place / task, task, "folder") for task in TASKS}

    @cache
    def found(task: str, *typed: str) -> Path:
        return run(place / task, *words[task], grouped("folder"), *typed)

    return found


@pytest.fixture(scope="module")
def solved(folders: Any) -> Path:
    found: Path = folders("single", *STAGES)
    return found


# Each source once, and the other task of it where there is time.
LATER = pytest.mark.slow
PAIRS = [
    *(("shards", "single"), ("parquet", "several"), ("hf", "single"), ("arrays", "several")),
    pytest.param("shards", "several", marks=LATER),
    pytest.param("parquet", "single", marks=LATER),
    pytest.param("hf", "several", marks=LATER),
    pytest.param("arrays", "single", marks=LATER),
]


@pytest.mark.parametrize(("source", "task"), PAIRS)
def test_a_source_is_fitted_and_audited_as_the_folder_is(
    folders: Any, tmp_path: Path, task: str, source: str
) -> None:
    words = [*written(tmp_path, task, source), grouped(source)]
    workers = ["data.workers=1"] if source == "hf" else []
    found, one = run(tmp_path, *words, *STAGES, *workers), folders(task, *STAGES)
    known = compare(one, found, source)
    assert {"predictions_val.csv", "predictions_cv.csv", "audit.csv", "weights"} <= known.keys()
    assert len(known["audit.html"]) > 20
    several, last = task == "several", [read_yaml(r / "config.yaml") for r in (one, found)]
    for at in (0, -1):
        first, second = (
            thumbnail(images_of(config, several), table(r / "predictions_val.csv")[at]["path"])
            for config, r in zip(last, (one, found), strict=True)
        )
        assert first == second != ""
    if isinstance(images := images_of(last[1], several), InTable):
        gone = images._replace(data=replace(images.data, root=str(tmp_path / "gone.npz")))
        assert thumbnail(gone, table(found / "predictions_val.csv")[0]["path"]) == ""


def bare(source: str, root: Path) -> Path:
    """The images of a ``source`` alone, without a word of labels, splits or groups."""
    made = root.with_name(f"bare_{root.name}")
    if source == "parquet":
        from pyarrow import parquet

        parquet.write_table(parquet.read_table(root).select(["image"]), made)
    elif source == "hf":
        import datasets

        parts = datasets.load_from_disk(str(root)).select_columns(["image"])
        named = {f"roll {i}": part for i, part in enumerate(parts.values())}
        datasets.DatasetDict(named).save_to_disk(str(made))
    elif source == "arrays":
        with np.load(root) as arrays:
            np.savez(made, x=arrays["images"])
    else:
        made.mkdir()
        for path in root.glob("*/*.tar"):
            with tarfile.open(path) as tar, tarfile.open(made / path.name, "w") as alone:
                for member in (one for one in tar if one.name.endswith(".png")):
                    alone.addfile(member, tar.extractfile(member))
    return made


@pytest.fixture(scope="module")
def answers(solved: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Gives the answers of a run to images, in their order; those to the folder are the first."""

    def asked(images: Path) -> list[dict[str, str]]:
        facts = xfer.run(None, spelt_out(["predict", str(solved), str(images)])).facts
        rows = table(Path(facts["predictions"]))
        return [{name: cell for name, cell in row.items() if name != "path"} for row in rows]

    place = tmp_path_factory.mktemp("predicted")
    write_folder(place, rows_of("single", films=False), several=False)
    return asked, asked(place / "folder")


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_without_labels_is_predicted_as_the_folder_is(
    answers: Any, tmp_path: Path, source: str
) -> None:
    words = written(tmp_path, "single", source, films=False)
    root = Path(words[1].removeprefix("data.root="))
    asked, known = answers
    assert len(known) == 68 and asked(bare(source, root)) == known
    assert find([str(root)]).labels.tolist() == [-1] * 68  # its labels are none of our business
    audit = make_plan(compose_specs([*words, *NETWORK, "stages=[audit]"]))
    assert "these images are no files" in plan_table(audit) and "no files" in brief(audit)


def test_a_val_that_the_checkpoint_has_learned_is_no_measure_of_test(tmp_path: Path) -> None:
    rows = rows_of("single", films=False)
    write_folder(tmp_path, rows, several=False)

    def warned(*typed: str, train: str, val: str) -> list[str]:
        """What a run remarks in which these are the splits; all that ``test`` says is wrong."""
        lines = [("path", "label", "split")]
        for row in rows:
            split, label = {"train": train, "val": val}[row.split], row.labels[0]
            lines.append(
                (row.name, str("5692"["2569".index(label)] if split == "test" else label), split)
            )
        with (tmp_path / "list.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows(lines)
        folder = run(tmp_path, "data=csv", "data.file=list.csv", "data.root=folder", *typed)
        warnings: list[str] = read_json(folder / "result.json")["warnings"]
        return warnings

    warned("stages=[fit,evaluate]", "run.dir=one", train="train", val="val")
    again = ["stages=[evaluate]", "checkpoint.path=one"]
    worse = "test is answered worse than val"
    assert worse in "\n".join(warned(*again, train="test", val="val"))
    learned = warned(*again, train="val", val="test")
    assert "val: the checkpoint was trained on these images" in learned
    assert worse not in "\n".join(learned)


EVERY = {
    "fit": ["stages=[fit,evaluate,report]", "report.maps=2", "certificate.coverage=0.8"],
    "worth": ["stages=[worth]"],
    "embed": ["stages=[embed]"],
    "steps": [
        *("freeze=none", "optim=adamw", "optim.lr=0.001", "augment=standard"),
        *("data.sampler=balanced", "trainer.max_epochs=2", "data.workers=1"),
        "stages=[fit,evaluate]",
    ],
    "taught": ["loss=distill", "stages=[fit,evaluate]"],
}
JOBS = {
    "sweep": ["-m", "optim=exact", "optim.l2=0.1,0.01", "stages=[fit,evaluate]"],
    "folds": [
        *("data.folds=2", "freeze=none", "optim=adamw", "trainer.max_epochs=1"),
        *("run.dir=folds", "stages=[fit,evaluate]"),
    ],
}
CHOICE = [
    *("choose=cached", "choose.minutes=30", "choose.repeats=1", "choose.folds=2"),
    *("choose.rungs=1", "choose.heads=[linear,prototype]", "choose.freezes=[head_only]"),
    *("experiment=digits_freeze", "stages=[fit,evaluate]", "data.leakage=ignore"),
]


def all_run(place: Path, task: str, source: str, teacher: Path) -> Path:
    """Every command, in a folder of its name below ``place``."""
    words = written(place, task, source, films=False)
    for name, typed in EVERY.items():
        more = [f"loss.teacher={teacher / 'fit'}"] if name == "taught" else []
        run(place, *words, *typed, *more, f"run.dir={name}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XFER_CACHE", str(place / "cache"))
        for typed in JOBS.values():
            done = quick_sweep(place, *typed, *NETWORK, *words, "sweep.dir=sweep")
            assert done.returncode == 0, done.stdout
        chosen = warm.start(place, *CHOICE, *words, "run.dir=choice")
        said, _ = chosen.communicate()
        assert chosen.returncode == 0, said
    return place


@pytest.fixture(scope="module")
def all_known(tmp_path_factory: pytest.TempPathFactory) -> Any:
    place = tmp_path_factory.mktemp("all")
    return cache(lambda task: all_run(place / task, task, "folder", place / task))


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("source", SOURCES)
def test_whatever_is_asked_of_a_source_is_answered_as_of_the_folder(
    all_known: Any, tmp_path: Path, task: str, source: str
) -> None:
    one = all_known(task)
    two = all_run(tmp_path, task, source, one)
    for name in (*EVERY, "sweep/0", "sweep/1", "choice/model", "folds"):
        compare(one / name, two / name, source)
    choices = [read_json(place / "choice" / "choose.json") for place in (one, two)]
    kept = ("name", "state", "cv_loss", "acc_ci95")
    told = [[[row.get(k) for k in kept] for row in c["candidates"]] for c in choices]
    assert told[0] == told[1]
