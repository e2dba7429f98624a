"""A whole run on classes and files whose names attack what is made of them."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import warm
from pictures import picture

from xfer import report
from xfer.weights.formats.checkpoint_format import read_snapshot

CLASSES = [
    "=cmd|' \u202ecalc'!A0",
    "<img src=x onerror=alert(1)>",
    "a\nxfer: error E101: forged. Fix: none",
    "\x1b]0;title\x07\x1b[2J|`x`\\",
    "{{ 7*7 }} ${oc.env:HOME} %s",
]
FILES = [
    "=1+1.jpg",
    "-rf.jpg",
    "\n=2+2.jpg",
    "<script>alert(1)<script>.jpg",
    "\x1b[31m.jpg",
    "\udcff.jpg",
]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """The run folder, where it was started, and what was said."""
    place = tmp_path_factory.mktemp("place")
    for i, label in enumerate(CLASSES):
        (folder := place / "data" / label).mkdir(parents=True)
        for j, name in enumerate(FILES):
            picture(100 * i + j).save(os.fsencode(folder) + b"/" + os.fsencode(name), "JPEG")
    options = ["experiment=digits_sgd", "data=folder", "data.root=data", "data.workers=0"]
    options += ["trainer.max_epochs=2", "stages=[fit,evaluate,export,report]"]
    # Beside the place, where nothing but the data and the run may be.
    done = warm.start(place, *options, "export=safetensors", "run.dir=run")
    code = done.wait(600)
    text = done.output.read_bytes().decode("utf-8", "surrogateescape")
    assert code == 0, text
    return place / "run", place, text


def test_nothing_is_written_elsewhere_and_no_file_is_called_by_a_class(done):
    run, place, _ = done
    assert sorted(path.name for path in place.iterdir()) == ["data", "run"]
    assert sum(len(files) for *_, files in os.walk(place / "data")) == len(CLASSES) * len(FILES)
    names = [str(path.relative_to(run)) for path in run.rglob("*")]
    assert all(name.isascii() and not set(name) & set("<>=|'\"`\n\x1b ") for name in names), names


def test_the_terminal_and_the_log_get_no_control_character_and_no_forged_line(done):
    run, _, said = done
    for text in (said, (run / "run.log").read_bytes().decode("utf-8", "surrogateescape")):
        assert all(c.isprintable() or c == "\n" for c in text)
        assert not [line for line in text.splitlines() if line.startswith("xfer: error")]


def test_no_cell_of_a_table_is_a_formula(done):
    run, _, _ = done
    tables = list(run.rglob("*.csv"))
    assert run / "predictions_val.csv" in tables
    for table in tables:
        with table.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
            for row in csv.reader(stream):
                assert not [cell for cell in row if cell[:1] in tuple("=+@\t\r\n")], row
                assert not [c for c in row if c[:1] == "-" and not c[1:2].isdigit()], row


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.bad: list[str] = []
        self.scripts: list[str] = []
        self.inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = tag
        if tag in ("iframe", "object", "embed", "base", "link", "form"):
            self.bad.append(tag)
        for name, value in attrs:
            outside = name in ("src", "href") and not (value or "").startswith(("data:", "#"))
            if name.startswith("on") or outside:
                self.bad.append(f"{tag} {name}={value}")

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts.append(data)

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""


def test_the_page_runs_no_foreign_script_and_loads_nothing(done):
    run, _, _ = done
    page, elements = (run / "report.html").read_text(), Elements()
    elements.feed(page)
    assert elements.bad == []
    (script,) = elements.scripts  # of the mistakes
    assert script == (Path(report.__file__).parent / "mistakes.js").read_text()
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "{{ 7*7 }}" in page, "a name was taken for a template"


def test_names_come_back_as_they_are(done):
    run, _, _ = done
    expected = sorted(CLASSES)
    assert json.loads((run / "plan.json").read_text())["classes"] == expected
    assert list(read_snapshot(run / "checkpoints" / "best.ckpt").card.classes) == expected
    labels = json.loads((run / "export" / "labels.json").read_text())
    assert sorted(labels if isinstance(labels, list) else labels["classes"]) == expected


def test_names_beyond_ascii_are_read_where_python_was_told_to_read_none(tmp_path: Path) -> None:
    root = tmp_path / "k\u00e4fer"
    for i, label in enumerate(("k\u00f6pfe", "\u72ac")):
        (root / label).mkdir(parents=True)
        for j in range(4):
            picture(10 * i + j).save(root / label / f"{j}.jpg", "JPEG")
    options = ["experiment=digits_freeze", "data=folder", "stages=[fit]", "data.leakage=ignore"]
    said = subprocess.run(
        [sys.executable, "-m", "xfer", *options, f"data.root={root}", "run.dir=run"],
        env={**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"},
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    assert "classes     2: k\u00f6pfe, \u72ac" in said.stdout.decode()
    assert json.loads((tmp_path / "run/result.json").read_text())["status"] == "finished"
