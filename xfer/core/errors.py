"""What can go wrong, for people. One tree; the class gives the exit code, the number the case.

XferError                 exit  1   (a bug, when raised bare)
├── ConfigError                 2   a key, value, option or combination
│   ├── CombinationError        2   further combinations, numbered E001 to E049
│   ├── LabelsError             2   what does not go with several labels an image, E059 to E069
│   ├── CommandError            2   a verb, such as xfer train, with words that it cannot take
│   ├── LaunchError             2   ranks that a launcher has started otherwise than asked, E096 on
│   ├── ChoiceError             2   a choice that cannot be made as asked, E134 to E139
│   ├── HeadError               2   what a head that is filled does not do, E660 on
│   ├── ColumnError             2   two columns of a table with one name, E187 to E190
│   └── RepositoryError         2   a model of a hub that is of another backbone, E121
├── DataError                   3   folders, classes, files that are no images
│   ├── LabelledDataError       3   images with several labels, or in groups, E103 to E110
│   └── NamesError              3   names that this Python cannot read as they are, E710
├── WeightsError                4   source weights that do not fit or cannot be had
├── ResumeError                 5   a run that cannot be continued as asked
│   └── RanksError              5   ... on these devices, which it did not begin on, E676 to E685
├── SafetyError                 6   refused: somebody else's code, or a model that does not pay
├── DivergedError               7   NaN or Inf in loss or metric
├── OutOfMemory                 8   the device or the machine has no memory left
├── OutputError                 9   an output folder or file that cannot be written
├── ExportError                10   an exported file that answers otherwise
│   └── PushError              10   a hub that would not take the export, E117 to E119
├── SweepError                   2   several runs that cannot be had as asked
│   └── FoldError               2   folds that cannot be jobs as asked, E140 on
└── Problems                        several of the above, reported together
"""

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def printable(text: object) -> str:
    """``text`` with control characters escaped, so that a file name cannot forge a log line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def plural(count: int, noun: str, many: str = "") -> str:
    """``1 image``, ``2,000 images``: a number and what it is of; of several ``many``, or with an s
    where that is not given."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def closest(word: str, words: Iterable[str]) -> str:
    """A hint ``did you mean 'x'?`` with the nearest of ``words``, or the first few of them."""
    allowed = [str(w) for w in words]
    lowered = {w.lower(): w for w in allowed}
    near = difflib.get_close_matches(word.lower(), lowered, n=5, cutoff=0.5)
    if begun := [w for w in near if word.lower().startswith(w)]:
        return f"did you mean '{lowered[max(begun, key=len)]}'?"
    if near:
        # Of equally close ones the first of ``words``, which puts the usual before the rare.
        ratios = {
            w: difflib.SequenceMatcher(None, w, word.lower()).ratio() for w in lowered if w in near
        }
        return f"did you mean '{lowered[max(ratios, key=lambda w: ratios[w])]}'?"
    return f"allowed: {first_few(allowed, 12)}"


def first_few(names: Sequence[object], most: int) -> str:
    """``a, b, c, ...``: the first ``most`` of ``names``, and dots where there are more."""
    return ", ".join(map(str, names[:most])) + ", ..." * (len(names) > most)


def sentence(what: str) -> str:
    """``what`` with a full stop, unless it ends in three dots."""
    return what if what.endswith("...") else f"{what}."


class XferError(Exception):
    """A mistake reported in one line: where it is, what is wrong, what to type.

    ``where`` is a file or config key; ``number`` the case, stable across releases and listed in
    ``docs/error_codes.toml``, from which docs/errors.md is made. Those of a class are from its
    ``base`` up to ``last``, by default up to the next class's base; ``passed`` what was done all
    the same, such as the exported files beside one that was refused.
    """

    exit = 1
    base = 100
    last: int | None = None
    passed: Sequence[Any] = ()

    def __init__(self, where: object, what: str, fix: str, number: int = 0) -> None:
        super().__init__(where, what, fix, number)
        self.where = printable(where)
        said = printable(what)
        self.what = said if said.endswith("...") else said.rstrip(".")
        self.fix = printable(fix)
        self.number = self.base + number

    def __str__(self) -> str:
        return (
            f"xfer: error E{self.number:03d}: {self.where}: {sentence(self.what)} Fix: {self.fix}"
        )


class ConfigError(XferError):
    """A key, value, option or combination that cannot work."""

    exit, base = 2, 200


class CombinationError(ConfigError):
    """Options that are each sound and do not go together."""

    exit, base = 2, 0


class LabelsError(ConfigError):
    """What does not go with several labels an image, or with one."""

    exit, base, last = 2, 59, 69


