"""How text means an action, and what the player is told."""

from __future__ import annotations

from mmsearch_env.protocols.prompt_set import PromptSet, load_prompts
from mmsearch_env.protocols.protocol import PROTOCOLS, Protocol, load_protocol

__all__ = ["PROTOCOLS", "PromptSet", "Protocol", "load_prompts", "load_protocol"]
