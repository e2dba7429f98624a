"""``xfer compare``: real runs beside each other, numbers computed again, hostile folders."""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import warm
import yaml
from browser import check_page, chromium
from pictures import picture
from scipy.stats import binomtest

import xfer
from xfer.config.verbs import spelt_out
from xfer.core.errors import CombinationError, CommandError, SafetyError, XferError
from xfer.report.comparison import compare, read_all
from xfer.report.comparison.paired import pairs
from xfer.report.overlay import Line, axis_of, panel

RUNS = {
    "a": ["experiment=digits_sgd", "optim.lr=0.1", "stages=[fit,evaluate,report]", "report.maps=0"],
    "b": ["experiment=digits_sgd", "optim.lr=0.02", "freeze=none", "stages=[fit,evaluate]"],
    "c": ["experiment=digits_freeze", "stages=[fit,evaluate]"],
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three runs of the digits: the head, all of it, and a solved head."""
    place = tmp_path_factory.mktemp("ran")
    for name, options in RUNS.items():
        epochs = [] if name == "c" else ["trainer.max_epochs=2"]
        run = warm.start(place, *options, *epochs, f"run.dir=outputs/digits/{name}")
        said, _ = run.communicate()
        assert run.returncode == 0, said
    return place


def copy_or_link(file: str, copy: str) -> None:
    """No test changes a checkpoint or a figure, which are most of what a run leaves."""
    (os.link if file.endswith((".ckpt", ".png")) else shutil.copy2)(file, copy)


@pytest.fixture
def copied(ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copies that a test may spoil, in the folder in which one types."""
    digits = Path("outputs", "digits")
    shutil.copytree(ran / digits, tmp_path / digits, copy_function=copy_or_link)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "outputs" / "digits"


def answers(run: Path) -> list[dict[str, str]]:
    with (run / "predictions_val.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def result(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


def page(*runs: Path) -> tuple[str, str]:
    """The HTML page and, without escapes, the text of the comparison of ``runs``."""
    path = compare(read_all([str(run) for run in runs]), runs[0].parent)
    return path.read_text(), path.with_suffix(".md").read_text().replace("\\", "")


def rows(text: str, title: str) -> list[list[str]]:
    """The cells of the table below ``title`` in the Markdown page."""
    part = text.partition(f"## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def refusal(kind: type[XferError], *runs: Path | str) -> str:
    with pytest.raises(kind) as caught:
        read_all([str(run) for run in runs])
    return str(caught.value)


def test_the_verb_answers_and_writes_one_page_beside_no_run(ran: Path) -> None:
    before = {str(p): p.stat().st_mtime_ns for p in ran.glob("outputs/digits/**/*")}
    code = (
        "import sys; from xfer.__main__ import _main; "
        "code = _main(['compare', 'digits/a', 'digits/b', 'digits/c']); "
        "sys.exit(code or 10 * ('torch' in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ran, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    typed, *table = done.stdout.splitlines()
    assert typed.startswith("$ python -m xfer 'stages=[compare]' 'compare.runs=[outputs/digits/a,")
    assert [line.split()[:2] for line in table[1:4]] == [
        [name.upper(), f"{result(ran / 'outputs/digits' / name)['scores']['val']['acc']:.3f}"]
        for name in "abc"
    ]
    path = ran / table[-1].removeprefix("comparison: ")
    assert re.fullmatch(r"outputs/compare/[\d-]{10}_[\d-]{8}_\w{6}/compare\.html", table[-1][12:])
    assert sorted(p.name for p in path.parent.iterdir()) == ["compare.html", "compare.md"]
    assert before == {str(p): p.stat().st_mtime_ns for p in ran.glob("outputs/digits/**/*")}
    # And it is no run: the last one is still the one that trained.
    assert spelt_out_in(ran, "report", "last")[-1] == "checkpoint.resume=outputs/digits/c"


def spelt_out_in(folder: Path, *words: str) -> list[str]:
    here = Path.cwd()
    os.chdir(folder)
    try:
        return spelt_out(words)
    finally:
        os.chdir(here)


def test_axe_finds_nothing_serious_on_a_phone_and_on_a_screen(copied: Path) -> None:
    path = compare(read_all([str(copied / n) for n in "abc"]), copied)
    check_page(path)
    with chromium() as browser:
        browser.look(800)
        browser.open(path)
        cut = "[...document.querySelectorAll('.wide')].filter(t => t.scrollWidth > t.clientWidth)"
        assert browser.run(f"return {cut}.map(t => t.textContent)") == []
        tops = "[...document.querySelectorAll('.chart')].map(c => c.offsetTop)"
        first, second, *_ = browser.run(f"return {tops}")
        assert first == second, "two charts have room beside each other"


def test_every_pair_has_the_p_of_scipy(copied: Path) -> None:
    folders = [copied / name for name in "abc"]
    _, text = page(*folders)
    right = [
        {row["path"]: row["label"] == row["prediction"] for row in answers(f)} for f in folders
    ]
    found = {row[0]: row[1:] for row in rows(text, "Pairs")}
    assert list(found) == ["A and B", "A and C", "B and C"]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        one = np.array([right[i][path] for path in sorted(right[i])])
        other = np.array([right[j][path] for path in sorted(right[i])])
        first, second = int((one & ~other).sum()), int((other & ~one).sum())
        p = binomtest(first, first + second).pvalue if first + second else 1.0
        counts = [len(one), int((one & other).sum()), first, second, int((~one & ~other).sum())]
        wanted = [*map(str, counts), f"{one.mean() - other.mean():+.3f}", f"{p:.2g}"]
        assert found[f"{'ABC'[i]} and {'ABC'[j]}"] == wanted
    assert "Of twenty pairs of equally good runs one has p < 0.05" in text


def test_scores_stand_side_by_side_with_the_intervals_of_scipy(copied: Path) -> None:
    _, text = page(copied / "a", copied / "b")
    for row, name in zip(rows(text, "Validation scores"), "ab", strict=True):
        right = [line["label"] == line["prediction"] for line in answers(copied / name)]
        ends = binomtest(sum(right), len(right)).proportion_ci(method="wilson")
        assert row[:3] == [name.upper(), str(len(right)), f"{np.mean(right):.3f}"]
        assert row[3] == f"{ends.low:.3f} to {ends.high:.3f}"
        assert f"{result(copied / name)['scores']['val']['loss']:.3f}" in row
        assert row[-1] == "yes"


def test_the_images_on_which_they_differ_are_all_there_or_counted(copied: Path) -> None:
    runs = [{row["path"]: row for row in answers(copied / name)} for name in "abc"]
    differing = {
        path: [run[path] for run in runs]
        for path in runs[0]
        if len({run[path]["prediction"] for run in runs}) > 1
    }
    _, text = page(*(copied / name for name in "abc"))
    shown = rows(text, "Images")
    assert f"The runs differ on {len(differing)} of the 179 images" in text
    assert len(shown) == min(50, len(differing)) > 3
    rest = len(differing) - 50
    assert (f"The first 50 are shown, the other {rest} are not." in text) == (rest > 0)
    for _, path, label, *said in shown:
        for text_, row in zip(said, differing[path], strict=True):
            mark = "✓" if row["prediction"] == row["label"] == label else "✗"
            wanted = f"{mark} {row['prediction']} ({float(row['confidence']):.3f})"
            assert text_ == wanted


def test_more_than_fifty_images_are_counted(copied: Path) -> None:
    lines = (copied / "b" / "predictions_val.csv").read_text().splitlines()
    # Every answer another one.
    turned = [re.sub(r"^([^,]+,[^,]+),[^,]+", r"\1,none", line) for line in lines[1:]]
    (copied / "b" / "predictions_val.csv").write_text("\n".join([lines[0], *turned]) + "\n")
    _, text = page(copied / "a", copied / "b")
    assert "The first 50 are shown, the other 129 are not." in text
    assert len(rows(text, "Images")) == 50


def test_the_changed_keys_are_those_that_differ_and_no_other(copied: Path) -> None:
    def flat(node: object, at: str = "") -> dict[str, object]:
        if isinstance(node, dict) and node:
            return {k: v for key, n in node.items() for k, v in flat(n, f"{at}.{key}").items()}
        return {at.lstrip("."): node}

    one, other = (flat(yaml.safe_load((copied / n / "config.yaml").read_text())) for n in "ab")
    wanted = {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
    _, text = page(copied / "a", copied / "b")
    found = {row[0]: row[1:] for row in rows(text, "Changed keys")}
    assert {key for key in found if ": " not in key} == wanted
    assert found["optim.lr"] == ["0.1", "0.02"]
    assert found["scored checkpoint: sha256"][0] == result(copied / "a")["checkpoint"]["sha256"]
    facts = result(copied / "b")
    facts["versions"]["torch"] = "1.0"
    facts["source"]["sha256"] = "f" * 64
    (copied / "b" / "result.json").write_text(json.dumps(facts))
    found = {row[0]: row[1:] for row in rows(page(copied / "a", copied / "b")[1], "Changed keys")}
    assert found["version: torch"][1] == "1.0" and found["weights: sha256"][1] == "f" * 64


def test_curves_are_overlaid_and_those_of_a_solved_head_are_over_strengths(copied: Path) -> None:
    whole, text = page(*(copied / name for name in "abc"))
    assert "Solved, not trained step by step: C." in text
    figures = dict(re.findall(r"<h3>([^<]+)</h3>\s*<svg[^>]*>(.*?)</svg>", whole, re.S))
    by_epoch = figures["validation loss, by epoch"]
    assert {"t0", "t1"} == set(re.findall(r'<path class="(t\d)"', by_epoch))
    assert set(re.findall(r'<path class="(t\d)"', figures["held-out loss, by strength"])) == {"t2"}
    # A point a row of metrics.csv.
    strengths = len((copied / "c" / "metrics.csv").read_text().splitlines()) - 1
    assert figures["held-out loss, by strength"].count("<circle") == strengths
    assert by_epoch.count("<circle") == 4


def test_points_lie_where_their_numbers_are() -> None:
    drawn = panel("loss", "epoch", [Line("A", [(1, 0.5), (2, 0.25), (5, 0.0)], 0)])
    assert drawn is not None
    at = np.array(re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', str(drawn.svg)), float)
    assert np.interp(2, [1, 5], at[[0, 2], 0]) == pytest.approx(at[1, 0], abs=0.1)
    assert at[1, 1] == pytest.approx((at[0, 1] + at[2, 1]) / 2, abs=0.1) and at[0, 1] < at[2, 1]
    logarithmic = panel("loss", "l2", [Line("A", [(0.01, 1), (0.1, 2), (1.0, 1)], 0)], log=True)
    assert logarithmic is not None
    across = np.array(re.findall(r'cx="([\d.]+)"', str(logarithmic.svg)), float)
    assert across[1] == pytest.approx((across[0] + across[2]) / 2, abs=0.1)
    assert panel("loss", "epoch", [Line("A", [], 0)]) is None


def test_an_axis_is_logarithmic_only_where_values_reach_over_decades() -> None:
    assert axis_of("lr", [0.001, 0.01, 0.1]).places == pytest.approx((0, 0.5, 1))
    assert axis_of("lr", [0.0, 0.5, 2.0, None]).places == (0, 0.25, 1, None)
    assert axis_of("freeze", ["none", "bn_only", True]).places == (0, 0.5, 1)
    assert axis_of("lr", [0.1, 0.1]).places == (0.5, 0.5)


def test_the_page_needs_nothing_else_and_its_script_is_the_one_of_its_policy(copied: Path) -> None:
    whole, _ = page(copied / "a", copied / "b")
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', whole)
    (script,) = re.findall(r"<script>(.*?)</script>", whole, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    outside = re.findall(r"""(?:src|href)=["'](?!data:)([^"']*)""", whole)
    assert outside == ["a/report.html"]  # the one run that has a card
    assert not re.search(r"<script |<link|<iframe| on\w+=", whole)


def test_thumbnails_are_of_the_files_that_are_still_there(copied: Path) -> None:
    places = copied.parents[1] / "data"
    outside = copied.parents[1] / "outside.jpg"
    picture(0).save(outside)
    (places / "val").mkdir(parents=True)
    picture(1).save(places / "val" / "0.jpg")
    (places / "val" / "1.jpg").write_bytes(b"no image")
    (places / "val" / "3.jpg").symlink_to(outside)
    names = ["val/0.jpg", "val/1.jpg", "val/2.jpg", "val/3.jpg", "../outside.jpg", str(outside)]
    for name, said in (("a", "5"), ("b", "6")):
        lines = [f"{path},5,{said},0.9" for path in names]
        text = "\n".join(["path,label,prediction,confidence", *lines, ""])
        (copied / name / "predictions_val.csv").write_text(text)
        config = yaml.safe_load((copied / name / "config.yaml").read_text())
        config["data"]["root"] = str(places)
        (copied / name / "config.yaml").write_text(yaml.safe_dump(config))
    whole, text = page(copied / "a", copied / "b")
    assert len(rows(text, "Images")) == len(names)
    (alt, data) = re.findall(r'<img class="seen" alt="([^"]+)" src="([^"]+)"', whole)[0]
    assert whole.count("<img") == 1, "a file out of the data's folder was opened"
    assert alt == "validation image of class 5"
    assert base64.b64decode(data.partition(",")[2])[:2] == b"\xff\xd8"


def test_runs_on_other_images_are_not_tested_and_the_page_says_so(copied: Path) -> None:
    path = copied / "b" / "predictions_val.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:100]))
    _, text = page(copied / "a", copied / "b")
    assert "A and B: not tested: they answered 179 and 99 validation images, of which 99" in text
    assert rows(text, "Pairs") == [["A and B", *["–"] * 7]]
    assert "of the 99 images that all of them answered" in text
    path.write_text("".join([lines[0], re.sub(r",\d,", ",x,", lines[1], count=1), *lines[2:]]))
    assert "the same images have other labels" in page(copied / "a", copied / "b")[1]
    path.write_text("".join(lines))
    plan = json.loads((copied / "b" / "plan.json").read_text())
    plan["splits"]["val"]["sha256"] = "0" * 64
    (copied / "b" / "plan.json").write_text(json.dumps(plan))
    assert "the same names in both runs and other contents" in page(copied / "a", copied / "b")[1]


def test_the_same_images_in_another_order_are_the_same(copied: Path) -> None:
    before = pairs(read_all([str(copied / "a"), str(copied / "b")]))
    path = copied / "b" / "predictions_val.csv"
    head, *lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([head, *reversed(lines)]))
    assert pairs(read_all([str(copied / "a"), str(copied / "b")])) == before


def test_runs_of_other_data_are_refused(copied: Path) -> None:
    path = copied / "b" / "predictions_val.csv"
    path.write_text(path.read_text().replace("digits/", "others/"))
    assert "E073" in refusal(CommandError, copied / "a", copied / "b")
    plan = json.loads((copied / "b" / "plan.json").read_text())
    plan["classes"] = ["5", "6", "7", "8", "wolf"]
    (copied / "b" / "plan.json").write_text(json.dumps(plan))
    said = refusal(CommandError, copied / "a", copied / "b")
    assert "E072" in said and "'9', 'wolf' in one of them alone" in said


def test_a_run_that_has_not_finished_is_named_and_the_remedy_is_a_command(copied: Path) -> None:
    status = json.loads((copied / "b" / "status.json").read_text())
    (copied / "b" / "status.json").write_text(json.dumps({**status, "state": "interrupted"}))
    said = refusal(CommandError, copied / "a", "outputs/digits/b")
    assert "E070: outputs/digits/b: has not finished: it is interrupted" in said
    remedy = shlex.split(said.partition("Fix: type xfer ")[2])
    assert spelt_out(remedy)[-1] == "checkpoint.resume=outputs/digits/b"


def test_a_run_without_predictions_is_named_and_the_remedy_makes_them(copied: Path) -> None:
    (copied / "b" / "predictions_val.csv").unlink()
    said = refusal(CommandError, copied / "a", "outputs/digits/b")
    assert "E071: outputs/digits/b: has no predictions_val.csv" in said
    command = said.partition("Fix: type python -m xfer ")[2].partition(", and compare")[0]
    made = xfer.run(None, [*shlex.split(command), "run.dir=outputs/digits/d"]).folder
    assert len(read_all([str(copied / "a"), str(made)])[1].said) == 179
    assert "Without a curve, since nothing was trained: B." in page(copied / "a", made)[1]


def test_folds_without_val_are_no_run_to_compare_and_other_images_are_asked_for(
    copied: Path,
) -> None:
    (copied / "b" / "predictions_val.csv").rename(copied / "b" / "predictions_oof.csv")
    said = refusal(CommandError, copied / "a", "outputs/digits/b")
    assert "E071: outputs/digits/b: is a cross-validation without val" in said
    assert "type python -m xfer data.root=DIR 'stages=[evaluate]' checkpoint.path=" in said


@pytest.mark.parametrize(
    ("typed", "number"),
    [
        (["stages=[compare]"], 40),
        (["stages=[compare]", "compare.runs=[a]"], 40),
        (["stages=[compare,fit]", "compare.runs=[a,b]"], 42),
        (["stages=[fit]", "compare.runs=[a,b]", "data=digits"], 42),
        (["stages=[compare]", "compare.runs=[outputs/digits/a,outputs/digits/a]"], 41),
        (["stages=[compare]", f"compare.runs=[{','.join('abcdefghijklm')}]"], 41),
        (["stages=[compare]", "compare.runs=[nowhere,outputs/digits/a]"], 75),
        (["stages=[compare]", "compare.runs=[outputs/digits,outputs/digits/a]"], 75),
        (["stages=[compare]", "compare.runs=['~nobody-of-this-name',a]"], 299),
        (["stages=[compare]", "compare.runs=5"], 202),
    ],
)
def test_what_cannot_be_compared_is_refused(copied: Path, typed: list[str], number: int) -> None:
    with pytest.raises(XferError) as caught:
        xfer.run(None, typed)
    assert (caught.value.exit, caught.value.number) == (2, number)
    assert not Path("outputs/compare").exists()


def test_a_run_twice_by_a_link_is_one_run(copied: Path) -> None:
    (copied / "again").symlink_to(copied / "a")
    assert "E041" in refusal(CombinationError, copied / "a", copied / "again")


def test_run_dir_says_where_the_page_goes(copied: Path) -> None:
    both = "compare.runs=[outputs/digits/a,outputs/digits/b]"
    done = xfer.run(None, ["stages=[compare]", both, "run.dir=here"])
    assert done.folder == Path("here") and Path("here/compare.html").is_file()
    assert 'href="../outputs/digits/a/report.html"' in Path("here/compare.html").read_text()
    with pytest.raises(XferError, match="already holds files"):
        xfer.run(None, ["stages=[compare]", both, "run.dir=here"])


TORN = {
    "status.json": ["[]", '{"state": 5}', "{torn", "[" * 5000],
    "result.json": [
        '{"scores": 5}', '{"scores": {"val": {"acc": "much"}}}', '{"seed": NaN}', '{"best": []}',
        '{"scores": {"val": {"acc_ci95": [0.1]}}}', '{"versions": {"torch": {}}}',
    ],
    "plan.json": ['{"classes": "cat"}', '{"splits": {"val": 5}}'],
    "config.yaml": ["- a", "a: &a [*a]", "{torn", "when: 2026-01-01", "[" * 500, "&a x: *b"],
    "predictions_val.csv": [
        "", "path,label,prediction\n1,2,3\n", "path,label,prediction,confidence\n1,2,3,nan\n",
        "path,label,prediction,confidence\n1,2,3,sure\n",
        "path,label,prediction,confidence\n1,2,3\n",
        "path,label,prediction,confidence\n1,2,3,0.5,6\n",
        "path,label,prediction,confidence\n1,2,3,0.5\n1,2,3,0.5\n",
        "path,label,prediction,confidence\n" + "x" * 200_000 + ",2,3,0.5\n",
    ],
    "metrics.csv": ["epoch,val_loss\n1,much\n", "epoch,val_loss\n1\n"],
}  # fmt: skip


@pytest.mark.parametrize(("name", "text"), [(n, t) for n, texts in TORN.items() for t in texts])
def test_what_no_run_writes_is_named(copied: Path, name: str, text: str) -> None:
    (copied / "b" / name).write_text(text)
    said = refusal(CommandError, copied / "a", copied / "b")
    assert f"E074: {copied / 'b' / name}: is not what a run writes (" in said
    assert said.count("\n") == 0 and len(said) < 600


def test_of_many_keys_the_first_are_shown_and_the_others_counted(copied: Path) -> None:
    config = yaml.safe_load((copied / "b" / "config.yaml").read_text())
    more = {f"key{i}": i for i in range(700)}
    (copied / "b" / "config.yaml").write_text(yaml.safe_dump({**config, "more": more}))
    _, text = page(copied / "a", copied / "b")
    assert len(rows(text, "Changed keys")) == 500
    assert re.search(r"The first 500 are shown, the other 2\d\d are not", text)


def test_a_file_that_is_too_large_is_not_read(copied: Path) -> None:
    for name in ("predictions_val.csv", "config.yaml"):
        with (copied / "b" / name).open("r+b") as stream:
            stream.truncate(1 << 40)  # a hole: it takes no room
        assert "it is larger than" in refusal(CommandError, copied / "a", copied / "b")


def test_nothing_is_followed_out_of_a_run_folder(copied: Path) -> None:
    path = copied / "b" / "predictions_val.csv"
    path.unlink()
    path.symlink_to(copied / "a" / "predictions_val.csv")
    assert "is a link that leads out" in refusal(SafetyError, copied / "a", copied / "b")
    path.unlink()
    os.mkfifo(path)
    assert "is a pipe" in refusal(SafetyError, copied / "a", copied / "b")


HOSTILE = '=x("y")<script>alert(1)</script>|a\x1b[31m\u202e{{ 7*7 }}'


def test_hostile_names_stay_text(copied: Path) -> None:
    for name in "ab":
        run = copied / name
        facts = {**result(run), "experiment": HOSTILE, "device": HOSTILE + name}
        (run / "result.json").write_text(json.dumps(facts))
        config = yaml.safe_load((run / "config.yaml").read_text())
        (run / "config.yaml").write_text(yaml.safe_dump({**config, HOSTILE: {HOSTILE: name}}))
        with (run / "predictions_val.csv").open(newline="") as stream:
            head, *lines = csv.reader(stream)
        lines[0][:3] = [HOSTILE, HOSTILE, HOSTILE if name == "a" else "5"]
        with (run / "predictions_val.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows([head, *lines])
    whole, text = page(copied / "a", copied / "b")
    assert whole.count("<script") == 1 and "\x1b" not in whole + text and "\u202e" not in whole
    assert "{{ 7*7 }}" in html.unescape(whole)
    marked = (copied / "compare.md").read_text()
    assert not re.search(r"(?<!\\)[<|]script", marked)
