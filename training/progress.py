"""What a person sees while a run goes on: a bar on a terminal, one line per iteration elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from agents.trajectory import Group

_SHOWN = (
    ("reward", "reward/mean", "{:.3f}"),
    ("accuracy", "episode/accuracy", "{:.0%}"),
    ("search", "episode/search_ratio", "{:.0%}"),
    ("tokens/s", "speed/sampled_tokens_per_s", "{:.0f}"),
    ("play", "speed/rollout_share", "{:.0%}"),
    ("learn", "speed/learn_share", "{:.0%}"),
)
_DOING = {"rollout": "playing", "learn": "learning"}


class RunProgress:
    """A watcher that shows where a run stands."""

    def __init__(self, console: Console, *, total: int, done: int) -> None:
        """Args: total: iterations of the run; done: those completed before."""
        self._console = console
        self._total = total
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description:<8}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _Numbers(),
            TimeElapsedColumn(),
            TextColumn("[dim]left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("playing", total=total, completed=done, numbers="")

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Within it, the bar is on the screen."""
        with self._bar:
            yield

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Say what is going on."""
        self._bar.update(self._task, description=_DOING[name])
        yield

    def iteration(self, number: int, values: Mapping[str, float], groups: Sequence[Group]) -> None:
        """Move the bar, or print a line where there is no terminal."""
        numbers = "  ".join(f"{label} {form.format(values[name])}" for label, name, form in _SHOWN)
        self._bar.update(self._task, completed=number, numbers=numbers)
        if not self._console.is_terminal:
            width = len(str(self._total))
            seconds = values["speed/iteration_s"]
            left = _clock_text((self._total - number) * seconds)
            self._console.print(
                f"iteration {number:>{width}}/{self._total}  {numbers}  {seconds:.1f} s  left {left}",
                highlight=False,
                soft_wrap=True,
            )


class _Numbers(ProgressColumn):
    """The last iteration's numbers."""

    def render(self, task: Task) -> Text:
        return Text(str(task.fields["numbers"]), style="cyan")


def _clock_text(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
