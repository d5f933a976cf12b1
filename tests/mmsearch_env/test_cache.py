"""The cache: what it keeps, whom it believes, what it survives."""

from __future__ import annotations

import hashlib
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsearch_env.cache.envelope import MAX_BODY_BYTES, EnvelopeError, pack, unpack, unpack_about
from mmsearch_env.cache.keys import canonical_key, canonical_text
from mmsearch_env.cache.tool_cache import ToolCache, _Hot
from mmsearch_env.errors import CacheWarning, ConfigError

ROOT = Path(__file__).parents[2]
REQUEST = {"engine": "x", "query": "q"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "answers"


def cold(folder: Path, **limits: int) -> ToolCache:
    """A cache that reads from disk every time."""
    return ToolCache(folder, hot_bytes=0, **limits)


def put(cache: ToolCache, key: str, body: bytes, *, kind: str = "rows", expire_s: float = 60.0) -> None:
    cache.put(key, body, kind=kind, request=REQUEST, expire_s=expire_s)


def tamper(folder: Path, statement: str, *values: Any) -> None:
    """Change the database behind the cache's back, as whoever may write to the folder can."""
    connection = sqlite3.connect(folder / "v1" / "cache.db")
    with connection:
        connection.execute(statement, values)
    connection.close()


@given(st.binary(max_size=20_000), st.text(max_size=40))
@settings(max_examples=200)
def test_an_envelope_gives_back_what_went_in(body: bytes, key: str) -> None:
    envelope = pack(key, body, {"kind": "rows", "request": REQUEST})
    assert unpack(key, envelope) == body
    assert unpack_about(key, envelope) == ({"kind": "rows", "request": REQUEST}, body)


@given(st.binary(min_size=1, max_size=300), st.integers(0, 10**6), st.integers(1, 255))
def test_an_envelope_with_any_byte_changed_is_refused(body: bytes, place: int, by: int) -> None:
    envelope = bytearray(pack("key", body, {}))
    envelope[place % len(envelope)] ^= by
    with pytest.raises(EnvelopeError):
        unpack("key", bytes(envelope))


@given(st.binary(max_size=200))
def test_any_bytes_are_no_envelope(envelope: bytes) -> None:
    with pytest.raises(EnvelopeError):
        unpack("key", envelope)


def test_an_envelope_belongs_to_its_key() -> None:
    with pytest.raises(EnvelopeError, match="expected the content that was written"):
        unpack("other", pack("key", b"body", {}))


def test_a_large_body_is_compressed_and_inflated_within_bounds() -> None:
    envelope = pack("key", bytes(1_000_000), {})
    assert len(envelope) < 10_000
    assert unpack("key", envelope) == bytes(1_000_000)
    with pytest.raises(EnvelopeError, match="at most"):
        pack("key", bytes(MAX_BODY_BYTES + 1), {})


def test_a_bomb_with_a_right_hash_is_not_inflated_beyond_the_limit() -> None:
    content = b"MMS1" + bytes([1]) + (2).to_bytes(4, "big") + b"{}" + zlib.compress(bytes(20 * MAX_BODY_BYTES))
    bomb = hashlib.sha256(b"key" + content).digest() + content
    with pytest.raises(EnvelopeError, match="at most"):
        unpack("key", bomb)


def test_answers_come_back_from_memory_and_from_disk(folder: Path) -> None:
    for cache in (ToolCache(folder), cold(folder)):
        assert cache.get("key") is None or cache.get("key") == b"body"
        put(cache, "key", b"body")
        assert cache.get("key") == b"body"
    assert cold(folder).get("key") == b"body"


def test_an_expired_answer_is_gone_in_memory_and_on_disk(folder: Path) -> None:
    warm, other = ToolCache(folder), cold(folder)
    put(warm, "key", b"body", expire_s=0.05)
    assert (warm.get("key"), other.get("key")) == (b"body", b"body")
    time.sleep(0.1)
    assert (warm.get("key"), other.get("key")) == (None, None)


def test_memory_stays_within_its_limit(folder: Path) -> None:
    cache = ToolCache(folder, hot_bytes=1000)
    for number in range(100):
        put(cache, f"key {number}", bytes(90))
    assert sum(len(body) for body, _ in cache._hot._answers.values()) <= 1000
    assert cache.get("key 0") == bytes(90)


def test_memory_may_be_read_while_it_is_written() -> None:
    hot, done = _Hot(5_000), threading.Event()
    broken: list[BaseException] = []

    def reading() -> None:
        try:
            while not done.is_set():
                for number in range(100):
                    hot.get(str(number))
        except BaseException as error:  # noqa: BLE001  whatever it is, it was not to be
            broken.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    readers = [threading.Thread(target=reading) for _ in range(2)]
    try:
        for reader in readers:
            reader.start()
        for number in range(30_000):
            hot.put(str(number % 100), bytes(90), None)
    finally:
        done.set()
        for reader in readers:
            reader.join()
        sys.setswitchinterval(before)
    assert broken == []
    assert hot._size == sum(len(body) for body, _ in hot._answers.values()) <= 5_000


def test_the_disk_stays_near_its_limit(folder: Path) -> None:
    cache = cold(folder, size_limit=2_000_000)
    for number in range(200):
        put(cache, f"key {number}", os.urandom(50_000))
    cache.close()
    assert (folder / "v1" / "cache.db").stat().st_size < 4_000_000
    assert cold(folder).get("key 199") is not None
    assert cold(folder).get("key 0") is None


def test_the_folder_is_its_owners_alone(folder: Path) -> None:
    ToolCache(folder)
    assert (folder / "v1").stat().st_mode & 0o777 == 0o700


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="expected a folder of one's own that can be written"):
        ToolCache(tmp_path / "file")


