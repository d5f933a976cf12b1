"""Log-probabilities of sampled tokens: the module whose forward pass the trainer differentiates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_CHUNK = 4096


class TokenScores(NamedTuple):
    """Scores at sampled tokens, 0 elsewhere."""

    logprobs: Tensor
    """(B, T): log-probability of token t given the tokens before it."""
    entropy: Tensor
    """(B, T): entropy of the distribution token t was drawn from, in nats."""


class TokenScorer(nn.Module):
    """Wraps the model so that a data-parallel engine sees one forward call.

    Logits are made only where a token was sampled. Tokens that may never be sampled are excluded here exactly as in
    the sampler, so both renormalise over the same set.
    """

    banned: Tensor

    def __init__(self, model: nn.Module, banned_ids: Iterable[int]) -> None:
        """Args: model: image-text-to-text model, adapter included; banned_ids: tokens that are never sampled."""
        super().__init__()
        self.model = model
        device = next(model.parameters()).device
        banned = torch.tensor(sorted(banned_ids), dtype=torch.long, device=device)
        self.register_buffer("banned", banned, persistent=False)

    def forward(self, inputs: Mapping[str, Any], loss_mask: Tensor, temperature: float = 1.0) -> TokenScores:
        """Score the tokens where ``loss_mask`` (B, T) is True; ``inputs`` come from ``LMMPolicy.forward_inputs``."""
        ids = inputs["input_ids"]
        if loss_mask.shape != ids.shape:
            raise ValueError(f"expected a loss_mask of shape {tuple(ids.shape)}, got {tuple(loss_mask.shape)}")
        hidden = self._hidden(inputs)
        rows, columns = loss_mask.nonzero(as_tuple=True)
        before = hidden[rows, columns - 1]
        targets = ids[rows, columns]
        scores = [
            self._score(before[start : start + _CHUNK], targets[start : start + _CHUNK], temperature)
            for start in range(0, len(targets), _CHUNK)
        ]
        logprobs = hidden.new_zeros(ids.shape, dtype=torch.float32)
        entropy = torch.zeros_like(logprobs)
        if scores:
            logprobs = logprobs.index_put((rows, columns), torch.cat([score[0] for score in scores]))
            entropy = entropy.index_put((rows, columns), torch.cat([score[1] for score in scores]))
        return TokenScores(logprobs, entropy)

    def _hidden(self, inputs: Mapping[str, Any]) -> Tensor:
        """Last hidden states (B, T, width). Right padding needs no mask: causal attention never looks ahead."""
        kept = {key: value for key, value in inputs.items() if key != "attention_mask"}
        hidden: Tensor = base_model(self.model).model(**kept, use_cache=False).last_hidden_state
        return hidden

    def _score(self, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        logits = base_model(self.model).lm_head(hidden).float()
        scaled = allowed_logits(logits, self.banned, temperature).log_softmax(-1)
        chosen = scaled.gather(-1, targets[:, None])[:, 0]
        with torch.no_grad():
            entropy = -(scaled.exp() * scaled.clamp(min=-1e9)).sum(-1)
        return chosen, entropy


def allowed_logits(logits: Tensor, banned: Tensor, temperature: float) -> Tensor:
    """Logits (N, V) divided by the temperature, minus infinity at banned tokens. Used by sampler and scorer alike."""
    return (logits / temperature).index_fill(-1, banned, float("-inf"))


def base_model(model: nn.Module) -> Any:
    """The transformers model under an adapter wrapper, or the model itself."""
    unwrap: Any = getattr(model, "get_base_model", None)
    return model if unwrap is None else unwrap()
