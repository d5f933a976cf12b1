"""Whether a model's trained weights are still those that were seen last."""

from __future__ import annotations

import torch
from torch import nn


class SeenWeights:
    """Knows trained weights by their norms: one number for each parameter, whoever changes them and however."""

    def __init__(self, model: nn.Module) -> None:
        """Args: model: whatever of it asks for a gradient is trained."""
        self._model = model
        self._norms: torch.Tensor | None = None

    def have_changed(self) -> bool:
        """Whether they are others than when this was asked last; yes the first time."""
        trained = [parameter.detach() for parameter in self._model.parameters() if parameter.requires_grad]
        norms = (torch.stack(torch._foreach_norm(trained)) if trained else torch.zeros(0)).cpu()
        if self._norms is not None and torch.equal(norms, self._norms):
            return False
        self._norms = norms
        return True