def test_keys_do_not_depend_on_order_and_words_not_on_blanks() -> None:
    assert canonical_key("rows", {"a": 1, "b": "ü"}) == canonical_key("rows", {"b": "ü", "a": 1})
    assert canonical_key("rows", {"a": 1}) != canonical_key("page", {"a": 1})
    assert canonical_text("  cafe\u0301   au lait\n") == "café au lait"
    # a change of what keys are made of makes every kept answer worthless: raise the schema when it is meant
    assert canonical_key("rows", {"a": [1, 2.5, None, "ü"]})[:16] == "ea1d6853e74b15c8"


class Canary:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trace,))


def test_a_planted_pickle_is_not_run(folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    bomb = pickle.dumps(Canary(trace))
    cache = cold(folder)
    put(cache, "key", b"body")
    tamper(folder, "UPDATE Cache SET mode = 4, value = ?", bomb)
    assert cache.get("key") is None
    tamper(folder, "INSERT INTO Cache (key, raw, store_time, mode, value) VALUES (?, 0, 0, 1, ?)", bomb, bomb)
    assert list(cache.answers()) == []
    assert cache.verify() == (0, 2)
    assert not trace.exists()


def test_a_row_cannot_read_or_remove_a_file(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    cache = cold(folder)
    put(cache, "key", b"body")
    for mode in (1, 2, 3, 4):
        tamper(folder, "UPDATE Cache SET mode = ?, filename = ?, value = NULL", mode, f"../../{secret.name}")
        assert cache.get("key") is None
    put(cache, "key", b"other")  # diskcache removes the file of the row it replaces
    tamper(folder, "UPDATE Cache SET filename = ?, expire_time = 1", f"../../{secret.name}")
    cache.prune()
    assert secret.read_text() == "secret"


@pytest.mark.parametrize("change", ["value = 'text'", "value = 5", "raw = 0", "expire_time = 'never'"])
def test_a_row_of_another_kind_is_missing(folder: Path, change: str) -> None:
    cache = ToolCache(folder)
    put(cache, "key", b"body")
    cache = ToolCache(folder)
    database = cache._database
    tamper(folder, f"UPDATE Cache SET {change}")
    assert cache.get("key") is None
    assert cache._database is database  # no damage: it was not opened again
    put(cache, "other", b"body")
    assert cache.get("other") == b"body"


def test_answers_cannot_be_swapped(folder: Path) -> None:
    cache = cold(folder)
    put(cache, "a", b"right")
    put(cache, "b", b"wrong")
    tamper(folder, "UPDATE Cache SET value = (SELECT value FROM Cache WHERE key = 'b') WHERE key = 'a'")
    assert cache.get("a") is None


def test_planted_settings_are_not_believed(folder: Path) -> None:
    cold(folder).close()
    tamper(folder, "INSERT INTO Settings VALUES ('_disk', 1)")
    with pytest.warns(CacheWarning, match="expected a sound database, got ValueError"):
        cache = cold(folder)
    put(cache, "key", b"body")
    assert cache.get("key") == b"body"


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE VIEW Planted AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n",
        "CREATE TRIGGER planted AFTER INSERT ON Cache BEGIN DELETE FROM Cache; END",
        "CREATE INDEX planted ON Cache (hex(value))",
        "ALTER TABLE Cache ADD COLUMN planted INTEGER GENERATED ALWAYS AS (length(value)) VIRTUAL",
    ],
)
def test_what_a_database_would_run_is_not_let_in(folder: Path, statement: str) -> None:
    cold(folder).close()
    tamper(folder, statement)
    with pytest.warns(CacheWarning, match="expected the tables of diskcache"):
        cache = cold(folder)
    put(cache, "key", b"body")
    assert cache.get("key") == b"body"