class CommandError(ConfigError):
    """A verb of the command line with words that it cannot take."""

    exit, base = 2, 50


class LaunchError(ConfigError):
    """Ranks of a run that a launcher has started in another number or version than is asked for."""

    exit, base = 2, 96


class ChoiceError(ConfigError):
    """A choice among models that cannot be made as asked for."""

    exit, base, last = 2, 134, 139


class HeadError(ConfigError):
    """What a head that holds training features does not do, or decides by itself."""

    exit, base, last = 2, 660, 669


class ColumnError(ConfigError):
    """Two columns of a table that would have one name."""

    exit, base, last = 2, 187, 190


class RepositoryError(ConfigError):
    """A model of a hub that is of another backbone than is asked for."""

    exit, base, last = 2, 121, 122


class DataError(XferError):
    """Folders, classes or files that are not what they must be."""

    exit, base = 3, 300


class LabelledDataError(DataError):
    """Images with several labels, or in groups, that are not what they must be."""

    exit, base, last = 3, 103, 110


class ClassNameError(DataError):
    """A class whose name is no text, and could be in no file about it."""

    exit, base, last = 3, 707, 707


class NamesError(DataError):
    """Names of files that this Python does not read as what they are."""

    exit, base, last = 3, 710, 710


class WeightsError(XferError):
    """Source weights that do not fit the network or cannot be had."""

    exit, base = 4, 400


class ResumeError(XferError):
    """A run that cannot be continued as asked."""

    exit, base = 5, 500


class RanksError(ResumeError):
    """A run that cannot go on with these devices, in place of those that it began with."""

    exit, base, last = 5, 676, 685


class SafetyError(XferError):
    """Refused: it could run code that is not the user's, or is worse than what is there already."""

    exit, base = 6, 600


class DivergedError(XferError):
    """NaN or Inf where a number must be."""

    exit, base = 7, 700


class OutOfMemory(XferError):
    """The device or the machine has no memory left."""

    exit, base = 8, 800


class LimitReached(OutOfMemory):
    """The shell, the container or the queue lets a process have no more threads or addresses."""

    exit, base, last = 8, 709, 709


def limit_reached(error: BaseException) -> LimitReached | None:
    """``error`` where it says that threads, or addresses for a library, were refused."""
    said = str(error)
    thread = isinstance(error, RuntimeError) and "can't start new thread" in said
    if thread or isinstance(error, BlockingIOError):  # the second is fork's
        what, fix = "no more may be started", "raise ulimit -u, or the container's limit of pids"
        return LimitReached("processes", what, f"{fix}, or type data.workers=0", 0)
    if isinstance(error, ImportError) and "failed to map segment" in said:
        what, fix = f"a library has no room ({said})", "raise ulimit -v, or what the job asks for"
        return LimitReached("memory", what, fix, 0)
    return None


class OutputError(XferError):
    """An output folder or file that cannot be written."""

    exit, base = 9, 900


class HomeError(OutputError):
    """There is no home folder to keep things in."""

    exit, base, last = 9, 708, 708


class ExportError(XferError):
    """An exported file that cannot be written or answers otherwise than the network."""

    exit, base = 10, 950


class PushError(ExportError):
    """A hub that would not take the exported folder, which is known before anything is trained."""

    exit, base, last = 10, 117, 119


class SweepError(XferError):
    """Several runs that cannot be had as asked for."""

    exit, base = 2, 150


class FoldError(SweepError):
    """Folds of a cross-validation that cannot be jobs as asked for."""

    exit, base = 2, 140


class Problems(XferError):
    """Several mistakes at once; exits with the code of the first."""

    def __init__(self, errors: Sequence[XferError]) -> None:
        first = errors[0]
        super().__init__(first.where, first.what, first.fix, 0)
        self.errors = tuple(errors)
        self.exit, self.number = first.exit, first.number

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)


class JobFailed(Exception):
    """A job of a sweep failed and has said why: its exit code and its message."""


def raise_all(errors: Sequence[XferError]) -> None:
    """Raise nothing, the one error, or all of them together, those inside Problems among them."""
    each = [one for error in errors for one in getattr(error, "errors", [error])]
    if len(each) == 1:
        raise each[0]
    if each:
        raise Problems(each)


class Attempts:
    """Runs independent checks and keeps their errors, so that all are reported together."""

    def __init__(self) -> None:
        self.errors: list[XferError] = []

    def __call__(self, check: Callable[..., T], *args: Any) -> T | None:
        """What ``check`` returns, or ``None`` and an error more."""
        try:
            return check(*args)
        except XferError as error:
            self.errors.append(error)
            return None
