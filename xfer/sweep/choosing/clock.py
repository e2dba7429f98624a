"""The minutes of a choice: how many are left, and their hard end."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from xfer.core.errors import CombinationError

_MARGIN = 0.02
"""Of the minutes: what is held back for the last files and the end of the process."""


class TimeIsOver(CombinationError):
    """The minutes were not enough for what was being done."""

    ends_choosing = True


class _Rang(BaseException):
    """Raised in the middle of anything. No Exception: what is at work may take any of those for
    a failure of its part and carry on."""


class TimeLimit:
    """``minutes`` from ``began``, a reading of :func:`time.perf_counter`."""

    def __init__(self, minutes: float, began: float) -> None:
        self.minutes, self._end = minutes, began + 60 * minutes * (1 - _MARGIN)
        self.began, self._cpu = began, time.process_time()

    @property
    def left(self) -> float:
        """Seconds until the end; below 0 after it."""
        return self._end - time.perf_counter()

    @property
    def spent(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self.began

    @property
    def slowness(self) -> float:
        """How many seconds pass for one of work, since the clock was made: more than 1 beside
        other processes that want the same cores."""
        return max(1.0, self.spent / max(0.1, time.process_time() - self._cpu))

    def over(self, reserve: float = 0.0) -> TimeIsOver:
        """The error for what is not done when the time is over, but for ``reserve`` seconds."""
        what = f"the {self.minutes:g} minutes ended before the model was finished"
        if reserve:
            held = f"but for {reserve:.0f} s held back for the model"
            what = f"the {self.minutes:g} minutes, {held}, ended before one was chosen"
        more = max(2 * self.minutes, 0.5)
        return TimeIsOver("choose.minutes", what, f"type choose.minutes={more:g}", 44)

    @contextmanager
    def limit(self, reserve: float = 0.0) -> Iterator[None]:
        """Within, TimeIsOver is raised as soon as no more than ``reserve`` seconds are left, in
        the middle of whatever is at work. Outside the main thread Python lets no signal do that."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        if self.left <= reserve:
            raise self.over(reserve)

        def ring(number: int, frame: FrameType | None) -> None:
            raise _Rang

        def unheard(event: sys.UnraisableHookArgs) -> None:
            # Python drops what is raised in a finalizer, or in what is called after a fork.
            if event.exc_type is _Rang:
                signal.setitimer(signal.ITIMER_REAL, 1e-3)
            else:
                hook(event)

        hook, sys.unraisablehook = sys.unraisablehook, unheard
        before = signal.signal(signal.SIGALRM, ring)
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, max(1e-3, self.left - reserve))
                yield
            finally:
                # It may ring until then, which is within the outer block.
                signal.setitimer(signal.ITIMER_REAL, 0)
        except _Rang as rang:
            raise self.over(reserve) from rang
        finally:
            signal.signal(signal.SIGALRM, before)
            sys.unraisablehook = hook