@pytest.mark.parametrize("statement", ["ANALYZE", "VACUUM", "REINDEX", "PRAGMA journal_mode = DELETE"])
def test_what_looks_after_a_database_does_it_no_harm(folder: Path, statement: str) -> None:
    cache = cold(folder)
    put(cache, "key", b"body")
    cache.close()
    connection = sqlite3.connect(folder / "v1" / "cache.db", isolation_level=None)
    connection.execute(statement)
    connection.close()
    assert cold(folder).get("key") == b"body"


def test_a_view_in_place_of_the_table_keeps_no_read_busy(folder: Path) -> None:
    cold(folder).close()
    tamper(folder, "DROP TABLE Cache")
    endless = "WITH RECURSIVE n(key) AS (SELECT '' UNION ALL SELECT key FROM n)"
    tamper(folder, f"CREATE VIEW Cache AS {endless} SELECT key, key AS value, key AS raw FROM n")
    with pytest.warns(CacheWarning, match="expected the tables of diskcache, got 'Cache'"):
        assert cold(folder).get("key") is None


def test_a_database_cut_while_it_is_open_costs_answers_only(folder: Path) -> None:
    """In a process of its own, which a mapped file would end."""
    script = f"""
import os, warnings
from pathlib import Path
from mmsearch_env.cache.tool_cache import ToolCache
warnings.simplefilter("ignore")
cache = ToolCache(Path({str(folder)!r}), hot_bytes=0)
for number in range(300):
    cache.put(str(number), os.urandom(3000), kind="rows", request={{}}, expire_s=60.0)
cache.close()
cache = ToolCache(Path({str(folder)!r}), hot_bytes=0)
cache.get("0")
os.truncate({str(folder / "v1" / "cache.db")!r}, 20_000)
print([cache.get(str(number)) for number in range(300)].count(None))
cache.put("key", b"body", kind="rows", request={{}}, expire_s=60.0)
print(cache.get("key"))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done
    lost, kept = done.stdout.split("\n")[:2]
    assert int(lost) > 200 and kept == "b'body'"


@pytest.mark.parametrize(
    "damage", [b"not a database at all, whatever it says" * 100, b"SQLite format 3\0" + bytes(9000)]
)
def test_a_damaged_database_is_set_aside(folder: Path, damage: bytes) -> None:
    cache = cold(folder)
    put(cache, "key", b"body")
    cache.close()
    for path in (folder / "v1").iterdir():
        path.unlink()
    (folder / "v1" / "cache.db").write_bytes(damage)
    with pytest.warns(CacheWarning, match="expected a sound database"):
        cache = cold(folder)
    put(cache, "key", b"body")
    assert cache.get("key") == b"body"
    (aside,) = folder.glob("v1.damaged-*")
    assert (aside / "cache.db").read_bytes() == damage


def test_damage_while_it_is_open_costs_answers_only(folder: Path) -> None:
    cache = cold(folder)
    for number in range(200):
        put(cache, str(number), os.urandom(2000))
    cache.close()
    with (folder / "v1" / "cache.db").open("r+b") as file:
        for page in range(1, 60):
            file.seek(page * 4096)
            file.write(os.urandom(4096))
    with pytest.warns(CacheWarning):
        found = [cache.get(str(number)) for number in range(200)]
    put(cache, "key", b"body")
    assert None in found
    assert cache.get("key") == b"body"


def test_verify_prune_and_stats(folder: Path) -> None:
    cache = ToolCache(folder)
    for number in range(10):
        put(cache, str(number), b"body", kind="rows" if number % 2 else "page")
    tamper(folder, "UPDATE Cache SET value = ? WHERE key = '3'", b"damaged")
    assert cache.verify() == (9, 1)
    assert cache.stats().by_kind == {"page": 5, "rows": 4}
    assert [answer.request for answer in cache.answers()] == [REQUEST] * 9
    assert cache.prune(older_than_s=3600.0) == 0
    assert cache.prune(older_than_s=0.0, kind="page") == 5
    assert cache.get("0") is None
    assert cache.stats().answers == 4


WRITER = """
import hashlib, os, sys
from pathlib import Path
from mmsearch_env.cache.tool_cache import ToolCache
cache = ToolCache(Path(sys.argv[1]), hot_bytes=0)
print("ready", flush=True)
number = 0
while True:
    body = hashlib.sha256(str(number).encode()).digest() * 300
    cache.put(f"{sys.argv[2]} {number}", body, kind="rows", request={}, expire_s=600)
    number = (number + 1) % 500
