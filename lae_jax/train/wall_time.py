"""Where the wall time of a run goes: steps that counted, and everything else by cause."""

from collections.abc import Callable, Mapping, Sequence

from lae_jax.runtime.typed.declared import CAUSES


class WallTime:
    """Seconds of all starts of a run by cause. Every moment belongs to one cause, so the shares add up to 1.

    `count(cause)` gives the time since the last call to a cause: call it when something has ended.
    """

    def __init__(self, clock: Callable[[], float], began: float, before: Mapping[str, float] | None = None):
        """Continues the account of earlier starts.

        Args:
          clock: Gives the time in seconds.
          began: When this start began, on the clock.
          before: Seconds of earlier starts by cause (`of_lines`).
        """
        self._clock, self._last = clock, began
        self._seconds = {cause: 0.0 for cause in CAUSES} | dict(before or {})

    def count(self, cause: str) -> float:
        """Counts the time since the last call as time of `cause`, one of `CAUSES`, and returns it in seconds."""
        now = self._clock()
        passed, self._last = now - self._last, now
        self._seconds[cause] += passed
        return passed

    @property
    def seconds(self) -> float:
        """Seconds of all starts until now."""
        return sum(self._seconds.values()) + self._clock() - self._last

    @property
    def goodput(self) -> float:
        """The share of steps that counted, so far."""
        return self._seconds["goodput"] / max(self.seconds, 1e-9)

    def row(self) -> dict[str, float]:
        """Returns the fields of a line of kind 'time': all seconds, and the share of each cause."""
        self.count("other")
        seconds = sum(self._seconds.values())
        return {"seconds": seconds, **{cause: share / max(seconds, 1e-9) for cause, share in self._seconds.items()}}


def of_lines(lines: Sequence[Mapping], start: int) -> dict[str, float]:
    """Returns the seconds by cause of the starts of a run before one that continues after step `start`.

    What passed between that step and the last line is lost: its steps are done again. The time between the last line
    and the end of a start that was killed is unknown, and the time between two starts is not time of the run.

    Args:
      lines: All lines of metrics.jsonl that earlier starts have left.
      start: The step.
    """
    known = [line for line in lines if line.get("kind") == "time" and line["step"] <= start]
    seconds = {cause: 0.0 for cause in CAUSES}
    if known:
        seconds |= {cause: known[-1][cause] * known[-1]["seconds"] for cause in CAUSES}
    else:  # a run of an earlier version
        kept = [line.get("seconds") or 0.0 for line in lines if line["step"] <= start]
        seconds["other"] = max(kept, default=0.0)
    last = max((line.get("seconds") or 0.0 for line in lines), default=0.0)
    seconds["lost"] += max(0.0, last - sum(seconds.values()))
    return seconds
