"""Whether a network can be cut: one training step and one evaluation, whole and from the cut on."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from xfer.core.errors import printable
from xfer.training.features.cut import Cut, Tail, before, extract, module_at
from xfer.training.features.shape_tensor import Unsound, tensors

_NEAR = 0.05  # of the largest feature: far above rounding, far below another batch's statistics


@dataclass(frozen=True)
class _Moment:
    """A module is entered, with inputs of which those in ``train`` depend on what trains, or
    left; ``random_states`` is the hash at that moment."""

    path: str
    random_states: int
    train: tuple[int, ...] | None


class Whole:
    """What one training step and one evaluation of the whole network leave, on a copy of it.

    ``net`` is in the mode in which it trains and is left as it is.
    ``look`` is called before each call of a module, with that copy and the module's path and input
    tensors.
    """

    def __init__(
        self,
        net: nn.Module,
        images: Tensor,
        look: Callable[[nn.Module, str, Sequence[Tensor]], None] = lambda *_: None,
    ) -> None:
        self.net, self.images = _copied(net), images
        # Every trainable tensor gets numbers, so that a head of zeros hides nothing.
        generator = torch.Generator().manual_seed(0)
        for parameter in self.net.parameters():
            if parameter.requires_grad and bool((parameter == parameter.flatten()[0]).all()):
                drawn = torch.randn(parameter.shape, generator=generator) * 0.05
                parameter.data.copy_(drawn)
        self._moments: list[_Moment] = []
        copied = _copied(self.net)

        def enter(path: str, inputs: Sequence[Tensor]) -> None:
            train = tuple(i for i, tensor in enumerate(inputs) if tensor.requires_grad)
            self._moments.append(_Moment(path, random_states(images.device), train))
            look(copied, path, inputs)

        def leave(path: str, *_: Any) -> None:
            self._moments.append(_Moment(path, random_states(images.device), None))

        with ExitStack() as hooks:
            for path, module in copied.named_modules():
                before(module, partial(enter, path), hooks)
                hooks.enter_context(module.register_forward_hook(partial(leave, path)))
            self._of_step = _step(copied, images)
        self._left = copied.eval()

    def drawers(self) -> set[str]:
        """Paths of the modules that draw random numbers themselves, not by one inside them."""
        return {
            entered.path
            for entered, left in pairwise(self._moments)
            if entered.path == left.path
            and left.train is None
            and entered.random_states != left.random_states
        }

    @cached_property
    def _of_whole(self) -> dict[str, Tensor]:
        return self._of_step | _answers(self._left, self.images)

    def refutes(self, cut: Cut, answers: bool = False) -> str | None:
        """Why ``cut`` is none of this network, in one line; ``None`` when the images (n >= 2)
        prove it: where only ``answers`` are asked of it, a ``direct`` one has proved the rest.

        Compared bit for bit: the answers and gradients of one training step, all tensors after it,
        and the answers in evaluation.
        """
        try:
            self._guard(cut)
            features = extract(self.net, cut, self.images)
            one, first = extract(self.net, cut, self.images[:1]).float(), features[:1].float()
            near = one.shape == first.shape and (one - first).abs().max() <= (
                _NEAR * first.abs().max()
            )  # false where one of them is NaN
            if not near:
                return f"what enters '{cut.modules[0]}' depends on the other images of the batch"
            if answers and cut.direct:
                return None
            tail = _copied(self.net)
            Tail(tail, cut)
            of_tail = _step(tail, features) | _answers(tail.eval(), features)
        except Unsound as reason:
            return str(reason)
        except Exception as error:
            return f"after '{cut.modules[0]}': {printable(error)[:200]}"
        names = self._of_whole.keys() | of_tail.keys()
        wrong = [k for k in names if not _same(self._of_whole.get(k), of_tail.get(k))]
        return f"{min(wrong)} differs from the whole network's" if wrong else None

    def direct(self, cut: Cut) -> tuple[str, ...]:
        """The paths of the modules that the network hands the one input at ``cut`` through, each
        called once, to answer in evaluation with what the last gives, flattened or as it is; none
        where it does anything else."""
        if len(cut.parts) != 1:
            return ()
        net, calls = _copied(self.net).eval(), list[tuple[Any, int]]()
        paths = _in_a_row(net, cut.modules[0])

        def note(*values: Any) -> None:
            """One tensor, as it is at the moment."""
            (value,) = values if len(values) == 1 else (None,)
            calls.append((value, value._version if isinstance(value, Tensor) else -1))

        for path in paths:
            module = module_at(net, path)
            module.register_forward_pre_hook(
                lambda _, args, kwargs: note(*args, *kwargs), with_kwargs=True
            )
            module.register_forward_hook(lambda _, __, output: note(output))
        with torch.no_grad():
            answer = net(self.images)
        if len(calls) != 2 * len(paths) or not all(isinstance(t, Tensor) for t, _ in calls):
            return ()
        (last, version), passed = calls[-1], pairwise(calls[1:-1])
        # The very numbers in memory, which nothing has written since: others could be equal.
        handed = all(a is b and v == w for (a, v), (b, w) in [*passed][::2])
        same = isinstance(answer, Tensor) and answer.data_ptr() == last.data_ptr()
        same = same and last._version == version and _same(answer, last.flatten(1))
        return paths if handed and same else ()

    def _guard(self, cut: Cut) -> None:
        """Raise Unsound when a random number is drawn before the last of the cut's modules is
        called, but by one of them, or when what enters them depends on what trains."""
        expected = self._moments[0].random_states
        for moment in self._moments:
            path = moment.path
            if path not in cut.modules:
                continue
            if moment.train is None:
                expected = moment.random_states
            elif moment.random_states != expected:
                raise Unsound(f"random numbers are drawn before '{path}'")
            elif any(part.index in moment.train for part in cut.parts if part.module == path):
                raise Unsound(f"what enters '{path}' depends on what trains")


def random_states(device: torch.device) -> int:
    """One hash over the states of all generators that a network could draw from."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return hash((random.getstate(), *(state.numpy().tobytes() for state in states)))


