"""A full or failing disk: nothing more is claimed for a while, longer each time it is met again."""

from __future__ import annotations

from dataclasses import dataclass

from qrunner.clock import Clock

_FIRST_S, _MOST_S = 0.5, 30.0


@dataclass(slots=True)
class Trouble:
    """Until when (monotonic ns) we wait, and how long the next wait is."""

    clock: Clock
    until_ns: int = 0
    next_s: float = _FIRST_S

    @property
    def is_on(self) -> bool:
        """Whether we wait."""
        return self.clock.monotonic_ns() < self.until_ns

    def meet(self) -> None:
        """It was met. All that are in hand meet the same trouble at once: it counts once."""
        if not self.is_on:
            self.wait(self.next_s)
            self.next_s = min(_MOST_S, self.next_s * 2)

    def wait(self, wait_s: float) -> None:
        """Waits so many seconds from now."""
        self.until_ns = self.clock.monotonic_ns() + int(wait_s * 1e9)

    def end(self) -> None:
        """Something could be written again."""
        self.next_s = _FIRST_S
