"""Every environment id, in one table."""

from __future__ import annotations

from dataclasses import dataclass

from gymnasium.envs.registration import WrapperSpec, register, registry


@dataclass(frozen=True, slots=True)
class Entry:
    """One registered id.

    Attributes:
        id: what ``gymnasium.make`` is given.
        wrappers: wrappers around :class:`~mmsearch_env.env.MMSearchEnv`, innermost first.
        vectorised: whether ``gymnasium.make_vec`` uses :class:`~mmsearch_env.vector_env.MMSearchVectorEnv`.
    """

    id: str
    wrappers: tuple[WrapperSpec, ...] = ()
    vectorised: bool = False


def _wrapper(name: str) -> WrapperSpec:
    return WrapperSpec(name, f"mmsearch_env.wrappers:{name}", {})


ENTRIES = (
    Entry("MMSearch-v0", vectorised=True),
    Entry("MMSearchText-v0", (_wrapper("TextActions"),)),
    Entry("MMSearchDiscrete-v0", (_wrapper("CandidateActions"), _wrapper("ArrayObservations"))),
    Entry(
        "MMSearchBox-v0", (_wrapper("CandidateActions"), _wrapper("ArrayObservations"), _wrapper("FlatObservations"))
    ),
)
"""What this package registers: structured actions, model text, and two forms for array algorithms."""


def register_envs() -> None:
    """Register every id with Gymnasium; one that is registered already is left alone."""
    for entry in ENTRIES:
        if entry.id not in registry:
            register(
                entry.id,
                entry_point="mmsearch_env.env:MMSearchEnv",
                additional_wrappers=entry.wrappers,
                vector_entry_point="mmsearch_env.vector_env:MMSearchVectorEnv" if entry.vectorised else None,
            )