def _in_a_row(net: nn.Module, path: str) -> tuple[str, ...]:
    """The module at ``path`` and those that a plain sequence calls after it."""
    outer, _, name = path.rpartition(".")
    container = net.get_submodule(outer)
    names = [*container._modules] if outer and type(container) is nn.Sequential else [name]
    return tuple(f"{outer}.{each}" if outer else each for each in names[names.index(name) :])


def _copied(net: nn.Module) -> nn.Module:
    """A copy that shares what is frozen."""
    return copy.deepcopy(net, {id(p): p for p in net.parameters() if not p.requires_grad})


def _step(net: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    """What one training step leaves, by name."""
    with _seeded(batch.device):
        answers = tensors(net(batch))
        loss = sum((a.float().square().mean() for a in answers), torch.zeros(()))
        loss.backward()  # type: ignore[no-untyped-call]
        random_state = torch.get_rng_state()
    gradients = ((name, p.grad) for name, p in net.named_parameters())
    return {
        "the random state": random_state,
        **{f"answer {i} in training": answer for i, answer in enumerate(answers)},
        **{f"the gradient of '{name}'": grad for name, grad in gradients if grad is not None},
        **{f"'{name}'": buffer for name, buffer in net.named_buffers()},
    }


@torch.no_grad()
def _answers(net: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    with _seeded(batch.device):
        answers = tensors(net(batch))
    return {f"answer {i} in evaluation": answer for i, answer in enumerate(answers)}


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    """Bit for bit."""
    if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
        return False
    first, second = (t.detach().flatten().contiguous().view(torch.uint8) for t in (a, b))
    return torch.equal(first, second)


@contextmanager
def _seeded(device: torch.device) -> Iterator[None]:
    """The same random numbers every time, and the caller's again afterwards."""
    state = random.getstate()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        random.seed(0)
        yield
    random.setstate(state)
