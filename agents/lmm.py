"""A large multimodal model with a LoRA adapter, as a policy.

    policy = LMMPolicy.load("agents/checkpoints/atlas-tiny", lora=LoRASettings())

The same object samples (:meth:`LMMPolicy.generate`) and is trained (:attr:`LMMPolicy.scorer`): sampler and trainer
share tokens, positions, vision features and adapter. The reference policy is the same model with the adapter off.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from transformers import AutoModelForImageTextToText

from agents.critic import CriticSettings, ValueHead
from agents.engines.contract import Sampler, Sampling, SamplingLimits, sampled
from agents.engines.hf import HFSampler
from agents.engines.reading import end_of, ends_of
from agents.engines.vllm import VLLMSampler, VLLMSettings
from agents.given import Given, played, row_of
from agents.inputs import InputBuilder, PackedInputs, Row
from agents.layout import RowLayout
from agents.linear import multiply_with_onednn
from agents.lora import LoRASettings, read_adapter, with_adapter
from agents.policy import CONTEXT_FULL, UNREADABLE_PICTURE, CannotReply, Desk, Reply, Request
from agents.processors import load_processor
from agents.renderer import ChatRenderer, Prompt
from agents.scorer import TokenScorer, base_model, checkpoint_activations
from agents.trajectory import Completion, FinishReason, Trajectory, Turn
from agents.workflows import FREE, parted
from mmsearch_env.errors import ConfigError, ImageError, PolicyError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LEAST_SAID = 16
"""Tokens for which a context must have room; with less nothing of use can be said."""


class LMMPolicy:
    """Plays and is trained."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        limits: SamplingLimits | None = None,
        max_context_tokens: int = 8192,
        system: str = "",
        critic: CriticSettings | None = None,
        pictures_of: LMMPolicy | None = None,
        engine: VLLMSettings | None = None,
    ) -> None:
        """
        Args:
            model: image-text-to-text model, with or without adapter.
            processor: its processor.
            limits: how completions are sampled.
            max_context_tokens: of a conversation.
            system: message put before every conversation.
            critic: for a policy whose states are valued too.
            pictures_of: a policy with the same vision tower, whose features of pictures serve this one too.
            engine: for a policy that samples with vLLM; by default it does with transformers.
        """
        multiply_with_onednn(model)
        self.model = model
        self.renderer = ChatRenderer(processor, system=system)
        self.limits = limits or SamplingLimits()
        if max_context_tokens <= self.limits.max_new_tokens:
            raise ConfigError(
                f"max_context_tokens: expected more than max_new_tokens ({self.limits.max_new_tokens}), got "
                f"{max_context_tokens}; no prompt would fit"
            )
        self.max_context_tokens = max_context_tokens
        like = None if pictures_of is None else pictures_of.builder
        self.builder: InputBuilder = InputBuilder(base_model(model), self.renderer, like=like)
        banned = self.renderer.control_ids - self.renderer.end_ids
        width = base_model(model).config.get_text_config().hidden_size
        head = None if critic is None else ValueHead(width, critic).to(next(model.parameters()).device)
        self.scorer = TokenScorer(model, banned, head)
        self._sampler: Sampler = (
            HFSampler(self.scorer, self.renderer, self.builder)
            if engine is None
            else VLLMSampler(
                engine, self.scorer, self.renderer, context=max_context_tokens, save_adapter=self.save_adapter
            )
        )
        self._layout = RowLayout(self.builder, self.scorer)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        lora: LoRASettings | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        device: str = "cpu",
        seed: int = 0,
        attention: Literal["sdpa", "flash_attention_2"] = "sdpa",
        **settings: Any,
    ) -> Self:
        """A checkpoint folder or a hub id whose files are at hand; with ``lora`` a fresh adapter is added.

        Raises:
            PolicyError: no such checkpoint, or not an image-text-to-text model.
        """
        processor = load_processor(path)
        try:
            model = AutoModelForImageTextToText.from_pretrained(
                str(path), dtype=_DTYPES[dtype], attn_implementation=attention
            )
        except ImportError as error:
            raise PolicyError(
                f"expected what attention {attention!r} needs, got {error}; install it or take 'sdpa'"
            ) from error
        except (OSError, ValueError) as error:
            raise PolicyError(
                f"expected an image-text-to-text checkpoint at {str(path)!r}, got {type(error).__name__}: {error}; "
                "give a checkpoint folder or download the model first"
            ) from error
        model = model.to(device)
        if lora is not None:
            torch.manual_seed(seed)
            model = with_adapter(model, lora)
        return cls(model, processor, **settings)

    def twin(self) -> Self:
        """A policy that plays, with transformers, while this one is trained; what is frozen is shared."""
        # Parameters of their own over the same memory: while a twin samples, its weights may be others for a while.
        shared = {
            id(parameter): torch.nn.Parameter(parameter.data, requires_grad=False)
            for parameter in self.model.parameters()
            if not parameter.requires_grad
        }
        return type(self)(
            copy.deepcopy(self.model, shared),
            self.renderer.processor,
            limits=self.limits,
            max_context_tokens=self.max_context_tokens,
            system=self.renderer.system,
            pictures_of=self,
        )

    @torch.no_grad()
    def catch_up(self, other: LMMPolicy) -> None:
        """Take over the adapter's weights of the policy this is a twin of."""
        for own, theirs in zip(self._adapter_parameters(), other._adapter_parameters(), strict=True):
            own.copy_(theirs)

    # -- playing ------------------------------------------------------------------------------------------------

    def generate(self, requests: Sequence[Request]) -> list[Reply | CannotReply]:
        """One completion for each waiting episode; see :class:`agents.policy.Policy`."""
        asked = self._begun([self._asked(request) for request in requests])
        said = iter(self._said([found for found in asked if not isinstance(found, CannotReply)]))
        for found in asked:
            if isinstance(found, Given) and found.begun is not None:
                self._sampler.forget(found.begun, (end_of(found.begun),))
        return [
            found if isinstance(found, CannotReply) else Reply(next(said), found.prompt.token_ids, found.prompt.images)
            for found in asked
        ]

    def serve(self, desk: Desk, *, most: int) -> None:
        """Reply to each request as soon as its completion has ended; others join in the middle.

        Raises:
            PolicyError: a request has a script.
        """
        with self._sampler.sampling(self.limits) as sampling:
            waiting: dict[Hashable, tuple[int, Given]] = {}
            while True:
                for turns in desk.over():
                    self.forget(turns)
                self._take_on(desk, sampling, waiting, most)
                if not waiting:
                    return
                for key, said in sampling.step():
                    number, given = waiting.pop(key)
                    desk.answer(number, Reply(said, given.prompt.token_ids, given.prompt.images))

    def _take_on(self, desk: Desk, sampling: Sampling, waiting: dict[Hashable, tuple[int, Given]], most: int) -> None:
        """Begin with the requests that have come."""
        taken: list[tuple[int, Given]] = []
        for number, request in desk.take(most - len(waiting)):
            if request.script != FREE:
                raise PolicyError("expected free play, got a scripted turn; play plans with the batching 'together'")
            given = self._asked(request)
            if isinstance(given, CannotReply):
                desk.answer(number, given)
            else:
                taken.append((number, given))
        if taken:
            keys = sampling.add([given.sampled(given.request.seed, self.max_context_tokens) for _, given in taken])
            waiting.update(zip(keys, taken, strict=True))

    def forget(self, turns: Sequence[Turn]) -> None:
        """Let go of the keys and values of an episode that is over."""
        self._sampler.forget(played(turns), ends_of(turns))

    def _asked(self, request: Request) -> Given | CannotReply:
        """What the model is given for a request, if it can be given."""
        try:
            prompt = self._prompt(request)
        except ImageError as error:
            return CannotReply(UNREADABLE_PICTURE, str(error))
        return self._fitting(Given(request, prompt, row_of(request, prompt)))

    def _begun(self, asked: Sequence[Given | CannotReply]) -> list[Given | CannotReply]:
        """The same, each scripted turn with what it begins with: a reason sampled here, and the script's action."""
        begun = list(asked)
        scripted = [
            (index, found)
            for index, found in enumerate(asked)
            if not isinstance(found, CannotReply) and found.request.script.action
        ]
        ends = sorted({found.request.script.reason_end for _, found in scripted})
        reasons = sampled(
            self._sampler,
            # Not the seeds of what follows, or both would be drawn from the same numbers.
            [found.sampled(found.request.seed + 1, self.max_context_tokens) for _, found in scripted],
            replace(self.limits, stop_tags=(*self.limits.stop_tags, *ends)),
        )
        for (index, found), said in zip(scripted, reasons, strict=True):
            reason, rest = parted(said.text, found.request.script.reason_end)
            # A token may hold more than the end of the reason; only then the reason is written anew without it.
            start = said.token_ids if reason and not rest else self.renderer.text_ids(reason)
            forced = (*start, *self.renderer.text_ids(found.request.script.action))
            read = Row((*found.row.token_ids, *said.token_ids), found.row.images)
            begun[index] = self._fitting(replace(found, forced=forced, begun=read))
        return begun

    def _fitting(self, asked: Given) -> Given | CannotReply:
        """The same if there is room in the context for something to be said."""
        room = self.max_context_tokens - _LEAST_SAID
        if asked.length <= room:
            return asked
        return CannotReply(CONTEXT_FULL, f"expected at most {room} tokens, got {asked.length}")

    def _said(self, asked: Sequence[Given]) -> list[Completion]:
        """The completions; a turn that is scripted whole is not sampled."""
        free = [found for found in asked if not found.request.script.is_whole]
        said = iter(
            sampled(
                self._sampler,
                [found.sampled(found.request.seed, self.max_context_tokens) for found in free],
                self.limits,
            )
        )
        return [
            Completion(self.renderer.decode(found.forced), (), (), FinishReason.STOP, found.forced)
            if found.request.script.is_whole
            else next(said)
            for found in asked
        ]

    def _prompt(self, request: Request) -> Prompt:
        """What the new messages add to the tokens of the turns already played."""
        if not request.turns:
            return self.renderer.prompt(request.new_messages)
        return self.renderer.extension(request.new_messages, request.turns[-1].completion)

    # -- being trained ------------------------------------------------------------------------------------------

    def forward_inputs(self, trajectories: Sequence[Trajectory]) -> Mapping[str, Any] | PackedInputs:
        """What :attr:`scorer` needs for whole trajectories: all in one row, what some have in common only once."""
        return self._layout.forward_inputs(trajectories)

    def whole_inputs(self, trajectories: Sequence[Trajectory]) -> dict[str, Any]:
        """The same with every trajectory by itself, right-padded. ``input_ids`` is (B, T)."""
        return self._layout.whole_inputs(trajectories)

    def packs(self, trajectories: Sequence[Trajectory]) -> bool:
        """Whether these are packed into one row, a prompt that several have in common once."""
        return self._layout.packs(trajectories)

    def checkpoint_activations(self) -> None:
        """Have activations made anew for the gradient, in place of keeping them: less memory, about a third slower."""
        checkpoint_activations(self.model)
        self._layout.forget_comparison()

    def trainable_parameters(self) -> list[torch.nn.Parameter]:
        """The parameters that training changes."""
        return [parameter for parameter in self.scorer.parameters() if parameter.requires_grad]

    def _adapter_parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the model is the reference policy: its adapter is off.

        Raises:
            PolicyError: the model has no adapter, so there is no reference to switch to.
        """
        if not hasattr(self.model, "disable_adapter"):
            raise PolicyError(
                "expected a policy with a LoRA adapter, got a bare model; load it with lora=LoRASettings()"
            )
        with self.model.disable_adapter():
            yield

    def save_adapter(self, folder: str | Path) -> None:
        """Write the adapter in PEFT's own format, readable by plain ``peft`` and by vLLM; a critic beside it."""
        self.model.save_pretrained(str(folder), safe_serialization=True)
        if self.scorer.critic is not None:
            self.scorer.critic.save(Path(folder))

    def load_adapter(self, folder: str | Path) -> None:
        """Read adapter weights written by :meth:`save_adapter` into this policy's adapter.

        Raises:
            PolicyError: the folder holds no adapter, or one of another shape.
        """
        read_adapter(self.model, Path(folder))
        if self.scorer.critic is not None:
            self.scorer.critic.load(Path(folder))
