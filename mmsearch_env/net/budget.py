"""How many calls a run may make and how much money it may spend, over all its processes on one machine."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mmsearch_env.errors import BudgetError, ConfigError


@dataclass(frozen=True, slots=True)
class Spent:
    """What was spent so far.

    Attributes:
        calls: calls to paid or limited services.
        usd: their price in US dollars.
    """

    calls: int = 0
    usd: float = 0.0


class Budget:
    """A limit of calls and money.

    With a ledger, a small JSON file that processes lock in turn, the limit holds for all of them together and survives
    a restart; without one it holds for this object.
    """

    def __init__(
        self, *, max_calls: int | None = None, max_usd: float | None = None, ledger: Path | None = None
    ) -> None:
        """
        Args:
            max_calls: most calls; None for no limit.
            max_usd: most money in US dollars; None for no limit.
            ledger: file that keeps what was spent.

        Raises:
            ConfigError: a limit below 0, or a ledger that cannot be written or read.
        """
        for name, limit in (("max_calls", max_calls), ("max_usd", max_usd)):
            if limit is not None and not limit >= 0:
                raise ConfigError(f"{name}: expected at least 0, got {limit!r}; leave it out for no limit")
        self.max_calls, self.max_usd = max_calls, max_usd
        self._ledger = ledger
        self._own = Spent()
        self._lock = threading.Lock()
        if ledger is not None:
            with self._exclusively():
                pass

    @property
    def spent(self) -> Spent:
        """What was spent so far, over all processes."""
        with self._exclusively() as account:
            return account.spent

    def spend(self, usd: float) -> None:
        """Enter one call before it is made.

        Raises:
            BudgetError: it would go beyond the limit; nothing is entered then.
        """
        with self._exclusively() as account:
            after = Spent(account.spent.calls + 1, account.spent.usd + usd)
            if self.max_calls is not None and after.calls > self.max_calls:
                raise BudgetError(self._told(f"at most {self.max_calls} calls of services", "one more"))
            # A billionth: sums of prices such as 0.001 are not exact.
            if self.max_usd is not None and after.usd > self.max_usd + 1e-9:
                raise BudgetError(self._told(f"at most {self.max_usd:g} US dollars", f"{after.usd:g}"))
            account.enter(after)

    def _told(self, expected: str, got: str) -> str:
        anew = "" if self._ledger is None else f" or begin anew by removing {self._ledger}"
        return f"budget: expected {expected}, got {got}; raise the limit{anew}"

    @contextmanager
    def _exclusively(self) -> Iterator[_Account]:
        with self._lock:
            if self._ledger is None:
                account = _Account(self._own)
                yield account
                self._own = account.spent
                return
            try:
                handle = os.open(self._ledger, os.O_RDWR | os.O_CREAT, 0o600)
            except OSError as error:
                reason = f"got {self._ledger} ({error.strerror}); name another"
                raise ConfigError(f"ledger: expected a file that can be written, {reason}") from error
            with os.fdopen(handle, "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                account = _Account(_read(file.read(), self._ledger))
                yield account
                if account.changed:
                    # Shorter texts cannot follow longer ones: sums grow. Padding keeps one write whole.
                    text = json.dumps({"calls": account.spent.calls, "usd": round(account.spent.usd, 9)})
                    os.pwrite(file.fileno(), text.ljust(_LEDGER_BYTES).encode(), 0)


class _Account:
    """What was spent, while nobody else changes it."""

    def __init__(self, spent: Spent) -> None:
        self.spent = spent
        self.changed = False

    def enter(self, after: Spent) -> None:
        self.spent, self.changed = after, True


_LEDGER_BYTES = 80


def _read(text: bytes, path: Path) -> Spent:
    if not text.strip():
        return Spent()
    try:
        found = json.loads(text)
        return Spent(int(found["calls"]), float(found["usd"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: expected a ledger, got something else; remove it or name another file") from error
