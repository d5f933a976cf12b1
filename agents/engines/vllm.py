"""Sampling with vLLM, in this process and where its model is: the only file that imports vllm.

Tokens in, tokens out, as with transformers: the same prompts, banned tokens and ends, log-probabilities of the same
distribution. The base model is vLLM's own copy; the adapter is handed over as a folder, under a new name whenever it
has changed. Written against vLLM 0.33.0 and run with its build for processors (0.32.0); comments name its files where
something hangs on how they work.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import torch
from safetensors import SafetensorError

from agents.engines.contract import Asked, SamplingLimits
from agents.engines.reading import Prefix
from agents.engines.weights import SeenWeights
from agents.inputs import Row
from agents.lora import LoRASettings, adapter_is_on
from agents.renderer import ChatRenderer
from agents.scorer import TokenScorer, base_model
from agents.trajectory import Completion, FinishReason
from mmsearch_env.errors import PolicyError

INSTALLED_BY = "pip install 'vllm==0.33.*' (see docs/training.md)"
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.01, 2.0
"""vLLM raises what is lower, 0 aside, without being asked, and refuses what is higher (``sampling_params.py``)."""
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Room for an adapter's rank comes in these sizes (``config/lora.py``)."""
_LONGEST_REASON = 400
"""Characters; what vLLM says of a configuration may go on for pages."""
_LEAST_BATCHED = 4096
"""Tokens that are read at once, at least; vLLM's own default for a processor."""
_MOST_BANNED = 1024
"""Tokens a request may have a bias for (``v1/worker/gpu/sample/logit_bias.py``)."""


@dataclass(frozen=True, slots=True)
class VLLMSettings:
    """What vLLM needs to know beside the policy.

    Attributes:
        model: folder or hub id of the checkpoint that the policy was loaded from.
        memory: share of the memory where the model is that vLLM takes for itself, above 0 and below 1.
        rows: completions that are sampled at once at most.
    """

    model: str
    memory: float = 0.4
    rows: int = 256


class VLLMSampler:
    """Samples completions with an engine of vLLM."""

    def __init__(
        self,
        settings: VLLMSettings,
        scorer: TokenScorer,
        renderer: ChatRenderer,
        *,
        context: int,
        save_adapter: Callable[[Path], None],
    ) -> None:
        """
        Args:
            settings: of the engine.
            scorer: holds the model with its adapter, and the tokens that are never sampled.
            renderer: of the model's processor.
            context: tokens of a row and its completion at most.
            save_adapter: writes the adapter as it is now into a folder.

        Raises:
            PolicyError: vllm is not installed or does not start, or the model has no adapter.
        """
        self._model = scorer.model
        self._renderer = renderer
        self._weights = SeenWeights(scorer.model)
        self._save_adapter = save_adapter
        self._bias = _bias(scorer)
        self._engine = _started(_arguments(settings, scorer.model, renderer, context))
        self._numbers = itertools.count(1)
        self._adapter: Any = None

    @contextmanager
    def sampling(self, limits: SamplingLimits) -> Iterator[VLLMSampling]:
        """See :class:`agents.engines.contract.Sampler`."""
        temperature = limits.temperature
        if temperature and not LOWEST_TEMPERATURE <= temperature <= HIGHEST_TEMPERATURE:
            raise PolicyError(
                f"expected a temperature of 0 or from {LOWEST_TEMPERATURE} to {HIGHEST_TEMPERATURE}, got "
                f"{temperature}; vLLM takes no other"
            )
        with self._on_device():
            self._hand_over()
            running = VLLMSampling(self._engine, self._renderer, self._bias, self._adapter, limits, self._numbers)
            try:
                yield running
            finally:
                running.close()

    def forget(self, row: Row, ended: Sequence[Prefix]) -> None:
        """Nothing to do: vLLM lets go of what has not been used for longest."""

    def _on_device(self) -> AbstractContextManager[Any]:
        """Rollouts have threads of their own, and in a new thread the current device is the first one again."""
        device = next(self._model.parameters()).device
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

    def _hand_over(self) -> None:
        """Give vLLM the adapter, if it is another than before."""
        is_on = adapter_is_on(self._model)
        if not self._weights.have_changed() and (self._adapter is not None) == is_on:
            return
        if self._adapter is not None:
            gone, self._adapter = self._adapter, None
            self._engine.remove_lora(gone.lora_int_id)
        if is_on:
            self._adapter = self._new_adapter()
        # What was read under the old name would not be found under the new one and would only take room. Features of
        # pictures come from the frozen tower; they go with it, once, so that nothing hangs on that. The pixels stay.
        self._engine.reset_prefix_cache()
        self._engine.reset_encoder_cache()

    def _new_adapter(self) -> Any:
        """The adapter as it is now, loaded. Raises PolicyError if there is no room for it on the way."""
        from vllm.lora.request import LoRARequest

        # An id that was loaded once is not read again (lora/worker_manager.py), so each version has its own, and its
        # folder is needed no longer.
        number = next(self._numbers)
        try:
            with TemporaryDirectory(prefix="adapter-") as folder:
                self._save_adapter(Path(folder))
                adapter = LoRARequest(lora_name=f"adapter-{number}", lora_int_id=number, lora_path=folder)
                self._engine.add_lora(adapter)
        except (OSError, SafetensorError) as error:
            raise PolicyError(
                f"expected to hand the adapter to vLLM through {gettempdir()}, got {error}; make room there, or set "
                "TMPDIR to another folder"
            ) from error
        return adapter


