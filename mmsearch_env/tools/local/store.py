"""Where indices are kept: built once, checked when opened, shared by all processes.

An index is a folder of files plus ``manifest.json``, which lists each file's size and SHA-256. It is built in a
temporary folder beside its place and renamed into it, so a reader sees a whole index or none.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

from mmsearch_env.errors import CacheWarning

CACHE_VARIABLE = "MMSEARCH_CACHE_DIR"
"""Environment variable that names the cache folder."""
_MANIFEST = "manifest.json"
_temporary: list[tempfile.TemporaryDirectory[str]] = []


def cache_folder() -> Path:
    """``$MMSEARCH_CACHE_DIR``, or ``mmsearch_env`` in the platform's folder for caches."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", str(Path.home() / "AppData" / "Local")))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache"))
    return base / "mmsearch_env"


def built_once(name: str, build: Callable[[Path], None], folder: Path | None = None) -> Path:
    """The folder of the index ``name``, built now if it is missing or damaged.

    Args:
        name: states everything the content depends on (kind, version, digest of the pages).
        build: fills an empty folder.
        folder: the cache folder; :func:`cache_folder` by default.

    A folder that cannot be written costs a :class:`CacheWarning`; the index then lives in a temporary folder until
    the process ends.
    """
    base: Path | None = folder
    try:
        base = cache_folder() if folder is None else folder
        place = base / name
        if place.is_dir():
            fault = _fault(place)
            if fault is None:
                return place
            warnings.warn(f"index {place}: {fault}; it is built again", CacheWarning, stacklevel=2)
        base.mkdir(parents=True, exist_ok=True)
        return _build_into(place, build)
    except (OSError, RuntimeError) as error:  # RuntimeError: this user has no home folder
        reason = getattr(error, "strerror", None) or error
        message = f"cache folder {base or ''}: expected a writable folder, got {reason}; this process keeps "
        message += f"its index in a temporary folder. Mend it or set {CACHE_VARIABLE} to another folder"
        warnings.warn(message, CacheWarning, stacklevel=2)
    return _build_aside(name, build)


def copied_aside(place: Path) -> Path:
    """A copy of an index in a temporary folder that lives as long as the process, for engines that write beside it."""
    holder = tempfile.TemporaryDirectory(prefix="mmsearch_env.")
    _temporary.append(holder)
    return Path(shutil.copytree(place, Path(holder.name) / place.name, copy_function=shutil.copyfile))


def _build_into(place: Path, build: Callable[[Path], None]) -> Path:
    """Build beside the place and rename. Raises OSError."""
    work = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        build(work)
        _write_manifest(work)
        work.chmod(0o755)
        for path in work.iterdir():
            path.chmod(0o644)  # some engines write files that only their owner may read
        if place.exists() and _fault(place) is not None:
            shutil.rmtree(place)
        try:
            work.rename(place)
        except OSError:
            # Another process was faster: its index has the same content.
            if not place.is_dir() or _fault(place) is not None:
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return place


def _build_aside(name: str, build: Callable[[Path], None]) -> Path:
    """Build in a temporary folder that lives as long as the process."""
    holder = tempfile.TemporaryDirectory(prefix="mmsearch_env.")
    _temporary.append(holder)
    place = Path(holder.name) / name
    place.mkdir()
    build(place)
    _write_manifest(place)
    return place


def _write_manifest(place: Path) -> None:
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(place.iterdir())
        if not path.name.startswith(".")
    }
    (place / _MANIFEST).write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")


def _fault(place: Path) -> str | None:
    """What is wrong with an index; None if it is whole."""
    try:
        manifest = json.loads((place / _MANIFEST).read_text(encoding="utf-8"))
        for name, stated in manifest["files"].items():
            path = place / name
            if path.stat().st_size != stated["bytes"] or _sha256(path) != stated["sha256"]:
                return f"expected {name} as it was written, got another content"
    except FileNotFoundError as error:
        return f"expected the file {Path(error.filename).name}, got none"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"expected a readable manifest, got {type(error).__name__}: {error}"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
