"""DeepSpeed itself, without its C++ builds and its chatter."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmsearch_env.errors import ConfigError


def deepspeed_library() -> Any:
    """The library. Raises ConfigError for one that is too old."""
    with quiet():
        import deepspeed
        import deepspeed.ops
        from deepspeed.runtime.engine import DeepSpeedEngine

    if not hasattr(DeepSpeedEngine, "managed_gradient_accumulation"):
        raise ConfigError(
            f"expected a DeepSpeed whose gradient accumulation the caller manages, got {deepspeed.__version__}; "
            "install the version in constraints.txt"
        )
    # Compiled on first use (minutes, and a stale lock hangs later starts); gloo does the same work without it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


@contextmanager
def quiet() -> Iterator[None]:
    """Mute DeepSpeed's log lines and the deprecation warnings of what it imports and calls."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield
