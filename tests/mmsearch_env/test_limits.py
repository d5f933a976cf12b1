"""Circuit breaker, budget and pauses: what keeps a run within bounds."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from mmsearch_env.errors import BudgetError, ConfigError, ServiceError
from mmsearch_env.net.breaker import FEWEST, LONG_PAUSE_S, PAUSE_S, Breaker
from mmsearch_env.net.budget import Budget, Spent
from mmsearch_env.net.client import Reply
from mmsearch_env.net.secret import Secret
from mmsearch_env.tools.search_tool import ImageQuery
from mmsearch_env.tools.web.answers import KEEP_NOTHING_S, KEEP_S
from mmsearch_env.tools.web.engine import Row, endpoint, link, number, retry_after, text
from mmsearch_env.tools.web.searxng import SearxngImages
from mmsearch_env.tools.web.serper import SerperLens

ROOT = Path(__file__).parents[2]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def opened(clock: Clock) -> Breaker:
    breaker = Breaker(clock)
    for _ in range(FEWEST):
        assert breaker.refusal() is None
        breaker.failed("provider_failed")
    return breaker


def test_failures_open_the_circuit_and_one_probe_closes_it() -> None:
    clock = Clock()
    breaker = opened(clock)
    assert breaker.refusal() == "provider_failed"
    clock.now += PAUSE_S + 0.1
    assert breaker.refusal() is None
    assert breaker.refusal() == "provider_failed"  # only one probe at a time
    breaker.succeeded()
    assert breaker.refusal() is None
    breaker.failed("timeout")  # the past is forgotten
    assert breaker.refusal() is None


def test_a_probe_that_fails_opens_it_again_and_one_given_up_frees_its_place() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += PAUSE_S + 0.1
    assert breaker.refusal() is None
    breaker.abandoned()
    assert breaker.refusal() is None
    breaker.failed("timeout")
    assert breaker.refusal() == "timeout"


def test_half_of_the_calls_failing_opens_it_and_less_does_not() -> None:
    breaker = Breaker(Clock())
    for _ in range(FEWEST):
        breaker.succeeded()
        breaker.succeeded()
        breaker.failed("timeout")
    assert breaker.refusal() is None


def test_a_wrong_key_opens_it_at_once_and_for_long() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    breaker.trip("auth")
    clock.now += PAUSE_S + 1.0
    assert breaker.refusal() == "auth"
    clock.now += LONG_PAUSE_S
    assert breaker.refusal() is None


def test_a_budget_counts_calls_and_money() -> None:
    budget = Budget(max_calls=3, max_usd=0.25)
    budget.spend(0.1)
    budget.spend(0.1)
    with pytest.raises(BudgetError, match="at most 0.25 US dollars"):
        budget.spend(0.1)
    budget.spend(0.05)
    with pytest.raises(BudgetError, match="at most 3 calls"):
        budget.spend(0.0)
    assert budget.spent == Spent(3, pytest.approx(0.25))


SPENDER = """
import sys
from pathlib import Path
from mmsearch_env.errors import BudgetError
from mmsearch_env.net.budget import Budget
budget, spent = Budget(max_calls=100, ledger=Path(sys.argv[1])), 0
try:
    while True:
        budget.spend(0.001)
        spent += 1
except BudgetError:
    print(spent)
"""


def test_processes_share_a_ledger(tmp_path: Path) -> None:
    ledger = tmp_path / "spent.json"
    spenders = [
        subprocess.Popen(
            [sys.executable, "-c", SPENDER, str(ledger)], stdout=subprocess.PIPE, env={"PYTHONPATH": str(ROOT)}
        )
        for _ in range(4)
    ]
    assert sum(int(spender.communicate(timeout=60)[0]) for spender in spenders) == 100
    assert json.loads(ledger.read_text()) == {"calls": 100, "usd": 0.1}
    with pytest.raises(BudgetError, match="begin anew by removing"):
        Budget(max_calls=100, ledger=ledger).spend(0.0)


def test_a_ledger_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "spent.json").write_text("no ledger")
    with pytest.raises(ConfigError, match="expected a ledger, got something else"):
        Budget(ledger=tmp_path / "spent.json")
    with pytest.raises(ConfigError, match="expected a file that can be written"):
        Budget(ledger=tmp_path)


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("3", 3.0), ("0.5", 0.5), ("-4", 0.0), ("1e9", 3600.0), ("nan", None), ("soon", None), ("", None)],
)
def test_how_long_a_service_asks_to_wait(said: str, seconds: float | None) -> None:
    assert retry_after(Reply(429, {"retry-after": said}, b"")) == seconds


def test_it_may_also_name_a_time() -> None:
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    found = retry_after(Reply(429, {"retry-after": at}, b""))
    assert found is not None and 55.0 < found <= 60.0


def test_what_is_kept_and_for_how_long() -> None:
    days = {kind: seconds / 86400 for kind, seconds in KEEP_S.items()}
    assert days == {"rows": 30, "page": 7, "summary": 30, "picture": 30}
    assert KEEP_NOTHING_S == 3600


def test_what_a_row_may_hold() -> None:
    line = {
        "a": "  <b>x</b>&amp;  y ",
        "b": 3,
        "c": "javascript:alert(1)",
        "d": "https://a.example/",
        "e": float("nan"),
    }
    assert text(line, "missing", "b", "a") == "x& y"
    assert link(line, "b", "c", "d") == "https://a.example/"
    assert link({"d": "https://a.example/" + "x" * 5000}, "d") == ""
    assert (number(line, "b"), number(line, "e"), number(line, "a"), number({"b": True}, "b")) == (3.0, 0.0, 0.0, 0.0)


def test_a_key_travels_encrypted_or_stays_here() -> None:
    assert endpoint("http://127.0.0.1:8000/v1/", "/x", with_key=True) == "http://127.0.0.1:8000/v1/x"
    assert endpoint("http://a.example", "/x", with_key=False) == "http://a.example/x"
    for url in ("http://a.example", "https://u:p@a.example", "https://a.example/?q=1", "a.example"):
        with pytest.raises(ConfigError, match="base_url"):
            endpoint(url, "/x", with_key=True)


@pytest.mark.parametrize("engine", ["serper", "searxng"])
def test_engines_that_look_a_picture_up_by_its_url(engine: str, picture: object) -> None:
    url = "https://host.example/1.jpg"
    asked = ImageQuery(picture)  # type: ignore[arg-type]
    made = (
        SerperLens(Secret("k", name="k"), lambda query: url)
        if engine == "serper"
        else SearxngImages("https://searx.example", lambda query: url)
    )
    dialogue = made.ask(asked, 1)
    call = next(dialogue)
    assert url in (call.body or call.parameters).values()
    name = "organic" if engine == "serper" else "results"
    page = {
        "title": "Peru",
        "link": "https://a.example/",
        "url": "https://a.example/",
        "thumbnail": "https://a.example/t",
    }
    with pytest.raises(StopIteration) as end:
        dialogue.send(Reply(200, {}, json.dumps({name: [{"title": "no link"}, page, page]}).encode()))
    assert end.value.value == [Row("Peru", "https://a.example/", thumbnail_url="https://a.example/t")]


def test_a_reply_that_is_no_object_is_a_fault() -> None:
    for body in (b"[1]", b"<html>", b"", b"[" * 100_000):
        with pytest.raises(ServiceError, match="expected"):
            _ = Reply(200, {}, body).data
