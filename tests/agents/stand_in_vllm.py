"""A stand-in for the package vllm: the same names, signatures and order of events, over tiny models of transformers.

It knows nothing of this project's inputs, scorer or sampler. A prompt's pictures are expanded as vLLM expands them;
each token comes of one plain forward pass over the whole row, pixels in; adapters are read from their folders by peft.
"""

from __future__ import annotations

import gc
import itertools
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel

MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {}
"""Path of a checkpoint -> what loads its model and its processor."""


class RequestOutputKind(Enum):
    """vllm/sampling_params.py."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@dataclass
class SamplingParams:
    """vllm/sampling_params.py: those fields, and those defaults, that are used here."""

    n: int = 1
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    logprobs: int | None = None
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    logit_bias: dict[int, float] | None = None


@dataclass
class LoRARequest:
    """vllm/lora/request.py."""

    lora_name: str
    lora_int_id: int
    lora_path: str = ""


@dataclass
class EngineArgs:
    """vllm/engine/arg_utils.py: those fields, and those defaults, that are used here."""

    model: str = "Qwen/Qwen3-0.6B"
    runner: str = "auto"
    dtype: str = "auto"
    seed: int = 0
    max_model_len: int | None = None
    distributed_executor_backend: str | None = None
    enable_prefix_caching: bool | None = None
    enable_chunked_prefill: bool | None = None
    max_num_batched_tokens: int | None = None
    gpu_memory_utilization: float = 0.92
    max_num_seqs: int | None = None
    logprobs_mode: str = "raw_logprobs"
    disable_log_stats: bool = False
    limit_mm_per_prompt: dict[str, int] = field(default_factory=dict)
    mm_processor_kwargs: dict[str, Any] | None = None
    enable_lora: bool = False
    max_loras: int = 1
    max_lora_rank: int = 16
    generation_config: str = "auto"


class TokensPrompt(dict[str, Any]):
    """vllm/inputs/llm.py."""


@dataclass
class Logprob:
    """vllm/logprobs.py."""

    logprob: float


@dataclass
class _Request:
    name: str
    prompt: dict[str, Any]
    params: SamplingParams
    adapter: LoRARequest | None
    stream: torch.Generator
    ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    text: str = ""


class LLMEngine:
    """vllm/v1/engine/llm_engine.py."""

    started: list[LLMEngine] = []  # noqa: RUF012  # the tests look at them

    def __init__(self, args: EngineArgs) -> None:
        self.args = args
        self._model, self.processor = MODELS[args.model]()
        self._model.eval()
        self.renderer = SimpleNamespace(render_cmpl=self._render_cmpl)
        self._waiting: list[_Request] = []
        self._running: list[_Request] = []
        self.adapters: dict[int, LoRARequest] = {}
        self.events: list[str] = []
        self.prompts: list[TokensPrompt] = []
        self.params: list[SamplingParams] = []
        # v1/engine/core_client.py: what is called when the engine is gone; it ends every process group.
        self.engine_core = SimpleNamespace(_finalizer=weakref.finalize(self, gc.collect))
        LLMEngine.started.append(self)

    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs) -> LLMEngine:
        return cls(engine_args)

    def _render_cmpl(self, prompts: list[TokensPrompt]) -> list[dict[str, Any]]:
        self.prompts += prompts
        return [self._expanded(prompt) for prompt in prompts]

    def _expanded(self, prompt: TokensPrompt) -> dict[str, Any]:
        """multimodal/processing/processor.py: each picture's target token is replaced, wherever it is found next."""
        pictures = prompt.get("multi_modal_data", {}).get("image", [])
        names = prompt.get("multi_modal_uuids", {}).get("image", [])
        assert len(names) == len(pictures)
        tokenizer, slot = self.processor.tokenizer, _slot(self.processor)
        narrow = tokenizer.encode(slot, add_special_tokens=False)
        target = tokenizer.convert_tokens_to_ids("<|image_pad|>")
        before, after = narrow.index(target), len(narrow) - narrow.index(target) - 1
        ids, start = list(prompt["prompt_token_ids"]), 0
        for picture in pictures:
            wide = list(self.processor(text=[slot], images=[[picture]], add_special_tokens=False)["input_ids"][0])
            place, filled = ids.index(target, start), wide[before : len(wide) - after]
            ids[place : place + 1] = filled
            start = place + len(filled)
        return {"type": "multimodal" if pictures else "token", "prompt_token_ids": ids, "pictures": pictures}

    def add_request(
        self,
        request_id: str,
        prompt: dict[str, Any],
        params: SamplingParams,
        arrival_time: float | None = None,
        lora_request: LoRARequest | None = None,
    ) -> str:
        assert "type" in prompt and len(prompt["prompt_token_ids"]) < (self.args.max_model_len or 0)
        assert 0 <= params.temperature <= 2 and (params.top_p, params.repetition_penalty) == (1, 1)
        assert params.top_k in (0, -1) and params.seed is not None and params.max_tokens and params.n == 1
        self.params.append(params)
        stream = torch.Generator().manual_seed(params.seed)
        self._waiting.append(_Request(request_id, prompt, params, lora_request, stream))
        return f"{request_id}-internal"

    def step(self) -> list[SimpleNamespace]:
        room = (self.args.max_num_seqs or 256) - len(self._running)
        self._running += self._waiting[:room]
        del self._waiting[:room]
        outputs = []
        for request in list(self._running):
            self._sample(request)
            reason = self._reason(request)
            if reason:
                self._running.remove(request)
            if reason or request.params.output_kind is not RequestOutputKind.FINAL_ONLY:
                said = SimpleNamespace(
                    text=request.text, token_ids=request.ids, logprobs=request.logprobs, finish_reason=reason
                )
                outputs.append(SimpleNamespace(request_id=request.name, finished=bool(reason), outputs=[said]))
        return outputs

    def abort_request(self, request_ids: list[str], internal: bool = False) -> None:
        self._waiting = [one for one in self._waiting if one.name not in request_ids]
        self._running = [one for one in self._running if one.name not in request_ids]

    def has_unfinished_requests(self) -> bool:
        return bool(self._waiting or self._running)

    def add_lora(self, lora_request: LoRARequest) -> bool:
        """lora/worker_manager.py: what has an id that is loaded is not loaded again."""
        if lora_request.lora_int_id in self.adapters:
            return True
        assert self.args.enable_lora and len(self.adapters) < self.args.max_loras
        name = str(lora_request.lora_int_id)
        with warnings.catch_warnings():  # peft still asks the model by names that transformers has deprecated
            warnings.simplefilter("ignore", FutureWarning)
            if isinstance(self._model, PeftModel):
                self._model.load_adapter(lora_request.lora_path, name)
            else:
                self._model = PeftModel.from_pretrained(self._model, lora_request.lora_path, name)
        assert self._model.peft_config[name].r <= self.args.max_lora_rank
        self.adapters[lora_request.lora_int_id] = lora_request
        self.events.append("adapter")
        return True

    def remove_lora(self, lora_id: int) -> bool:
        return self.adapters.pop(lora_id, None) is not None

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        self.events.append("prefix")
        return True

    def reset_encoder_cache(self) -> None:
        self.events.append("encoder")

    @torch.no_grad()
    def _sample(self, request: _Request) -> None:
        """v1/sample/sampler.py, in its order: raw log-probabilities, bias, greedy, temperature, a draw."""
        logits, params = self._logits(request).float(), request.params
        raw = logits.log_softmax(-1)
        for token, bias in (params.logit_bias or {}).items():
            logits[token] += bias
        logits = logits / (params.temperature or 1.0)
        processed = logits.log_softmax(-1)
        token = int(processed.argmax() if params.temperature == 0 else _drawn(processed, request.stream))
        shown = processed if self.args.logprobs_mode == "processed_logprobs" else raw
        request.ids.append(token)
        if params.logprobs is not None:
            likeliest = shown.topk(params.logprobs).indices.tolist()
            request.logprobs.append({one: Logprob(float(shown[one])) for one in (token, *likeliest)})

    def _logits(self, request: _Request) -> torch.Tensor:
        model = self._model
        if request.adapter is not None:
            assert request.adapter.lora_int_id in self.adapters
            model.set_adapter(str(request.adapter.lora_int_id))
        ids = torch.tensor([[*request.prompt["prompt_token_ids"], *request.ids]])
        inputs = self._pixels(request.prompt["pictures"])
        pad = self.processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        with model.disable_adapter() if request.adapter is None and isinstance(model, PeftModel) else _nothing():
            inner = model.get_base_model() if isinstance(model, PeftModel) else model
            inner.model.rope_deltas = None
            types = (ids == pad).int()
            logits = inner(input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=types, **inputs).logits
        return logits[0, -1]

    def _pixels(self, pictures: list[Any]) -> dict[str, Any]:
        """multimodal/processing/processor.py: what the family's own processor makes of them."""
        if not pictures:
            return {}
        text = self.processor.image_token * len(pictures)
        kwargs = self.args.mm_processor_kwargs or {}
        made = self.processor(text=[text], images=[pictures], return_tensors="pt", **kwargs)
        return {name: made[name] for name in ("pixel_values", "image_grid_thw") if name in made}

    def _reason(self, request: _Request) -> str | None:
        """v1/core/sched/utils.py (check_stop), then v1/engine/detokenizer.py: stop texts are sought in what is new."""
        params, token, tokenizer = request.params, request.ids[-1], self.processor.tokenizer
        text = tokenizer.decode(request.ids, skip_special_tokens=params.skip_special_tokens)
        new, request.text = len(text) - len(request.text), text
        if any(tag in text[max(0, len(text) - new - len(tag) + 1) :] for tag in params.stop or []):
            return "stop"
        if token in (params.stop_token_ids or []) or (token == tokenizer.eos_token_id and not params.ignore_eos):
            return "stop"
        full = len(request.prompt["prompt_token_ids"]) + len(request.ids) >= (self.args.max_model_len or 0)
        return "length" if full or len(request.ids) >= (params.max_tokens or 0) else None


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _drawn(logprobs: torch.Tensor, stream: torch.Generator) -> torch.Tensor:
    return torch.multinomial(logprobs.exp(), 1, generator=stream)[0]


def _slot(processor: Any) -> str:
    """What the chat template writes for a picture."""
    chat = [{"role": "user", "content": [{"type": "image"}]}]
    text = processor.tokenizer.apply_chat_template(chat, chat_template=processor.chat_template, tokenize=False)
    framed = "<|vision_start|><|image_pad|><|vision_end|>"
    return framed if framed in text else "<|image_pad|>"


@contextmanager
def installed() -> Iterator[type[LLMEngine]]:
    """Inside, ``import vllm`` gives this."""
    package = ModuleType("vllm")
    lora, request, params = (ModuleType(f"vllm.{name}") for name in ("lora", "lora.request", "sampling_params"))
    for one in (EngineArgs, LLMEngine, SamplingParams, TokensPrompt):
        setattr(package, one.__name__, one)
    request.LoRARequest, params.RequestOutputKind = LoRARequest, RequestOutputKind  # type: ignore[attr-defined]
    names = itertools.chain([package], (lora, request, params))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING", raising=False)
        for module in names:
            patch.setitem(sys.modules, module.__name__, module)
        yield LLMEngine
        LLMEngine.started.clear()
