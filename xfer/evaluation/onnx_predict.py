"""Prediction with an exported file alone: onnxruntime, Pillow and numpy, no torch."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xfer.config.verbs import override, quoted
from xfer.core.card_schema import Classes, TaskFacts, read_recipe, recipe_of, text_of
from xfer.core.certificate import CertificateFacts
from xfer.core.errors import (
    Attempts,
    CombinationError,
    ConfigError,
    DataError,
    WeightsError,
    XferError,
    first_few,
    printable,
    raise_all,
)
from xfer.core.files import file_sha256, parsed
from xfer.core.live_line import working
from xfer.core.log import log
from xfer.core.read_back import checked
from xfer.core.run_folder import best_checkpoint
from xfer.core.types import Array, InputSpec, Plain, Predictions, Samples, Tta, class_name
from xfer.data.preprocess import check_size, named
from xfer.data.tta import VIEWS, check_tta, prepare_views, tta_facts, tta_words
from xfer.evaluation.certificate_answers import warn_of_views
from xfer.evaluation.conformal import in_words as promise
from xfer.evaluation.conformal import one_view_words
from xfer.evaluation.multilabel_predictions import mean_of_labels
from xfer.evaluation.onnx_session import (
    P_UNLIKE,
    PREDICTION_SET,
    open_session,
    promises,
    several,
)
from xfer.evaluation.predict import find, mean_over_views, predict_split, summary, warn_of_broken

if TYPE_CHECKING:
    from xfer.config.specs import ModelFile, Specs

_BATCH = 32
_THREADS = 2  # decoding images while the network works on those before


@dataclass(frozen=True)
class OnnxModel:
    """An opened file. ``pictures`` says that it takes those as they are, and then its ``recipe``
    may be unknown; ``batch`` is the only batch size that it runs, or ``None``. ``run`` gives its
    answers first, then the outputs of a certificate that ``promises`` names; ``certificate`` are
    the facts that it says of that."""

    path: Path
    run: Callable[[Array], list[Array]]
    classes: tuple[str, ...]
    recipe: InputSpec | None
    batch: int | None
    pictures: bool = False
    promises: tuple[str, ...] = ()
    certificate: Plain | None = None
    task: Plain = field(default_factory=dict)


def open_model(asked: ModelFile) -> OnnxModel:
    """Open the file, and learn its classes and recipe from it or from ``asked``.

    Raises WeightsError for what is no image classifier in ONNX, ConfigError for labels or a
    recipe that are nowhere, or at fault.
    """
    path = Path(asked.path).expanduser()
    session = open_session(path)
    batch, pictures = _input(path, session)
    said = session.get_modelmeta().custom_metadata_map
    attempt, known = Attempts(), asked.recipe is not None or "preprocess" in said
    classes = attempt(_classes, path, asked.labels, said) or ()
    recipe = attempt(_recipe, path, asked.recipe, said) if known or not pictures else None
    raise_all(attempt.errors)
    warn_if_stale(path)
    outputs = promises(session)
    run = several(session, session.get_outputs()[0].name, *outputs)
    said_of_it = _certificate(path, said) if outputs else None
    size = 1 if pictures else batch
    task = _task(path, said, len(classes))
    return OnnxModel(path, run, classes, recipe, size, pictures, outputs, said_of_it, task)


def _task(path: Path, said: dict[str, str], classes: int) -> Plain:
    """What a file says of several labels an image: nothing where it has one."""
    try:
        facts: Plain = (parsed(said.get("card", "{}")) or {}).get("task") or {}
        if facts:
            checked(TaskFacts, facts)
        if facts and len(facts["thresholds"]) != classes:
            raise ValueError("task does not have one threshold a class")
    except (ValueError, AttributeError) as error:
        what = f"what it says of its labels is invalid ({error})"
        raise WeightsError(path, what, "export it again", 98) from error
    return facts


def _certificate(path: Path, said: dict[str, str]) -> Plain:
    """What a file says of its certificate."""
    try:
        facts: Plain = parsed(said.get("card", "{}")).get("certificate")
        checked(CertificateFacts, facts)
    except (ValueError, AttributeError) as error:
        what = f"what it says of its certificate is invalid ({error})"
        raise WeightsError(path, what, "export it again", 98) from error
    return {key: facts[key] for key in facts if key not in ("sha256", "layer", "layers")}


def _input(path: Path, session: Any) -> tuple[int | None, bool]:
    """The fixed batch size, if any, and whether pictures go in as they are."""
    puts = session.get_inputs()
    kinds = {"tensor(float)": False, "tensor(uint8)": True}
    shape = puts[0].shape if puts else []
    if len(puts) != 1 or len(shape) != 4 or shape[1] != 3 or puts[0].type not in kinds:
        given = ", ".join(f"{put.name} {put.type} {put.shape}" for put in puts)
        fix = "give a file with one input (n, 3, height, width), float32 or uint8"
        raise WeightsError(path, f"does not take images: its input is {given}", fix, 44)
    return (shape[0] if isinstance(shape[0], int) else None), kinds[puts[0].type]


def _classes(
    path: Path, labels: str | tuple[str, ...] | None, said: dict[str, str]
) -> tuple[str, ...]:
    if labels is None and "classes" not in said:
        what = f"{path} does not hold its class names"
        fix = "type 'predict.labels=[A,B,...]' or predict.labels=labels.json"
        raise ConfigError("predict.labels", what, fix, 97)
    if isinstance(labels, tuple):
        return tuple(map(class_name, labels))
    if labels is None:
        try:
            return tuple(checked(Classes, parsed(said["classes"])))
        except ValueError as error:
            fix = "export it again, or type predict.labels=labels.json"
            raise WeightsError(path, f"its class names are invalid ({error})", fix, 98) from error
    text = text_of("predict.labels", labels)
    try:
        is_json = text.lstrip()[:1] in ("[", "{", '"')
        # Else a class a line.
        names = parsed(text) if is_json else [name for name in text.split("\n") if name.strip()]
        return tuple(class_name(name.strip()) for name in checked(Classes, names))
    except ValueError as error:
        what, fix = f"'{labels}' is not a list of class names ({error})", "give one a line"
        raise ConfigError("predict.labels", what, fix, 97) from error


def _recipe(path: Path, file: str | None, said: dict[str, str]) -> InputSpec:
    if file is not None:
        return read_recipe("predict.recipe", file)
    fix = "type predict.recipe=preprocess.json"
    if "preprocess" not in said:
        what = f"{path} does not hold its input recipe"
        raise ConfigError("predict.recipe", what, fix, 98)
    try:
        return recipe_of(said["preprocess"])
    except ValueError as error:
        what = f"its input recipe is invalid ({error})"
        raise WeightsError(path, what, f"export it again, or {fix}", 98) from error


def warn_if_stale(path: Path) -> None:
    """Warn where a run was resumed after its export: its checkpoint is newer than the file."""
    run = path.resolve().parent.parent
    checkpoint = best_checkpoint(run)
    if path.resolve().parent.name != "export" or not checkpoint.is_file():
        return
    if checkpoint.stat().st_mtime > path.stat().st_mtime:
        fix = f"'stages=[export]' {quoted(override('checkpoint.path', str(run)))}"
        log.warning(f"{path} is older than its checkpoint; to export again: {fix}")


def facts(specs: Specs, model: OnnxModel) -> Plain:
    """What is known before the work, for ``plan.json``. Raises CombinationError for views that the
    file cannot be given."""
    if specs.tta != "none" and (model.pictures or model.recipe is None):
        what = f"{model.path} takes whole pictures and crops them itself, so that it has no views"
        fix = "type predict.model=model.onnx, which takes what is prepared, or checkpoint.path=RUN"
        raise CombinationError("tta", what, fix, 22)
    if model.recipe is not None:
        check_tta(model.recipe, specs.tta)
    return {
        "experiment": specs.experiment,
        "stages": list(specs.stages),
        "model": str(model.path),
        "sha256": file_sha256(model.path),
        "classes": list(model.classes),
        "input": "pictures of any size"
        if model.recipe is None or model.pictures
        else model.recipe.to_plain(),
        "tta": tta_facts(specs.tta),
        "certificate": model.certificate,
        "config": specs.config,
    }


_FEW = 6
"""Classes that are named."""


def in_words(specs: Specs, known: Plain, several: bool) -> str:
    """The lines that the terminal has of :func:`facts`, as the plan of a run has them, of a file
    of one label an image or ``several``."""
    classes, recipe = known["classes"], known["input"]
    pixels = recipe if isinstance(recipe, str) else "{} x {} pixels".format(*recipe["size"])
    lines = [
        ("run", f"{known['experiment']}: {', '.join(known['stages'])}"),
        ("classes", f"{len(classes)}: {first_few(classes, _FEW)}"),
        ("network", f"{known['model']}, sha256 {known['sha256'][:12]}; {pixels}"),
    ]
    if views := tta_words(specs.tta):
        lines.append(("answers", views))
    if known["certificate"]:
        of = known["certificate"]
        said = f"prediction sets with {promise(of['coverage'], of['by_class'], several)}"
        lines.append(("certificate", said if specs.tta == "none" else one_view_words(specs.tta)))
    return "\n".join(f"{name:<11}  {printable(text)}" for name, text in lines)


def predict(
    specs: Specs, model: OnnxModel, write: Callable[..., Path], began: float
) -> tuple[Path, int, Plain]:
    """Predict every image, and ``write`` a table of them; where that is, the number of
    predictions, and the times of a run that ``began`` then."""
    samples = find(specs.predict_input, model.recipe.range if model.recipe else None)
    start = time.perf_counter()
    answered = answers(model, samples, specs.tta)
    seconds = time.perf_counter() - start
    path = write(answered, suffix=specs.predict_format)
    for line in summary(answered, path):
        log.info(line)
    timing = {
        "startup_s": start - began,
        "predict_s": seconds,
        "total_s": time.perf_counter() - began,
    }
    return path, len(answered.names), timing


def answers(model: OnnxModel, samples: Samples, tta: Tta = "none") -> Predictions:
    """Logits for every image that can be decoded, in order, and the file's task; the others are
    counted in a warning. With views they are the logarithms of mean probabilities.

    Raises DataError when none can be, WeightsError for answers that are no logits of the classes.
    """
    broken: list[XferError] = []
    promised: list[list[Array]] = []
    with working("predicting", len(samples)) as advance:
        batches = _batches(model, samples, tta, advance)
        run = partial(_run if tta == "none" else _run_views, model, promised=promised)
        answered = predict_split(run, batches, samples, model.classes, broken)
    warn_of_broken(broken, len(samples))
    logits = answered.logits
    if model.task and model.pictures:  # probabilities, a sigmoid each
        shares = np.clip(logits.astype(np.float64), 1e-12, 1 - 1e-12)
        logits = np.log(shares / (1 - shares))
    elif tta == "none" and not model.task:
        logits = _as_logits(logits)
    logits = logits.astype(np.float32)
    answered = replace(answered, logits=logits, task=model.task, views=VIEWS[tta])
    if model.promises and tta != "none":
        warn_of_views(tta)
    return answered if tta != "none" else _certified(answered, model, promised)


def _certified(answered: Predictions, model: OnnxModel, promised: list[list[Array]]) -> Predictions:
    """``answered`` with the sets and p-values of the file, batch by batch in ``promised``."""
    columns = [np.concatenate(parts) for parts in zip(*promised, strict=True)]
    named = dict(zip(model.promises, columns, strict=True))
    sets, p_unlike = named.get(PREDICTION_SET), named.get(P_UNLIKE)
    n, classes = answered.logits.shape
    if sets is not None and (sets.shape != (n, classes) or sets.dtype != np.bool_):
        what = f"its prediction sets are {sets.dtype} of shape {sets.shape}"
        raise WeightsError(model.path, what, "export it again", 46)
    if p_unlike is not None and (p_unlike.shape != (n,) or not np.isfinite(p_unlike).all()):
        what = f"its p-values are no {n} finite numbers"
        raise WeightsError(model.path, what, "export it again", 46)
    return replace(answered, sets=sets, p_unlike=p_unlike)


def logits_of(model: OnnxModel, images: Array) -> Array:
    """Logits float32 (n, classes) of prepared ``images`` float32 (n, 3, h, w). Raises WeightsError
    for answers that are none."""
    answers = _run(model, images, [])
    return np.asarray(answers if model.task else _as_logits(answers), np.float32)


def _as_logits(answers: Array) -> Array:
    """Answers (n, classes) that are all positive and sum to 1 are probabilities already."""
    if (answers >= 0).all() and np.allclose(answers.sum(axis=1), 1, atol=1e-4):
        return np.asarray(np.log(np.maximum(answers, 1e-30)))
    return answers


def _batches(
    model: OnnxModel, samples: Samples, tta: Tta, advance: Callable[[int], object]
) -> Iterator[tuple[Array | None, list[XferError | None]]]:
    """Batches as :func:`predict_split` takes them; the next ones load while one is worked on."""
    size = max(1, (model.batch or _BATCH) // VIEWS[tta])
    with ThreadPoolExecutor(_THREADS) as pool:
        loading: deque[list[Future[Array | DataError]]] = deque()
        starts = iter(range(0, len(samples), size))
        while True:
            for start in islice(starts, 2 + _BATCH // size - len(loading)):
                chosen = range(start, min(start + size, len(samples)))
                loading.append([pool.submit(_load, model, samples, i, tta) for i in chosen])
            if not loading:
                return
            loaded = [future.result() for future in loading.popleft()]
            images = [item for item in loaded if isinstance(item, np.ndarray)]
            errors = [item if isinstance(item, DataError) else None for item in loaded]
            yield (np.stack(images) if images else None), [*errors]
            advance(len(loaded))


def _load(model: OnnxModel, samples: Samples, index: int, tta: Tta) -> Array | DataError:
    try:
        picture = samples.images[index]
        if model.recipe is not None:
            check_size(picture.size, model.recipe)
    except DataError as error:
        return named(error, samples.names[index])
    if model.recipe is not None and not model.pictures:
        views = prepare_views(picture, model.recipe, tta)
        return views[0] if tta == "none" else views
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))


def _run_views(model: OnnxModel, images: Array, promised: list[list[Array]]) -> Array:
    """Answers (n, classes) to images (n, views, 3, h, w): the mean of what the file answers."""
    n, count = images.shape[:2]
    each = _run(model, images.reshape(n * count, *images.shape[2:]), promised)
    if model.task:
        return mean_of_labels(each.reshape(n, count, -1))
    return mean_over_views(_as_logits(each).reshape(n, count, -1))


def _run(model: OnnxModel, images: Array, promised: list[list[Array]]) -> Array:
    """Answers (n, classes); what else the file says is put into ``promised``."""
    try:
        answers, *rest = model.run(images)
        promised.append(rest)
    except Exception as error:  # onnxruntime's errors share no class of their own
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        what = f"cannot run images of shape {images.shape[1:]} ({line})"
        raise WeightsError(model.path, what, "check predict.recipe", 45) from error
    if answers.shape != (len(images), len(model.classes)):
        what = f"answers {answers.shape} for {len(images)} images and {len(model.classes)} classes"
        raise WeightsError(model.path, what, "check predict.labels", 46)
    if not np.isfinite(answers).all():
        raise WeightsError(model.path, "answers NaN or Inf", "export it again", 47)
    return answers
