"""Who plays and under which rules: what the commands of this package are told, or what a training run was told."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self

from agents.engines.contract import SamplingLimits
from agents.engines.endpoint import EndpointPolicy
from agents.lmm import LMMPolicy
from agents.lora import LoRASettings
from agents.policy import Policy
from agents.rollout import MakeEnv
from agents.workflows import Workflow
from mmsearch_env.env import MMSearchEnv
from mmsearch_env.errors import DataError
from mmsearch_env.net.secret import read_secret

RECIPE_FILE = "recipe.json"
ADAPTER_FOLDER = "adapter"
BRIEF = {"prompts": "brief", "image_top_k": 3, "text_top_k": 3}
"""The environment's settings for the bundled model."""


def model_folder(model: str) -> Path:
    """The folder of a bundled checkpoint of this name, or the name itself as a path."""
    bundled = Path(str(files("agents"))) / "checkpoints" / model
    return bundled if bundled.is_dir() else Path(model)


@dataclass(frozen=True, slots=True)
class Playing:
    """A model and the environment it plays.

    Attributes:
        model: bundled name, folder or hub id.
        adapter: folder of a LoRA adapter to put on it; None for the bare model.
        dtype: number format of the weights.
        device: where it computes.
        system: system message of every conversation; "" for the template's own.
        max_new_tokens: tokens of a completion at most.
        max_context_tokens: tokens of a conversation at most.
        temperature: of sampling; 0 takes the likeliest token.
        env: keywords of ``MMSearchEnv``, questions left out.
        endpoint: address of an OpenAI-compatible end point where ``model`` is; "" for weights in this process.
        key_variable: environment variable with the end point's key; "" where it asks for none.
    """

    model: str = "atlas-tiny"
    adapter: Path | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "cpu"
    system: str = ""
    max_new_tokens: int = 64
    max_context_tokens: int = 1024
    temperature: float = 0.0
    env: Mapping[str, Any] = field(default_factory=lambda: {"world": "atlas", **BRIEF})
    endpoint: str = ""
    key_variable: str = ""

    @classmethod
    def of_run(cls, folder: Path, *, device: str) -> Self:
        """The trained policy of a run's folder, in the environment it was trained in, sampling as it was evaluated.

        Raises:
            DataError: the folder is no run's, or the run has not ended.
        """
        try:
            recipe = json.loads((folder / RECIPE_FILE).read_text(encoding="utf-8"))
            policy, env, limits = recipe["policy"], recipe["env"], recipe["rollout"]
            temperature = float(recipe["evaluation"]["temperature"])
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"{folder}: expected the folder of a training run, got {error!r}; check the path"
            ) from error
        if not (folder / ADAPTER_FOLDER).is_dir():
            raise DataError(f"{folder}: expected a finished run with an adapter, got none; let the training end first")
        return cls(
            model=policy["model"],
            adapter=folder / ADAPTER_FOLDER,
            dtype=policy["dtype"],
            device=device,
            system=policy["system"],
            max_new_tokens=limits["max_new_tokens"],
            max_context_tokens=limits["max_context_tokens"],
            temperature=temperature,
            env={k: v for k, v in env.items() if k not in ("split", "questions", "tools", "judge")}
            | {"tools": env["tools"] or None, "judge": env.get("judge") or None},
        )

    @property
    def folder(self) -> Path:
        """See :func:`model_folder`."""
        return model_folder(self.model)

    def conditions(self) -> dict[str, Any]:
        """What labels are measured under besides the weights, as plain data; the questions name their world."""
        env = {name: value for name, value in sorted(self.env.items()) if name != "world"}
        limits = {"max_new_tokens": self.max_new_tokens, "max_context_tokens": self.max_context_tokens}
        return {"env": env, "system": self.system, "dtype": self.dtype, **limits}

    @contextmanager
    def player(self) -> Iterator[Policy]:
        """The model, here or behind its end point, ready to play. Raises PolicyError, ConfigError."""
        if not self.endpoint:
            yield self.policy()
            return
        secret = read_secret(variable=self.key_variable) if self.key_variable else None
        with closing(
            EndpointPolicy(self.endpoint, self.model, limits=self._limits, secret=secret, system=self.system)
        ) as policy:
            yield policy

    @property
    def _limits(self) -> SamplingLimits:
        return SamplingLimits(max_new_tokens=self.max_new_tokens, temperature=self.temperature)

    def policy(self) -> LMMPolicy:
        """The model in this process. Raises PolicyError."""
        policy = LMMPolicy.load(
            self.folder if self.folder.is_dir() else self.model,
            lora=None if self.adapter is None else LoRASettings.stored(self.adapter),
            dtype=self.dtype,
            device=self.device,
            limits=self._limits,
            max_context_tokens=self.max_context_tokens,
            system=self.system,
        )
        if self.adapter is not None:
            policy.load_adapter(self.adapter)
        return policy

    def make_env(self, workflow: Workflow) -> MakeEnv:
        """Makes environments with the rules of a workflow; the questions are given with each reset."""
        return partial(MMSearchEnv, **{**self.env, **workflow.rules})
