"""MMSearch-R1 as a Gymnasium environment: answer questions about pictures, search when it is worth its price.

import gymnasium
import mmsearch_env  # registers the ids; "mmsearch_env:MMSearch-v0" works without this line

env = gymnasium.make("MMSearch-v0")
"""

from __future__ import annotations

from mmsearch_env.actions import Action, ActionKind, Answer, ImageSearch, Malformed, TextSearch, VisitPage
from mmsearch_env.env import MMSearchEnv
from mmsearch_env.images import Image
from mmsearch_env.messages import ImagePart, Message, TextPart, to_openai
from mmsearch_env.questions import Question, QuestionSet
from mmsearch_env.registration import register_envs
from mmsearch_env.spaces import to_messages
from mmsearch_env.vector_env import MMSearchVectorEnv

__all__ = [
    "Action",
    "ActionKind",
    "Answer",
    "Image",
    "ImagePart",
    "ImageSearch",
    "MMSearchEnv",
    "MMSearchVectorEnv",
    "Malformed",
    "Message",
    "Question",
    "QuestionSet",
    "TextPart",
    "TextSearch",
    "VisitPage",
    "register_envs",
    "to_messages",
    "to_openai",
]

register_envs()
