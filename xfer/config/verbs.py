"""``xfer train DATA`` and other short spellings, each of which stands for a Hydra command.

No torch, no Hydra, and nothing is run here: a verb becomes the words that would have been typed
without it, and what stands after its own words is added as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from xfer.config import other_tools
from xfer.core.errors import CommandError, closest
from xfer.core.files import read_json

LAST = "last"
"""In place of a run: the one that began last."""
_A_RUN = "give a run folder, its end, or last"
_SAFE = re.compile(r"[\w./@:-][\w./@:=,+%-]*", re.ASCII)
"""What bash, zsh and fish all read as it is."""
_MEANS_MORE = re.compile(r'["$`\\!]')
"""What double quotes do not take from its meaning, in one shell or another."""
_BACK = "\\"
_PLAIN = re.compile(
    r"(?!(null|true|false|inf|nan)$)(\.{0,2}/|[a-z_]|\.$)[\w./@%+-]*", re.ASCII | re.I
)
"""What Hydra's grammar reads as text."""


class _Typed(TypedDict, total=False):
    """What ``plan.json`` says of the command that began the run."""

    overrides: list[str]
    config_dirs: list[str]
    stages: list[str]


class _State(TypedDict, total=False):
    state: str


def spelt_out(arguments: Sequence[str]) -> list[str]:
    """The words that ``arguments`` stand for, where the first of them is a verb; else the same.

    Raises CommandError for words that are missing or too many, a path that is not there, and a run
    that no folder or several match.
    """
    if not arguments or arguments[0] not in VERBS:
        _refuse_word(arguments[:1])
        return list(map(_with_run, arguments))
    verb = VERBS[arguments[0]]
    words = [*takewhile(lambda word: not _is_option(word), arguments[1:])]
    if not verb.least <= len(words) <= (verb.most or len(words)):
        what = f"needs {verb.usage}" if len(words) < verb.least else f"takes {verb.usage} alone"
        key, value = [*arguments[1 + verb.most :], "", ""][:2] if verb.most else ("", "")
        apart = re.fullmatch(r"[a-z][\w.]*", key) and value and not Path(key).exists()
        fix = f"{key}={value.lstrip('=')}" if apart else f"xfer {arguments[0]} {verb.usage}"
        raise CommandError(arguments[0], what, f"type {fix}", 1)
    rest = list(map(_with_run, arguments[1 + len(words) :]))
    return [*verb.command(words), *(verb.rest(words, rest) if verb.rest else rest)]


def _with_run(word: str) -> str:
    """``loss.teacher=last`` and the end of a run's name as the folder that they mean now, and
    ``last`` of other keys: what is resumed then is the same, whichever run began last."""
    keys = r"loss\.teacher|(?:checkpoint|source)\.path(?==last$)"
    named = re.fullmatch(rf"({keys})=([\w./@%+-]+)", word)
    if not named or named[2].lower().endswith(".onnx"):
        return word
    return override(named[1], str(run_named(named[2])))


def _refuse_word(first: Sequence[str]) -> None:
    for word in first:
        if word and not word.startswith(("-", "~")) and "=" not in word:
            fix = f"type xfer train {quoted(word)}" if Path(word).exists() else _for_verb(word)
            raise CommandError("command line", f"'{word[:200]}' is no verb and sets no key", fix, 6)


def _for_verb(word: str) -> str:
    """What to type in place of a verb that there is not, such as a stage."""
    stage = other_tools.STAGES.get(word.lower(), word.lower())
    run = " checkpoint.path=RUN" if stage in ("evaluate", "benchmark") else ""
    if run or stage in ("audit", "worth", "embed", "lr_find"):
        return f"type xfer train DATA 'stages=[{stage}]'{run}"
    return "type xfer train DATA" if stage == "fit" else closest(stage, VERBS)


def shell(arguments: Sequence[str]) -> str:
    """The command with these arguments, quoted for bash, zsh and fish."""
    return " ".join(["python -m xfer", *map(quoted, arguments)])


