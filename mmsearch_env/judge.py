"""A judge: whether an answer that matches no accepted one to the letter means one of them all the same.

The environment's metric is looked at first; a judge is asked only about an answer that it does not give full marks.
What it said once about an answer it is not asked again. A judge that fails leaves the metric's word as it is.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

from mmsearch_env.cache.flight import SingleFlight
from mmsearch_env.cache.keys import canonical_key
from mmsearch_env.errors import BudgetError, ConfigError, ToolError
from mmsearch_env.net.metering import metered
from mmsearch_env.rendering import plain
from mmsearch_env.resources import close_at_exit
from mmsearch_env.rewards import normalised
from mmsearch_env.tools.search_tool import FREE, Cost

_log = logging.getLogger(__name__)

FAILED = "judge_failed"
"""The error in ``info`` of an episode whose answer could not be judged."""
_KEPT_IN_MEMORY = 20_000
_FOR_EVER_S = 10 * 365 * 86_400.0
_SETTINGS = ("name", "base_url", "model", "key_variable", "price_usd", "cache_dir")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge said.

    Attributes:
        value: how right the answer is, in [0, 1].
        cost: what asking took.
    """

    value: float
    cost: Cost = FREE


@runtime_checkable
class Judge(Protocol):
    """Says how right an answer is."""

    @property
    def name(self) -> str:
        """As in configurations and in cache keys."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """What a verdict depends on besides question and answers, JSON-able."""
        ...

    async def verdict(self, question: str, accepted: Sequence[str], answer: str) -> float:
        """In [0, 1]. Raises ToolError."""
        ...

    async def aclose(self) -> None:
        """Free what it holds; may be called twice."""
        ...


class Verdicts:
    """A judge that remembers what it said, in memory and, where it has a folder, on disk."""

    def __init__(self, judge: Judge, folder: Path | None = None) -> None:
        """Args: judge: who is asked; folder: where verdicts are kept for other processes and runs."""
        self._judge = judge
        self._kept: OrderedDict[str, float] = OrderedDict()
        self._disk = None if folder is None else _opened(folder)
        self._flights: SingleFlight[Verdict] = SingleFlight()
        self._failures = 0

    async def of(self, question: str, accepted: Sequence[str], answer: str, *, timeout_s: float) -> Verdict | ToolError:
        """The verdict, or the error that takes its place. Nothing a judge does ends an episode, but a BudgetError."""
        request = {
            "judge": self._judge.name,
            "settings": dict(self._judge.settings),
            "question": question,
            "accepted": sorted(normalised(one) for one in accepted),
            "answer": normalised(answer),
        }
        key = canonical_key("verdict", request)
        if (found := self._known(key)) is not None:
            return Verdict(found)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._flights.once(key, lambda: self._asked(key, request, question, accepted, answer))
        except BudgetError:
            raise
        except TimeoutError:
            return self._failed(ToolError(f"expected a verdict within {timeout_s:g} s, got none", code="timeout"))
        except ToolError as error:
            return self._failed(error)
        except Exception as error:  # noqa: BLE001  somebody else's judge may raise anything
            return self._failed(ToolError(f"got {type(error).__name__}: {error}", code="tool_error"))

    def _failed(self, error: ToolError) -> ToolError:
        """The error, told to people too, but not for each of a thousand answers."""
        self._failures += 1
        if str(self._failures).strip("0") == "1":  # the first, the tenth, the hundredth ...
            said, count = plain(str(error)), self._failures
            _log.warning("judge %s failed %d time(s): %s; the metric's word stands", self._judge.name, count, said)
        return error

    async def _asked(
        self, key: str, request: Mapping[str, Any], question: str, accepted: Sequence[str], answer: str
    ) -> Verdict:
        with metered() as meter:
            value = await self._judge.verdict(question, accepted, answer)
        if not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
            raise ToolError(f"judge {self._judge.name}: expected a number in [0, 1], got {value!r}", code="bad_reply")
        self._keep(key, float(value), request)
        return Verdict(float(value), Cost(meter.calls, meter.usd))

    def _known(self, key: str) -> float | None:
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        body = None if self._disk is None else self._disk.get(key)
        return None if body is None else float(json.loads(body))

    def _keep(self, key: str, value: float, request: Mapping[str, Any]) -> None:
        self._kept[key] = value
        if len(self._kept) > _KEPT_IN_MEMORY:
            self._kept.popitem(last=False)
        if self._disk is not None:
            self._disk.put(key, json.dumps(value).encode(), kind="verdict", request=request, expire_s=_FOR_EVER_S)


JudgeSpec = Mapping[str, Any] | Judge
"""``{"name": "chat", "base_url": ..., "model": ...}``, or the judge itself."""


def resolve_judge(spec: JudgeSpec | None) -> Verdicts | None:
    """A judge by its settings, one for all environments of a process that name the same; None for none.

    Settings of ``chat``: ``base_url`` and ``model``, and as wanted ``key_variable`` (environment variable with the
    key), ``price_usd`` of a call, and ``cache_dir``, a folder where verdicts are kept.

    Raises:
        ConfigError: a setting is missing or not known.
    """
    if spec is None or spec == {}:
        return None
    if isinstance(spec, Judge):
        return _verdicts_of(cast(Hashable, spec))
    try:
        text = json.dumps(dict(spec), sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"judge: expected a mapping or a judge (name, settings, verdict), got {spec!r}") from error
    return _shared(text)


@lru_cache(maxsize=16)
def _verdicts_of(judge: Any) -> Verdicts:
    """The same for all environments that are given this judge."""
    return Verdicts(judge)


@cache
def _shared(text: str) -> Verdicts:
    from mmsearch_env.net.secret import read_secret
    from mmsearch_env.tools.chat import ChatModel, chat_client
    from mmsearch_env.tools.chat_judge import ChatJudge

    spec: dict[str, Any] = json.loads(text)
    if unknown := sorted(spec.keys() - set(_SETTINGS)):
        raise ConfigError(f"judge: expected {', '.join(_SETTINGS)}, got {', '.join(unknown)}; mend the setting's name")
    if spec.get("name") != "chat":
        raise ConfigError(f"judge: expected the name 'chat', got {spec.get('name')!r}")
    if missing := sorted({"base_url", "model"} - spec.keys()):
        raise ConfigError(f"judge: expected {' and '.join(missing)}, got none")
    variable = str(spec.get("key_variable", ""))
    secret = read_secret(variable=variable) if variable else None
    price = float(spec.get("price_usd", 0.0))
    made = ChatJudge(ChatModel(chat_client(), str(spec["base_url"]), str(spec["model"]), secret, price))
    close_at_exit(made)
    folder = spec.get("cache_dir")
    return Verdicts(made, None if folder is None else Path(folder).expanduser())


def _opened(folder: Path) -> Any:
    from mmsearch_env.cache.tool_cache import ToolCache

    return ToolCache(folder)
