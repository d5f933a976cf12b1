"""The critic: a small head that values a state by what the language model makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmsearch_env.errors import PolicyError

_FILE = "critic.safetensors"


@dataclass(frozen=True, slots=True)
class CriticSettings:
    """How states are valued.

    Attributes:
        trunk: ``"shared"``: the critic's gradient trains the adapter too; ``"detached"``: only its own head.
    """

    trunk: Literal["shared", "detached"] = "shared"


class ValueHead(nn.Module):
    """Hidden states (..., width) -> values (...), float32. Values are 0 before any training."""

    def __init__(self, width: int, settings: CriticSettings) -> None:
        """Args: width: of the language model's hidden states."""
        super().__init__()
        self._settings = settings
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, 1)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """See the class."""
        seen = hidden.detach() if self._settings.trunk == "detached" else hidden
        values: Tensor = self.outer(torch.tanh(self.inner(seen.float()))).squeeze(-1)
        return values

    def save(self, folder: Path) -> None:
        """Write the weights beside an adapter's."""
        save_file({name: value.detach().cpu().contiguous() for name, value in self.named_parameters()}, folder / _FILE)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Read what :meth:`save` wrote; an adapter without a critic leaves this one as it is.

        Raises:
            PolicyError: the file is damaged, or of another width.
        """
        path, own = folder / _FILE, dict(self.named_parameters())
        if not path.exists():
            return
        try:
            saved = load_file(path)
        except Exception as error:  # safetensors has its own error type, and OSError
            raise PolicyError(f"{path}: expected the weights of a critic, got {error}") from error
        if {name: value.shape for name, value in saved.items()} != {name: value.shape for name, value in own.items()}:
            raise PolicyError(f"{path}: expected a critic of this model's width, got another; delete the file")
        for name, parameter in own.items():
            parameter.copy_(saved[name])