def quoted(word: str) -> str:
    """``word`` as bash, zsh and fish all read it."""
    if _SAFE.fullmatch(word):
        return word
    if "'" in word and not _MEANS_MORE.search(word):
        return f'"{word}"'
    # Inside single quotes fish alone reads a backslash, so one stands between double quotes.
    parts = re.split(r"(['\\]+)", word)
    return "".join(
        f'"{p.replace(_BACK, 2 * _BACK)}"' if i % 2 else f"'{p}'" for i, p in enumerate(parts) if p
    )


def repeatable(overrides: Sequence[str]) -> list[str]:
    """What of ``overrides`` makes the same run again, in a folder of its own."""
    once = ("run.dir=", "checkpoint.resume=")
    return [text for text in overrides if not text.lstrip("+").startswith(once)]


def _is_option(word: str) -> bool:
    """Whether Hydra reads ``word``: a flag, or an override and no path that has an equals sign."""
    return word.startswith("-") or ("=" in word and not Path(word).exists())


def override(key: str, value: Any) -> str:
    """``key=value`` in Hydra's grammar, for a value that is JSON-like, whatever text is in it."""
    return f"{key}={_in_grammar(value)}"


def _in_grammar(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{','.join(f'{name}:{_in_grammar(inner)}' for name, inner in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(map(_in_grammar, value))}]"
    if not isinstance(value, str):
        return json.dumps(value)
    if _PLAIN.fullmatch(value):
        return value
    # A backslash is one unless it stands before what has a meaning.
    escaped = re.sub(r"(\\*)('|\$\{|$)", lambda m: m[1] * 2 + ("\\" if m[2] else "") + m[2], value)
    return f"'{escaped}'"


def _data(text: str) -> list[str]:
    path = Path(text).expanduser()
    if (option := option_of(path)) is not None:
        return [*([f"data={option}"] if option else []), override("data.root", text)]
    if path.suffix.lower() in (".csv", ".json") and path.exists():
        return ["data=csv", override("data.file", text)]
    raise _no_such(text, "a folder of images, or a CSV file of their paths and labels")


def option_of(path: Path) -> str | None:
    """The option of ``data`` that reads a folder or a file, empty for the usual one; ``None`` for
    what none of them reads."""
    if path.is_file():
        return {".parquet": "parquet", ".npz": "arrays"}.get(path.suffix.lower())
    if not path.is_dir():
        return None
    if any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return "hf"
    names = {
        "shards": ("pack.json", "*.tar", "train/*.tar", "val/*.tar", "test/*.tar"),
        "parquet": ("*.parquet", "data/*.parquet", "train/*.parquet"),
        "arrays": ("*images*.npy", "x_*.npy"),
    }
    for option, patterns in names.items():
        found = (file for pattern in patterns for file in path.glob(pattern))
        # Beside folders of images it is what Hugging Face calls their captions.
        if any(file.name != "metadata.parquet" for file in found):
            return option
    return ""


def _no_such(text: str, wanted: str) -> CommandError:
    path = Path(text).expanduser()
    if path.exists():
        return CommandError(text, f"is not {wanted}", f"give {wanted}", 2)
    parent = path.parent
    names = [child.name for child in parent.iterdir()] if parent.is_dir() else []
    near = closest(path.name, names) if names else ""
    fix = near if near.startswith("did you mean") else f"give {wanted}"
    return CommandError(text, "does not exist", fix, 2)


def _predict(words: Sequence[str]) -> list[str]:
    model, images = words[0], words[1:]
    for text in images:
        # A pattern, or a list as Hydra writes it, is read later, with torch on the way.
        if not set("*?[") & set(text) and not Path(text).expanduser().exists():
            raise _no_such(text, "a folder of images, a file or a quoted pattern")
    if model.lower().endswith(".onnx") and Path(model).expanduser().is_file():
        which = override("predict.model", model)
    else:
        which = override("checkpoint.path", str(run_named(model)))
    return ["stages=[predict]", which, override("predict.input", _one_or_all(images))]


def _export(words: Sequence[str]) -> list[str]:
    run = run_named(words[0])
    which = [override("checkpoint.path", str(run)), override("export", _one_or_all(words[1:]))]
    return [*data_of(run), "stages=[export]", *which]


def _report(words: Sequence[str]) -> list[str]:
    run = run_named(words[0])
    state = _facts(run / "status.json", _State).get("state", "")
    if state != "finished":
        what = f"has no end to report: it is {state or 'no run folder'}"
        fix = f"type xfer resume {quoted(words[0])}" if state else _A_RUN
        raise CommandError(run, what, fix, 5)
    typed = _typed(run)
    done = typed.get("stages", [])
    # The card of a run that has one is drawn anew; otherwise the run does one stage more.
    stages = ["report"] if "report" in done else [*done, "report"]
    words = [word for word in _again(run, typed) if not word.startswith("stages=")]
    return [*words, f"stages=[{','.join(stages)}]", _resume_from(run)]


def _resume(words: Sequence[str]) -> list[str]:
    run = run_named(words[0])
    return [*_again(run, _typed(run)), _resume_from(run)]


def _compare(words: Sequence[str]) -> list[str]:
    runs = [str(run_named(word)) for word in words]
    return ["stages=[compare]", override("compare.runs", runs)]


def _choose(words: Sequence[str]) -> list[str]:
    return ["choose=cached", *(_data(words[0]) if words else [])]


def _minutes(words: Sequence[str], rest: Sequence[str]) -> list[str]:
    """``minutes=10`` is a key of the group. Raises CommandError where no data is named."""
    of_data = re.compile(r"[+]*(experiment|data|data\.root|data\.file)=")
    if not words and not any(of_data.match(text) for text in rest):
        what = "needs the images to choose on"
        raise CommandError("choose", what, "type xfer choose DATA minutes=10", 26)
    return [f"choose.{text}" if text.startswith("minutes=") else text for text in rest]


def _soup(words: Sequence[str]) -> list[str]:
    sweep = _sweep_named(words[0])
    jobs = sorted(p.parent for p in sweep.glob("*/plan.json") if p.parent.name.isdecimal())
    data = data_of(min(jobs, key=lambda job: int(job.name))) if jobs else []
    return [*data, "stages=[soup,evaluate,export,report]", override("sweep.dir", str(sweep))]


def _sweep_named(text: str) -> Path:
    """The folder of a sweep: a path, the end of the path of one below ``outputs/multirun``, or
    ``last``. Raises CommandError where there is none, or several."""
    path = Path(text).expanduser()
    if (path / "sweep.json").is_file():
        return path
    files = Path("outputs/multirun").glob("*/*/sweep.json")
    sweeps = [p.parent for p in sorted(files, key=lambda p: p.stat().st_mtime, reverse=True)]
    matching = sweeps[:1] if text == LAST else [s for s in sweeps if str(s).endswith(text)]
    if len(matching) > 1:
        several = ", ".join(map(str, matching[:5]))
        raise CommandError(text, f"is the end of several sweeps: {several}", "type more of it", 0)
    if matching:
        return matching[0]
    what = "is no folder of a sweep, and no sweep below outputs/multirun ends so"
    raise CommandError(text, what, "type xfer soup outputs/multirun/NAME/SWEEP", 0)


def _pack(words: Sequence[str]) -> list[str]:
    return ["stages=[pack]", *_data(words[0]), override("pack.out", words[1])]


def _one_or_all(words: Sequence[str]) -> str | list[str]:
    return words[0] if len(words) == 1 else list(words)


def _resume_from(run: Path) -> str:
    return override("checkpoint.resume", str(run))


def _typed(run: Path) -> _Typed:
    return _facts(run / "plan.json", _Typed)  # type: ignore[return-value]


def _again(run: Path, typed: _Typed) -> list[str]:
    """The words that began a run. Flags and Hydra's own keys are never taken from a file: what
    allows code to run comes from whoever types."""
    if "overrides" not in typed:
        fix = "type its command again, with checkpoint.resume=RUN"
        raise CommandError(run, "does not say with what command it began", fix, 4)
    steers = re.compile(r"[+~]*(hydra\b|-)")
    odd = [text for text in typed["overrides"] if "=" not in text or steers.match(text)]
    if odd:
        fix = "type its command again, with checkpoint.resume=RUN"
        raise CommandError(run / "plan.json", f"'{odd[0]}' is no override of a run", fix, 4)
    return [*_folders(typed), *repeatable(typed["overrides"])]


def data_of(run: Path) -> list[str]:
    """What in the command of a run says which data; nothing for a checkpoint without its run."""
    typed = _typed(run) if run.is_dir() else {}
    if "overrides" not in typed:
        return []
    of_data = re.compile(r"[+]*(experiment|data|data\..*|seed)=")
    return [*_folders(typed), *(t for t in _again(run, typed) if of_data.match(t))]


def _folders(typed: _Typed) -> list[str]:
    return [f"--config-dir={folder}" for folder in typed.get("config_dirs", [])]


def _facts(path: Path, kind: type) -> dict[str, object]:
    from xfer.core.read_back import checked

    try:
        facts = read_json(path)
        checked(kind, facts)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise CommandError(path, f"is not what a run writes ({said})", "put it back", 4) from error
    return dict(facts)


def run_named(text: str) -> Path:
    """The run folder, or checkpoint, that ``text`` means: a path, the end of the path of one run
    below ``outputs``, or ``last``. Raises CommandError where there is none, or several."""
    if text == LAST:
        return _newest()
    if (path := Path(text).expanduser()).exists():
        return path
    runs = _runs()
    matching = [run for run in runs if run.name == text] or [
        run for run in runs if str(run).endswith(text)
    ]
    if len(matching) > 1:
        several = ", ".join(str(run) for run in matching[:5])
        more = f" and {len(matching) - 5} more" if len(matching) > 5 else ""
        fix = "type more of its path"
        raise CommandError(text, f"is the end of several runs: {several}{more}", fix, 3)
    if matching:
        return matching[0]
    names = [run.name for run in runs]
    near = closest(text, names) if names else ""
    fix = near if near.startswith("did you mean") else _A_RUN
    raise CommandError(text, "is no run folder, and no run below outputs ends so", fix, 3)


def _newest() -> Path:
    for run in _runs():
        if {"fit", "soup"} & {*_typed(run).get("stages", [])}:
            return run
    raise CommandError(
        LAST, "there is no run below outputs that has trained", "type xfer train DATA", 3
    )


def _runs() -> list[Path]:
    """The run folders below ``outputs``, the one that began last first."""
    plans = [
        p for depth in ("*/*", "multirun/*/*/*") for p in Path("outputs").glob(f"{depth}/plan.json")
    ]
    return [p.parent for p in sorted(plans, key=lambda p: p.stat().st_mtime, reverse=True)]


@dataclass(frozen=True)
class Verb:
    """A word that people try: what stands after it, what it does, the command that it makes, and
    how many words of its own it takes (``most`` 0: any number); ``rest`` makes what stands after
    them of both."""

    usage: str
    about: str
    command: Callable[[Sequence[str]], list[str]]
    least: int = 1
    most: int = 1
    rest: Callable[[Sequence[str], Sequence[str]], list[str]] | None = None


VERBS = {
    "train": Verb("DATA", "train on a folder of images", lambda words: _data(words[0])),
    "plan": Verb(
        "DATA", "print the plan of that, do nothing", lambda words: [*_data(words[0]), "stages=[]"]
    ),
    "predict": Verb("RUN IMAGES", "classify other images", _predict, 2, 0),
    "export": Verb("RUN FORMAT", "write the model in other formats", _export, 2, 0),
    "report": Verb("RUN", "draw the run card anew", _report),
    "resume": Verb("RUN", "finish a run that was stopped", _resume),
    "compare": Verb("RUN RUN", "put runs beside each other", _compare, 2, 0),
    "choose": Verb("DATA minutes=10", "choose and train the best model", _choose, 0, 1, _minutes),
    "soup": Verb("SWEEP", "average a sweep's models into one", _soup),
    "pack": Verb("DATA OUT", "write images as tar files (shards)", _pack, 2, 2),
}
