"""What a field means and which values it takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class About:
    """What a field means and which values it takes.

    Attributes:
        meaning: one sentence.
        unit: what one of it is; "" for a word, a path or a switch.
        low: smallest value allowed.
        high: largest value allowed.
        above: the value must be greater than this.
    """

    meaning: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    above: float | None = None

    def accepts(self, value: float) -> bool:
        """Whether a number lies in the range."""
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
        )

    @property
    def range_text(self) -> str:
        """The range in words; "" when every value is allowed."""
        parts = [
            *([] if self.above is None else [f"greater than {self.above:g}"]),
            *([] if self.low is None else [f"at least {self.low:g}"]),
            *([] if self.high is None else [f"at most {self.high:g}"]),
        ]
        return " and ".join(parts)
