"""Every error this project raises on purpose.

    MMSearchError
    ├── ConfigError            a setting, a keyword or a command-line value is wrong
    ├── DataError              a question file, a world, an index or a checkpoint is wrong
    │   ├── ImageError         one picture is broken, too large or of an unreadable mode
    │   └── QuestionError      one question row cannot be used
    ├── EpisodeError           the caller misused an episode (stepped before reset, after the end, wrong type)
    ├── ToolError              a search tool did not deliver; it never leaves the environment's step
    │   ├── ToolTimeout        no reply in time
    │   ├── ToolUnavailable    the back end refused, failed or is not configured
    │   └── ServiceError       a service on the network said no; its code says how
    ├── BudgetError            the run may make no more calls or spend no more money; this stops it
    └── PolicyError            a policy, a model or a sampling engine cannot do what was asked

A message says three things: what was expected, what came, what to do.
Text that a model produced never raises: it becomes a :class:`~mmsearch_env.actions.Malformed` action.
"""

from __future__ import annotations

from enum import StrEnum


class MMSearchError(Exception):
    """Root of the tree."""


class ConfigError(MMSearchError, ValueError):
    """A setting is unknown or has a bad value."""


class DataError(MMSearchError):
    """A file that should hold questions, pages, an index or weights does not."""


class ImageError(DataError):
    """One picture cannot be used."""


class QuestionError(DataError):
    """One question row cannot be used."""


class EpisodeError(MMSearchError, RuntimeError):
    """The caller used an episode in a way its contract excludes."""


class ToolError(MMSearchError):
    """A search tool did not deliver a result.

    Attributes:
        code: stable word for logs and ``info`` (``"timeout"``, ``"unavailable"``, ``"bad_reply"``, ...).
    """

    def __init__(self, message: str, *, code: str = "tool_error") -> None:
        super().__init__(message)
        self.code = code


class ToolTimeout(ToolError):
    """No reply within the time allowed."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="timeout")


class ToolUnavailable(ToolError):
    """The back end refused, failed or is not configured."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="unavailable")


class ServiceCode(StrEnum):
    """How a service on the network failed: one vocabulary for all of them."""

    RATE_LIMITED = "rate_limited"
    """Too many calls just now."""
    QUOTA_EXHAUSTED = "quota_exhausted"
    """The account has nothing left."""
    AUTH = "auth"
    """The key is missing or wrong."""
    BAD_REQUEST = "bad_request"
    """The service does not accept this request."""
    TARGET_FAILED = "target_failed"
    """This one page or picture could not be had; another one may."""
    PROVIDER_FAILED = "provider_failed"
    """The service is out of order, or its reply makes no sense."""
    BLOCKED = "blocked_by_policy"
    """Our own guard refused the address, the size or the kind of content."""
    OPEN = "circuit_open"
    """Not tried: the service failed again and again a moment ago."""


class ServiceError(ToolError):
    """A service on the network did not deliver.

    Attributes:
        code: a :class:`ServiceCode`.
        retry_after_s: seconds after which the service asks to be called again; None if it does not say.
    """

    def __init__(self, message: str, *, code: ServiceCode, retry_after_s: float | None = None) -> None:
        super().__init__(message, code=code.value)
        self.retry_after_s = retry_after_s


class BudgetError(MMSearchError):
    """The limit set for a run's calls or money is reached. Unlike a ToolError, it ends what is going on."""


class PolicyError(MMSearchError):
    """A policy, a model or a sampling engine cannot do what was asked."""


class CacheWarning(UserWarning):
    """A cache cannot be used as it is; work goes on without it, or with a new one."""


class PolicyWarning(UserWarning):
    """A policy goes on more slowly, or otherwise than was asked for."""
