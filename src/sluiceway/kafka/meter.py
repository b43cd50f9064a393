"""What the Kafka layer tells about itself: numbers for metrics, notices for the log. It imports neither."""

from __future__ import annotations

from typing import Protocol


class Meter(Protocol):
    """Called on the event loop; returns at once. Notice fields are names, numbers and reasons, never payload."""

    def taken(self, group: str, topic: str, count: int) -> None: ...

    def settled(self, group: str, topic: str, count: int) -> None: ...

    def notice(self, event: str, **fields: str | int | float) -> None: ...


class NoMeter:
    """Tells nobody."""

    def taken(self, group: str, topic: str, count: int) -> None:
        pass

    def settled(self, group: str, topic: str, count: int) -> None:
        pass

    def notice(self, event: str, **fields: str | int | float) -> None:
        pass