class VLLMSampling:
    """Requests that vLLM works on; others may join at any time."""

    def __init__(
        self,
        engine: Any,
        renderer: ChatRenderer,
        bias: dict[int, float],
        adapter: Any,
        limits: SamplingLimits,
        numbers: Iterator[int],
    ) -> None:
        """Args: bias: what is added to a token's logit; adapter: None for the bare model; numbers: of requests."""
        self._engine, self._renderer, self._bias, self._adapter = engine, renderer, bias, adapter
        self._limits, self._numbers = limits, numbers
        self._running: dict[str, Asked] = {}

    def add(self, asked: Sequence[Asked]) -> list[str]:
        """Hand requests over; the name of each. Raises PolicyError if vLLM lays a picture out differently."""
        new = {str(next(self._numbers)): one for one in asked}
        for name, one in new.items():
            self._engine.add_request(name, self._rendered(one.whole), self._params(one), lora_request=self._adapter)
            self._running[name] = one
        return list(new)

    def step(self) -> list[tuple[str, Completion]]:
        """One more token of every completion; those that end with it."""
        ended = [output for output in self._engine.step() if output.finished]
        return [(output.request_id, self._completion(self._running.pop(output.request_id), output)) for output in ended]

    def close(self) -> None:
        """Give up what has not ended."""
        self._engine.abort_request(list(self._running))
        self._running.clear()

    def _rendered(self, row: Row) -> Any:
        """A row as vLLM takes it, after a look at what it made of it."""
        from vllm import TokensPrompt

        # vLLM replaces each placeholder of its own accord (multimodal/processing/processor.py), also one that is part
        # of a run; so a picture's slot is given as the template writes it.
        prompt = TokensPrompt(prompt_token_ids=self._renderer.folded(row.token_ids, row.images))
        if row.images:
            prompt["multi_modal_data"] = {"image": [image.to_pil() for image in row.images]}
            # Under these names processed pixels, features, keys and values are kept.
            prompt["multi_modal_uuids"] = {"image": [image.digest for image in row.images]}
        (rendered,) = self._engine.renderer.render_cmpl([prompt])
        if tuple(rendered["prompt_token_ids"]) != row.token_ids:
            raise PolicyError(
                f"expected vLLM to expand pictures into the {len(row.token_ids)} tokens of this policy's processor, "
                f"got {len(rendered['prompt_token_ids'])} or others; take engine 'hf' for this model"
            )
        return rendered

    def _params(self, asked: Asked) -> Any:
        """How one completion is sampled.

        The bias is added before temperature and softmax, by both of vLLM's samplers (``apply_logits_processors`` in
        ``v1/sample/sampler.py``, ``apply_sampling_params`` in ``v1/worker/gpu/sample/sampler.py``), and with
        ``processed_logprobs`` the log-probabilities are those after them: exactly :func:`agents.scorer.allowed_logits`.
        ``allowed_token_ids`` would do the same but may name 1024 tokens only. At temperature 0 neither divides.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            max_tokens=min(self._limits.max_new_tokens, asked.room),
            temperature=self._limits.temperature,
            top_p=1.0,
            top_k=-1,
            repetition_penalty=1.0,
            seed=asked.seed,
            logprobs=0,  # of the sampled token alone
            logit_bias=self._bias,
            stop=list(self._limits.stop_tags),
            include_stop_str_in_output=True,
            # Also with generation_config="vllm" the checkpoint's own end tokens would end a completion
            # (config/model.py); here those do that end it in training.
            stop_token_ids=sorted(self._renderer.end_ids),
            ignore_eos=True,
            skip_special_tokens=False,  # a stop tag may be one
            spaces_between_special_tokens=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _completion(self, asked: Asked, output: Any) -> Completion:
        (said,) = output.outputs
        if said.finish_reason not in ("stop", "length"):
            raise PolicyError(f"expected a completion that ends, got one that vLLM ended with {said.finish_reason!r}")
        ids = tuple(said.token_ids)
        logprobs = tuple(found[token].logprob for token, found in zip(ids, said.logprobs, strict=True))
        text = self._renderer.decode([*asked.forced, *ids])
        return Completion(text, ids, logprobs, FinishReason(said.finish_reason), asked.forced)


def _bias(scorer: TokenScorer) -> dict[int, float]:
    """Minus infinity for each token that is never sampled. Raises PolicyError for more than vLLM takes."""
    banned = scorer.banned.tolist()
    if len(banned) > _MOST_BANNED:
        raise PolicyError(
            f"expected at most {_MOST_BANNED} tokens that are never sampled, got {len(banned)}; take engine 'hf'"
        )
    return dict.fromkeys(banned, -math.inf)


def _arguments(settings: VLLMSettings, model: Any, renderer: ChatRenderer, context: int) -> dict[str, Any]:
    """Keywords of ``EngineArgs``."""
    rank = LoRASettings.of(model).rank
    if rank > RANKS[-1]:
        raise PolicyError(f"expected a LoRA rank of at most {RANKS[-1]}, got {rank}; vLLM takes no higher")
    return {
        "model": settings.model,
        "runner": "generate",
        "dtype": str(base_model(model).dtype).removeprefix("torch."),
        "max_model_len": context,
        "max_num_seqs": settings.rows,
        "gpu_memory_utilization": settings.memory,
        "enable_prefix_caching": True,
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": next(size for size in RANKS if size >= rank),
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "limit_mm_per_prompt": {"video": 0},
        "mm_processor_kwargs": _pixels(renderer.processor.image_processor),
        # Each process has a whole model: the engines of all processes join the trainer's own group, one
        # tensor-parallel group of one each.
        "distributed_executor_backend": "external_launcher" if _has_a_group() else "uni",
        "disable_log_stats": True,
        "seed": 0,
        **({} if torch.cuda.is_available() else _without_a_gpu(context)),
    }


def _without_a_gpu(context: int) -> dict[str, Any]:
    """After a part of a prompt vLLM winds a request's random numbers back (``v1/worker/gpu_model_runner.py``).

    Those of the CPU cannot be wound back, so there prompts are read whole.
    """
    return {"enable_chunked_prefill": False, "max_num_batched_tokens": max(context, _LEAST_BATCHED)}


def _has_a_group() -> bool:
    """Whether this process has, or will have, a place in the trainer's process group; else vLLM makes one of its own.

    That there is a group would not say so: vLLM's own outlives an engine.
    """
    return "RANK" in os.environ


def _pixels(image_processor: Any) -> dict[str, Any] | None:
    """How large pictures may be, where the family counts pixels; others have it in their checkpoint alone."""
    size = dict(image_processor.size)
    edges = {edge: size[edge] for edge in ("shortest_edge", "longest_edge") if size.get(edge)}
    return {"size": edges} if len(edges) == 2 else None


def _started(arguments: dict[str, Any]) -> Any:
    """An ``LLMEngine`` in this process. Raises PolicyError."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    # What goes wrong is raised; the rest would bury a run's progress. Who sets another level sees it.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        from vllm import EngineArgs, LLMEngine
    except ImportError as error:
        raise PolicyError(
            f"expected the package vllm for engine 'vllm', got {error}; {INSTALLED_BY}, or take engine 'hf'"
        ) from error
    try:
        engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
    except Exception as error:  # of many kinds, and all of them mean that
        raise PolicyError(
            f"expected vLLM to start with {arguments['model']!r}, got {_in_brief(error)}; it is given "
            f"{arguments['gpu_memory_utilization']:g} of the memory (rollout.engine_memory) for conversations of "
            f"{arguments['max_model_len']} tokens (rollout.max_context_tokens); take others, or engine 'hf'"
        ) from error
    if _has_a_group():
        # At its end it would destroy every process group, the trainer's too (v1/engine/core.py).
        engine.engine_core._finalizer.detach()
    return engine


def _in_brief(error: Exception) -> str:
    """An error on one line of reasonable length."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:_LONGEST_REASON]}"
