"""Verbs: what each stands for, which run is meant, and that a shell reads what is printed."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import warm
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image

from xfer.config.verbs import VERBS, override, run_named, shell, spelt_out
from xfer.core.errors import CommandError

SHELLS = [name for name in ("bash", "zsh", "fish") if shutil.which(name)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my images").mkdir()
    (tmp_path / "images.csv").touch()
    return tmp_path


def make_run(name: str, age: int = 0, state: str = "finished", **plan: object) -> Path:
    """A run folder as far as a verb reads it, ``age`` seconds old."""
    folder = Path("outputs") / name
    folder.mkdir(parents=True)
    facts = {"overrides": ["experiment=digits_sgd"], "stages": ["fit", "evaluate"], **plan}
    (folder / "plan.json").write_text(json.dumps(facts))
    (folder / "status.json").write_text(json.dumps({"state": state, "files": {}}))
    os.utime(folder / "plan.json", (1e9 - age, 1e9 - age))
    return folder


def refusal(*words: str) -> str:
    with pytest.raises(CommandError) as caught:
        spelt_out(words)
    return str(caught.value)


def test_what_is_no_verb_stays_as_it_is(here: Path) -> None:
    for words in ([], ["experiment=digits_sgd"], ["-m", "train"], ["stages=[]", "predict"]):
        assert spelt_out(words) == words


def test_each_verb_is_a_command_and_takes_what_stands_after_its_words(here: Path) -> None:
    run = str(make_run("digits_sgd/2026-01-01_10-00-00_aaaa01"))
    sweep = make_run("multirun/digits/2026-01-01_09-00-00_aaaa02/0", age=9).parent
    (sweep / "sweep.json").touch()
    again = ["experiment=digits_sgd"]
    for image in ("a.png", "b.png"):
        Path(image).touch()
    spelt = {
        "train 'my images' optim=sgd -m": ["data.root='my images'", "optim=sgd", "-m"],
        "train images.csv": ["data=csv", "data.file=images.csv"],
        "plan . seed=1": ["data.root=.", "stages=[]", "seed=1"],
        "predict last 'my images'": [
            *("stages=[predict]", f"checkpoint.path={run}", "predict.input='my images'"),
        ],
        "predict aaaa01 a.png b.png data.workers=0": [
            *("stages=[predict]", f"checkpoint.path={run}", "predict.input=[a.png,b.png]"),
            "data.workers=0",
        ],
        "export last onnx": [*again, "stages=[export]", f"checkpoint.path={run}", "export=onnx"],
        "export last onnx pt2": [
            *again,
            *("stages=[export]", f"checkpoint.path={run}", "export=[onnx,pt2]"),
        ],
        "report last": [*again, "stages=[fit,evaluate,report]", f"checkpoint.resume={run}"],
        "compare last aaaa01 seed=1": [
            *("stages=[compare]", f"compare.runs=[{run},{run}]", "seed=1"),
        ],
        "choose . minutes=5 seed=1": [
            *("choose=cached", "data.root=.", "choose.minutes=5", "seed=1"),
        ],
        "soup last sweep.soup_least=-0.02": [
            *again,
            *("stages=[soup,evaluate,export,report]", f"sweep.dir={sweep}"),
            "sweep.soup_least=-0.02",
        ],
        "pack 'my images' out pack.mb=9": [
            *("stages=[pack]", "data.root='my images'", "pack.out=out", "pack.mb=9"),
        ],
        "resume last": [*again, f"checkpoint.resume={run}"],
    }
    for typed, words in spelt.items():
        assert spelt_out(shlex.split(typed)) == words
    assert {typed.split()[0] for typed in spelt} == set(VERBS)


TABLES = {
    "x.parquet": "parquet",
    "x.npz": "arrays",
    "in/data/train-00000-of-00001.parquet": "parquet",
    "in/train_images.npy": "arrays",
    "in/dataset_dict.json": "hf",
    "in/state.json": "hf",
    "in/metadata.parquet": "",
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_and_arrays_are_trained_on_as_such(here: Path, name: str) -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    data = name.partition("/")[0]
    words = [f"data={TABLES[name]}"] if TABLES[name] else []
    assert spelt_out(["train", data]) == [*words, f"data.root={data}"]
    packed = spelt_out(["pack", data, "out"])
    assert packed == ["stages=[pack]", *words, f"data.root={data}", "pack.out=out"]


def test_a_folder_of_shards_is_trained_on_as_shards(here: Path) -> None:
    Path("shards/val").mkdir(parents=True)
    assert spelt_out(["train", "shards"]) == ["data.root=shards"]
    Path("shards/val/000000.tar").touch()
    assert spelt_out(["train", "shards"]) == ["data=shards", "data.root=shards"]


def test_an_onnx_file_predicts_without_its_run(here: Path) -> None:
    Path("model.onnx").touch()
    assert spelt_out(["predict", "model.onnx", "."])[1] == "predict.model=model.onnx"


def test_a_word_that_is_no_verb_has_a_near_one(here: Path) -> None:
    assert "E056: command line: 'trian' is no verb and sets no key. Fix: did you mean 'train'?" in (
        refusal("trian", ".")
    )
    # A stage that others have as a verb.
    for word in ("audit", "worth", "evaluate", "test", "finetune"):
        remedy = shlex.split(refusal(word, ".").partition("Fix: type xfer ")[2])
        named = ["." if text == "DATA" else text for text in remedy]
        stage = {"test": "evaluate", "finetune": ""}.get(word, word)
        stages = [f"stages=[{stage}]"] if stage else []
        assert spelt_out(named)[: 1 + len(stages)] == ["data.root=.", *stages]
    assert "E055: .: has no end to report: it is no run folder. Fix: give a run folder" in refusal(
        "report", "."
    )
    # What people type who think that the folder alone is enough.
    remedy = shlex.split(refusal("my images").partition("Fix: type xfer ")[2])
    assert spelt_out(remedy) == ["data.root='my images'"]


def test_words_that_are_missing_or_too_many_are_told(here: Path) -> None:
    assert "E051: train: needs DATA. Fix: type xfer train DATA" in refusal("train")
    assert "E051: train: takes DATA alone. Fix: type xfer train DATA" in refusal("train", ".", ".")
    for apart in (["optim.lr", "0.1"], ["optim.lr", "=0.1"]):
        remedy = refusal("train", ".", *apart).partition("Fix: type ")[2].split()
        assert spelt_out(["train", ".", *remedy]) == ["data.root=.", "optim.lr=0.1"]
    assert "E051: predict: needs RUN IMAGES" in refusal("predict", "last", "seed=1")


def test_a_misspelt_path_has_a_near_one(here: Path) -> None:
    assert "E052: my_images: does not exist. Fix: did you mean 'my images'?" in refusal(
        "train", "my_images"
    )
    Path("notes.txt").touch()
    assert "E052: notes.txt: is not a folder of images, or a CSV file" in refusal(
        "plan", "notes.txt"
    )
    assert "E052: nowhere/x: does not exist. Fix: give a folder" in refusal("train", "nowhere/x")
    make_run("a/b")
    assert "E052: my_images: does not exist. Fix: did you mean 'my images'?" in refusal(
        "predict", "last", "my_images"
    )
    assert spelt_out(["predict", "last", "*.jpg"])[-1] == "predict.input='*.jpg'"


def test_a_run_is_a_path_the_end_of_one_or_the_last_that_trained(here: Path) -> None:
    old = make_run("digits_sgd/2026-01-01_10-00-00_aaaa0e", age=9)
    new = make_run("digits/2026-01-02_10-00-00_bbbb0e", age=5)
    job = make_run("multirun/digits/2026-01-03_10-00-00_cccc0f/0", age=7)
    make_run("digits/2026-01-04_10-00-00_dddd0d", stages=["evaluate"])
    assert run_named("last") == new
    for key in ("checkpoint.path", "source.path"):
        assert spelt_out(["train", ".", f"{key}=last"])[1:] == [f"{key}={new}"]
    assert spelt_out(["checkpoint.path=last.ckpt"]) == ["checkpoint.path=last.ckpt"]
    assert run_named("aaaa0e") == run_named("digits_sgd/2026-01-01_10-00-00_aaaa0e") == old
    assert run_named("0") == job  # a whole name before the end of one
    assert run_named(str(old)) == run_named(f"./{old}") == old
    two = f"is the end of several runs: {new}, {old}. Fix: type more of its path"
    assert two in refusal("resume", "0e")
    assert "did you mean '2026-01-01_10-00-00_aaaa0e'?" in refusal(
        "resume", "2026-01-01_10-00-00_aaaa0f"
    )
    assert "E053: zzz: is no run folder" in refusal("resume", "zzz")


def test_without_any_run_the_last_is_told_what_to_type(here: Path) -> None:
    assert "no run below outputs that has trained. Fix: type xfer train DATA" in refusal(
        "resume", "last"
    )


def test_what_fixed_the_folder_of_a_run_does_not_begin_it_again(here: Path) -> None:
    typed = ["run.dir=a", "data=digits", "checkpoint.resume=auto", "optim.lr=0.1"]
    run = make_run("a/b", overrides=typed, config_dirs=["/of mine"])
    assert spelt_out(["resume", "b"]) == [
        *("--config-dir=/of mine", "data=digits", "optim.lr=0.1", f"checkpoint.resume={run}"),
    ]
    # What is exported comes from the checkpoint: only the data are taken from the command.
    assert "optim.lr=0.1" not in spelt_out(["export", "b", "onnx"])


@pytest.mark.parametrize(
    "word", ["--allow=evil", "hydra.searchpath=[x]", "+hydra.run.dir=x", "~hydra", "-m"]
)
def test_no_permission_comes_from_the_plan_of_a_run(here: Path, word: str) -> None:
    make_run("a/b", overrides=["data=digits", word])
    for verb in (["resume", "b"], ["report", "b"], ["export", "b", "onnx"]):
        assert f"E054: outputs/a/b/plan.json: '{word}' is no override of a run" in refusal(*verb)


def test_a_plan_that_is_none_or_old_is_told(here: Path) -> None:
    run = make_run("a/b")
    (run / "plan.json").write_text('{"overrides": 5}')
    assert "E054: outputs/a/b/plan.json: is not what a run writes" in refusal("resume", "b")
    (run / "plan.json").write_text('{"stages": []}')
    assert "E054: outputs/a/b: does not say with what command it began" in refusal("resume", "b")


def test_a_run_that_has_not_finished_has_no_report_and_the_remedy_is_a_command(here: Path) -> None:
    make_run("a/b", state="interrupted")
    said = refusal("report", "b")
    assert "E055: outputs/a/b: has no end to report: it is interrupted" in said
    remedy = shlex.split(said.partition("Fix: type xfer ")[2])
    assert spelt_out(remedy)[-1] == "checkpoint.resume=outputs/a/b"


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0\n\r"), min_size=1))
def test_hydra_reads_any_path_as_it_was_typed(text: str) -> None:
    word = override("predict.input", text)
    value = OverridesParser.create().parse_override(word).value()
    assert OmegaConf.create({"key": str(value)}).key == text


@pytest.mark.skipif(len(SHELLS) < 3, reason="bash, zsh and fish are not all installed")
@pytest.mark.parametrize("name", SHELLS)
def test_every_shell_reads_what_is_printed(name: str, tmp_path: Path) -> None:
    words = [
        *("stages=[]", "data.root='my images'", "a=$HOME ~ * ? !x", "it's", 'say "x"'),
        *(
            "back\\slash",
            "b\\'oth",
            "in='my *.jpg'",
            "in='$x'",
            "in='!x'",
            "\"in='x'\"",
            "{a,b}",
            "#x",
            "&|;<>()",
            "%1",
            "=ls",
            "^a",
            "größe",
        ),
    ]
    (tmp_path / "python").write_text(
        f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[3:]))\n"
    )
    (tmp_path / "python").chmod(0o700)
    done = subprocess.run(
        [name, "-c", shell(words)],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)},
        check=False,
    )
    assert json.loads(done.stdout) == words, done.stderr


def test_a_pattern_is_printed_in_one_pair_of_quotes() -> None:
    assert shell(["predict.input='a/*.jpg'"]).endswith(""" "predict.input='a/*.jpg'\"""")


