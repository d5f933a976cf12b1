"""Log-probabilities of sampled tokens: the module whose forward pass the trainer differentiates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from agents.critic import ValueHead
from agents.inputs import PackedInputs
from mmsearch_env.errors import PolicyError

LOGITS_AT_ONCE = 256
"""Tokens whose logits are held at the same time."""


class TokenScores(NamedTuple):
    """Scores at sampled tokens, 0 elsewhere."""

    logprobs: Tensor
    """(B, T): log-probability of token t given the tokens before it."""
    entropy: Tensor
    """(B, T): entropy of the distribution token t was drawn from, in nats."""
    values: Tensor | None = None
    """(B, T): the critic's value of the state in which token t was sampled; None without a critic."""
    last_values: Tensor | None = None
    """(B,): of the state after the last sampled token; only where values alone were wanted."""


class TokenScorer(nn.Module):
    """Wraps the model so that a data-parallel engine sees one forward call.

    Logits are made only where a token was sampled, and are not kept. Tokens that may never be sampled are excluded here
    exactly as in the sampler, so both renormalise over the same set.
    """

    banned: Tensor

    def __init__(self, model: nn.Module, banned_ids: Iterable[int], critic: ValueHead | None = None) -> None:
        """
        Args:
            model: image-text-to-text model, adapter included.
            banned_ids: tokens that are never sampled.
            critic: values states.
        """
        super().__init__()
        self.model = model
        self.critic = critic
        device = next(model.parameters()).device
        banned = torch.tensor(sorted(banned_ids), dtype=torch.long, device=device)
        self.register_buffer("banned", banned, persistent=False)

    def forward(
        self,
        inputs: Mapping[str, Any] | PackedInputs,
        loss_mask: Tensor,
        temperature: float = 1.0,
        wanted: Literal["scores", "values"] = "scores",
    ) -> TokenScores:
        """Score the tokens where ``loss_mask`` (B, T) is True; ``inputs`` come from ``LMMPolicy.forward_inputs``.

        With ``wanted="values"`` log-probabilities and entropies are left 0 and the states after the last sampled tokens
        are valued too.
        """
        shape = inputs.shape if isinstance(inputs, PackedInputs) else inputs["input_ids"].shape
        if loss_mask.shape != shape:
            raise ValueError(f"expected a loss_mask of shape {tuple(shape)}, got {tuple(loss_mask.shape)}")
        rows, columns = loss_mask.nonzero(as_tuple=True)
        if wanted == "values":
            return self._valued(inputs, loss_mask, rows, columns)
        before, targets = self._before(inputs, loss_mask, rows, columns)
        scores = [
            self._score(before[start : start + LOGITS_AT_ONCE], targets[start : start + LOGITS_AT_ONCE], temperature)
            for start in range(0, len(targets), LOGITS_AT_ONCE)
        ]
        logprobs = before.new_zeros(loss_mask.shape, dtype=torch.float32)
        entropy = torch.zeros_like(logprobs)
        if scores:
            logprobs = logprobs.index_put((rows, columns), torch.cat([score[0] for score in scores]))
            entropy = entropy.index_put((rows, columns), torch.cat([score[1] for score in scores]))
        if self.critic is None:
            return TokenScores(logprobs, entropy)
        values = torch.zeros_like(logprobs).index_put((rows, columns), self.critic(before))
        return TokenScores(logprobs, entropy, values)

    def _valued(
        self, inputs: Mapping[str, Any] | PackedInputs, loss_mask: Tensor, rows: Tensor, columns: Tensor
    ) -> TokenScores:
        """The critic's values alone, without a logit."""
        if self.critic is None:
            raise PolicyError("expected a policy with a critic, got none; load it with critic=CriticSettings()")
        count = loss_mask.shape[0]
        every = torch.arange(count, device=rows.device)
        after = torch.zeros(count, dtype=columns.dtype, device=rows.device).scatter_reduce(
            0, rows, columns + 1, reduce="amax"
        )
        before, _ = self._before(inputs, loss_mask, torch.cat([rows, every]), torch.cat([columns, after]))
        found = self.critic(before)
        nothing = before.new_zeros(loss_mask.shape, dtype=torch.float32)
        values = nothing.index_put((rows, columns), found[: len(rows)])
        return TokenScores(nothing, nothing, values, found[len(rows) :])

    def _before(
        self, inputs: Mapping[str, Any] | PackedInputs, loss_mask: Tensor, rows: Tensor, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Hidden states (N, width) before the tokens at these places, and the tokens (N,).

        A place may be that after a row's last token; its token is any then.
        """
        if isinstance(inputs, PackedInputs):
            return self._packed(inputs, rows, columns)
        return self._whole(inputs, loss_mask, rows, columns)

    def _whole(
        self, inputs: Mapping[str, Any], loss_mask: Tensor, rows: Tensor, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        """With every row by itself."""
        ids = inputs["input_ids"]
        # Right padding needs no mask: causal attention never looks ahead.
        kept = {key: value for key, value in inputs.items() if key != "attention_mask"}
        hidden: Tensor = base_model(self.model).model(**kept, use_cache=False).last_hidden_state
        return hidden[rows, columns - 1], ids[rows, columns.clamp(max=ids.shape[1] - 1)]

    def _packed(self, inputs: PackedInputs, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """With all rows as one."""
        hidden: Tensor = base_model(self.model).model(**inputs.packed, use_cache=False).last_hidden_state
        ids = inputs.packed["input_ids"]
        return hidden[0, inputs.places(rows, columns - 1)], _at(ids[0], inputs.places(rows, columns))

    def _score(self, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        head = base_model(self.model).lm_head
        if head.weight.requires_grad or getattr(head, "bias", None) is not None:
            return _scored(head(hidden), targets, self.banned, temperature)
        scored: tuple[Tensor, Tensor] = _through_frozen_head(hidden, head.weight, targets, self.banned, temperature)
        return scored


class _FrozenHead(torch.autograd.Function):
    """Log-probabilities through a head that is not trained: the gradient is made with them, so no logits are kept.

    For the logits z = W h / τ and the log-probability of token y, ∂/∂h = (W_y - Σᵥ p_v W_v) / τ, with one row less than
    a vocabulary's width for each token.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, banned: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """(N,) log-probabilities and entropies."""
        logprobs, entropy, probabilities = _distribution(hidden @ weight.T, targets, banned, temperature)
        if ctx.needs_input_grad[0]:
            slope = weight[targets] - probabilities.to(weight.dtype) @ weight
            ctx.save_for_backward(slope.div_(temperature))
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Of the log-probabilities; the entropy has none."""
        (slope,) = ctx.saved_tensors
        return (grads[0][:, None].to(slope.dtype) * slope, None, None, None, None)


_through_frozen_head: Any = _FrozenHead.apply


def _scored(logits: Tensor, targets: Tensor, banned: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    scaled = allowed_logits(logits.float(), banned, temperature).log_softmax(-1)
    chosen = scaled.gather(-1, targets[:, None])[:, 0]
    with torch.no_grad():
        entropy = -(scaled.exp() * scaled.clamp(min=-1e9)).sum(-1)
    return chosen, entropy


def _distribution(logits: Tensor, targets: Tensor, banned: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """The same without gradient, and the probabilities (N, V); as few passes over the logits as possible."""
    scaled = allowed_logits(logits.float(), banned, temperature)
    total = scaled.logsumexp(-1)
    chosen = scaled.gather(-1, targets[:, None])[:, 0] - total
    probabilities = scaled.sub(total[:, None]).exp_()
    # Σ p log p = Σ p z - log Σ exp z; where a token is banned, p is 0 and z is not finite.
    mean = (probabilities * scaled.nan_to_num_(neginf=0.0)).sum(-1)
    return chosen, total - mean, probabilities


def _at(ids: Tensor, places: Tensor) -> Tensor:
    return ids[places.clamp(max=len(ids) - 1)]


def allowed_logits(logits: Tensor, banned: Tensor, temperature: float) -> Tensor:
    """Logits (N, V) divided by the temperature, minus infinity at banned tokens. Used by sampler and scorer alike."""
    return (logits / temperature).index_fill(-1, banned, float("-inf"))


def base_model(model: nn.Module) -> Any:
    """The transformers model under an adapter wrapper, or the model itself."""
    unwrap: Any = getattr(model, "get_base_model", None)
    return model if unwrap is None else unwrap()


def checkpoint_activations(model: nn.Module) -> None:
    """Have a model, with or without adapter, make activations anew for the gradient in place of keeping them."""
    base = base_model(model)
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    enable({"use_reentrant": False})
