"""A stage's events, as lines for a person."""

from collections.abc import Mapping
from typing import Any


def progress_line(event: Mapping[str, Any]) -> str:
    """Such as ``round 3 of 12, 31 s left, agreement 0.97``."""
    done = f"{event.get('unit', 'step')} {event['done']} of {event['total']}"
    return ", ".join(filter(None, (done, seconds_left(event), figures(event))))


def seconds_left(event: Mapping[str, Any]) -> str:
    """Such as ``31 s left``."""
    return f"{event['seconds_left']} s left"


def figures(event: Mapping[str, Any]) -> str:
    """The last losses and shares that a stage reported, such as ``agreement 0.97, loss 1.4``."""
    measured = {key: value for key, value in event.items() if isinstance(value, float)}
    return ", ".join(f"{key} {value:.3g}" for key, value in measured.items())