def test_a_run_is_stopped_resumed_asked_and_exported_by_verbs(tmp_path: Path) -> None:
    def typed(*words: str, code: int = 0) -> str:
        process = warm.start(tmp_path, *words)
        output, _ = process.communicate()
        assert process.returncode == code, output
        return output

    typed("experiment=digits_sgd", "trainer.max_epochs=1", "stages=[fit,evaluate]")
    (run,) = (tmp_path / "outputs" / "digits_sgd").iterdir()
    began = "$ python -m xfer experiment=digits_sgd trainer.max_epochs=1 'stages=[fit,evaluate"
    told = typed("report", "last").splitlines()[0]
    assert told == f"{began},report]' checkpoint.resume=outputs/digits_sgd/{run.name}"
    assert (run / "report.html").is_file()
    assert "is finished: nothing to do" in typed("resume", run.name[-6:])
    # Drawn anew, from what is on disk, though the card is gone.
    card, result = (run / "report.html").read_text(), (run / "result.json").read_bytes()
    (run / "report.html").unlink()
    began = "$ python -m xfer experiment=digits_sgd trainer.max_epochs=1 'stages=[report]'"
    assert typed("report", "last").startswith(f"{began} checkpoint.resume=outputs/digits_sgd/")
    again = (run / "report.html").read_text()
    parts = ("<h2>[^<]+", '<details name="mistake"', 'class="heat-map" src="[^"]+', "<svg ")
    for part in parts:
        assert re.findall(part, again) == re.findall(part, card) != [], part
    assert (run / "result.json").read_bytes() == result and "Drawn anew from what was" in again
    # Beside the model, file after file, and never over one that is there.
    assert f"exported into {run.relative_to(tmp_path)}" in typed("export", "last", "safetensors")
    model = (run / "export" / "model.safetensors").read_bytes()
    (run / ".export-left" / "half").mkdir(parents=True)  # by one that was killed
    typed("export", "last", "torchscript")
    files = ["labels.json", "model.safetensors", "model.torchscript", "parity.json"]
    assert sorted(p.name for p in run.glob("*export*/*")) == [*files, "preprocess.json"]
    parity = json.loads((run / "export/parity.json").read_text())
    assert [row["file"] for row in parity] == files[1:3]
    said = typed("export", "last", "safetensors", "torchscript")
    assert said.count(" is there already, compared with the network: it stays") == 2
    said = typed("export", "last", "safetensors", "export.images=8", code=2)
    assert (
        f"E037: export: outputs/digits_sgd/{run.name}/export/model.safetensors is there al" in said
    )
    typed("export", "last", "safetensors", "run.dir=other")
    assert (tmp_path / "other/export/model.safetensors").is_file()
    assert (run / "export" / "model.safetensors").read_bytes() == model
    assert not [*run.glob(".export*")] and len([*(tmp_path / "outputs").glob("*/*")]) == 1
    # What was added is vouched for, too.
    (run / "export" / "model.torchscript").write_bytes(b"")
    assert "E521" in typed("resume", "last", code=5)
    Image.new("RGB", (40, 40), "red").save(tmp_path / "a.png")
    for name in ("predictions.csv", "predictions_2.csv"):
        assert f"1 prediction in outputs/digits_sgd/{run.name}/{name}" in typed(
            "predict", "last", "a.png"
        )
        assert len((run / name).read_text().splitlines()) == 2
