"""What a person sees while stages run, and how the time was spent."""

import sys
import threading
import time
from typing import Any

import psutil
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from tasks.events import figures, progress_line, seconds_left

PLAIN_INTERVAL = 10.0  # seconds between two lines of a stage, where output is not a terminal


class LiveView:
    """Progress of several stages: bars on a terminal, plain lines elsewhere.

    Also keeps the account of time: ``computing_seconds`` is how long at least one stage was
    computing; the rest of the wall time is orchestration.

    Args:
        total: how many stages there are.
        began: since when it counts, a ``time.time()``; default: the start of this process, so that imports
            and the start of Prefect are included.
    """

    def __init__(self, total: int, began: float | None = None) -> None:
        self._began = psutil.Process().create_time() if began is None else began
        self.console = Console(soft_wrap=True)
        self._total, self._finished = total, 0
        self._lock = threading.Lock()
        self._tasks: dict[str, TaskID] = {}
        self._printed: dict[str, float] = {}
        self._computing: set[str] = set()
        self._since = 0.0
        self.computing_seconds = 0.0
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}"),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[figures]}"),
            console=self.console,
            disable=not (sys.stdout and sys.stdout.isatty()),
        )

    def __enter__(self) -> "LiveView":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    @property
    def wall_seconds(self) -> float:
        """Seconds since ``began``."""
        return time.time() - self._began

    @property
    def orchestration_seconds(self) -> float:
        """Wall time in which no stage was computing."""
        return self.wall_seconds - self.computing_seconds

    def on_event(self, stage: str, event: dict[str, Any]) -> None:
        """Take in an event of a stage's process."""
        with self._lock:
            if event["event"] == "computing":
                self._start(stage)
            elif event["event"] == "progress":
                self._show(stage, event)
            elif event["event"] in ("computed", "error"):
                self._stop(stage)

    def paused(self, stage: str) -> None:
        """A stage does not compute until it is tried again."""
        with self._lock:
            self._stop(stage)

    def finished(self, stage: str, outcome: str = "done") -> None:
        """A stage has ended."""
        with self._lock:
            self._stop(stage)
            self._finished += 1
            if stage in self._tasks:
                self._bars.remove_task(self._tasks.pop(stage))
            self.say(f"[{self._finished}/{self._total}] {stage}: {outcome}")

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self.console.print(line, markup=False, highlight=False)

    def _start(self, stage: str) -> None:
        if not self._computing:
            self._since = time.monotonic()
        self._computing.add(stage)

    def _stop(self, stage: str) -> None:
        if stage in self._computing:
            self._computing.remove(stage)
            if not self._computing:
                self.computing_seconds += time.monotonic() - self._since

    def _show(self, stage: str, event: dict[str, Any]) -> None:
        if not self._bars.disable:
            fields = {
                "unit": event.get("unit", "step"),
                "left": seconds_left(event),
                "figures": figures(event),
            }
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, **fields)
            self._bars.update(self._tasks[stage], completed=event["done"], total=event["total"], **fields)
        elif time.monotonic() - self._printed.get(stage, 0.0) >= PLAIN_INTERVAL:
            self._printed[stage] = time.monotonic()
            print(f"{stage}: {progress_line(event)}", flush=True)
