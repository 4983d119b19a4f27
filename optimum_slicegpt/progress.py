"""Shows how far long work is: by a bar on terminals, and in files, pipes and notebooks by a few lines."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from transformers.utils import logging


logger = logging.get_logger(__name__)

SECONDS_BETWEEN_LINES = 30
SECONDS_ON_TERMINALS = 2


def say(line: str) -> None:
    """Prints a line, unless warnings are hidden."""
    if logger.isEnabledFor(logging.WARNING):
        sys.stderr.write(f"{line}\n")


def announce(phase: str) -> None:
    """Prints the name of a phase, where there is no terminal with a bar for it."""
    if not sys.stderr.isatty():
        say(phase)


def track(items: Iterable, phase: str, unit: str = "step", **options: Any) -> Iterator:
    """
    Yields items, and shows how many are done.

    Args:
        items (`Iterable`): one for each unit of work.
        phase (`str`), unit (`str`): see [`Progress`].
        **options: the other arguments of [`Progress`].
    """
    items = list(items)
    with Progress(options.get("done", 0) + len(items), phase, unit, **options) as progress:
        for item in items:
            yield item
            progress.update()


@contextmanager
def without_bars() -> Iterator[None]:
    """Hides bars of transformers, over work that is none of a user's. Bars of downloads stay."""
    before = logging.set_tqdm_hook(lambda factory, args, kwargs: factory(*args, **kwargs | {"disable": True}))
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)


@contextmanager
def without_warnings() -> Iterator[None]:
    """Keeps what transformers warns of while it loads off the console, where errors of our own say it in a line."""
    logger = logging.get_logger("transformers.modeling_utils")
    logger.addFilter(_is_error)  # By the level of its logger, transformers decides on further warnings.
    try:
        yield
    finally:
        logger.removeFilter(_is_error)


def _is_error(record):
    return record.levelno >= logging.ERROR


class Progress:
    """
    The progress of one phase. Where there is no terminal, it prints a line when it begins, and one at most every
    `SECONDS_BETWEEN_LINES`.

    Args:
        total (`int`): units of work.
        phase (`str`): its name.
        unit (`str`): what a unit is called, in the singular.
        done (`int`): units that an earlier run has done.
        seconds_left (callable, *optional*): from the share that is done to the seconds that are left. By default units
            take as long as those that are done.
        shown (`bool`): whether to show anything: one of several processes does.

    Attributes:
        note (`str`): what is shown beside the numbers.
    """

    def __init__(
        self,
        total: int,
        phase: str,
        unit: str = "step",
        *,
        done: int = 0,
        seconds_left: Callable[[float], float] | None = None,
        shown: bool = True,
    ):
        self.note, self._total, self._done, self._phase, self._unit = "", total, done, phase, unit
        self._seconds_left = seconds_left or pace_of(done / max(1, total))
        on_terminal = sys.stderr.isatty()
        self._shown = shown and logger.isEnabledFor(logging.WARNING)
        self._interval = SECONDS_ON_TERMINALS if on_terminal else SECONDS_BETWEEN_LINES
        self._lines, self._last = self._shown and not on_terminal, time.monotonic()
        self._bar = logging.tqdm(
            total=total,
            initial=done,
            desc=phase,
            disable=not self._shown or self._lines,
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
        )
        if self._lines:
            announce(f"{phase}: {self._count(total)}" + f", resumed after {done:,}" * bool(done))

    def update(self, count: int = 1) -> None:
        """Adds units that are done."""
        self._done += count
        self._bar.update(count)
        now = time.monotonic()
        if self._shown and now - self._last >= self._interval and self._done < self._total:
            self._last = now
            left = f"about {format_duration(self._seconds_left(self._done / self._total))} left"
            details = ", ".join(filter(None, [left, self.note]))
            self._bar.set_postfix_str(details)
            if self._lines:
                announce(f"{self._phase}: {self._done:,} of {self._count(self._total)}, {details}")

    def _count(self, number: int) -> str:
        return f"{number:,} {self._unit}{'s' * (number != 1)}"

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        self._bar.close()


class Forecast:
    """
    The time that a run of several phases still takes. The present phase continues at its pace. Those to come take as
    long as their estimates say, at the pace at which estimates have come true so far.

    Args:
        estimate (callable): returns the estimated seconds of every phase, in order; called when they are needed.
    """

    def __init__(self, estimate: Callable[[], dict[str, float]]):
        self._estimate, self._begun, self._start = estimate, {}, time.monotonic()

    @cached_property
    def _seconds(self) -> dict[str, float]:
        return self._estimate()

    def begin(self, phase: str, share: float = 0.0) -> Callable[[float], float]:
        """
        Begins a phase of which an earlier run has done a share.

        Returns:
            callable: from the share that is done to the seconds that the run still takes.
        """
        self._begun[phase], in_phase = share, pace_of(share)

        def seconds_left(done: float) -> float:
            names = list(self._seconds)
            here = names.index(phase)
            expected = (done - share) * self._seconds[phase]
            expected += sum((1 - self._begun.get(each, 1)) * self._seconds[each] for each in names[:here])
            pace = (time.monotonic() - self._start) / expected if expected else 1.0
            return in_phase(done) + pace * sum(self._seconds[each] for each in names[here + 1 :])

        return seconds_left


def pace_of(share: float) -> Callable[[float], float]:
    """Returns a function from the share of a phase that is done to the seconds left, at the pace since `share`."""
    start = time.monotonic()
    return lambda done: (time.monotonic() - start) * (1 - done) / (done - share)


def format_duration(seconds: float) -> str:
    """
    Formats a duration as roughly as it is known.

    Examples:
        >>> format_duration(42.1), format_duration(170), format_duration(4000)
        ('42 s', '3 min', '1 h 7 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