"""


def test_writers_may_be_killed_at_any_moment(folder: Path) -> None:
    for _ in range(5):
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, str(folder), name], stdout=subprocess.PIPE, env={"PYTHONPATH": str(ROOT)}
            )
            for name in ("a", "b", "c")
        ]
        for writer in writers:
            assert writer.stdout is not None
            writer.stdout.readline()
        time.sleep(0.3)
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
        for writer in writers:
            writer.communicate()
    cache = cold(folder)
    answers = list(cache.answers())
    assert len(answers) > 10
    for answer in answers:
        number = answer.key.split(" ")[1]
        assert answer.body == hashlib.sha256(number.encode()).digest() * 300
    assert cache.verify() == (len(answers), 0)
    assert [path.name for path in (folder / "v1").rglob("*.val")] == []


SHARER = """
import sys
from pathlib import Path
from mmsearch_env.cache.tool_cache import ToolCache
cache = ToolCache(Path(sys.argv[1]), hot_bytes=0)
for number in range(60):
    found = cache.get(str(number))
    assert found in (None, b"body %d" % number), found
    cache.put(str(number), b"body %d" % number, kind="rows", request={}, expire_s=600)
    assert cache.get(str(number)) == b"body %d" % number
"""


def test_eight_processes_share_a_folder(folder: Path) -> None:
    sharers = [
        subprocess.Popen(
            [sys.executable, "-c", SHARER, str(folder)], stderr=subprocess.PIPE, env={"PYTHONPATH": str(ROOT)}
        )
        for _ in range(8)
    ]
    for sharer in sharers:
        _, told = sharer.communicate(timeout=120)
        assert sharer.returncode == 0, told
    assert cold(folder).stats().answers == 60
