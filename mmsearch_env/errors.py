"""Every error this project raises on purpose.

    MMSearchError
    ├── ConfigError            a setting, a keyword or a command-line value is wrong
    ├── DataError              a question file, a world, an index or a checkpoint is wrong
    │   ├── ImageError         one picture is broken, too large or of an unreadable mode
    │   └── QuestionError      one question row cannot be used
    ├── EpisodeError           the caller misused an episode (stepped before reset, after the end, wrong type)
    ├── ToolError              a search tool did not deliver; it never leaves the environment's step
    │   ├── ToolTimeout        no reply in time
    │   └── ToolUnavailable    the back end refused, failed or is not configured
    └── PolicyError            a policy, a model or a sampling engine cannot do what was asked

A message says three things: what was expected, what came, what to do.
Text that a model produced never raises: it becomes a :class:`~mmsearch_env.actions.Malformed` action.
"""

from __future__ import annotations


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


class PolicyError(MMSearchError):
    """A policy, a model or a sampling engine cannot do what was asked."""
