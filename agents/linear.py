"""Linear layers that multiply through oneDNN on the CPU.

PyTorch multiplies float32 matrices with MKL, which leaves half of what processors of other makers than its own can do
unused; oneDNN, which PyTorch brings along for other work, takes about half the time there at every size, forward and
backward. Results differ by rounding only. Elsewhere, as on a GPU or in shorter number formats, the layers are what
they were.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from torch import Tensor, nn

_log = logging.getLogger(__name__)

_KERNELS_KEPT = "4096"
"""oneDNN makes a kernel for every number of rows, in a quarter of a millisecond or more, and keeps 1,024 by itself;
sampling from many rows, which end one after the other, comes by more."""


class _Product(torch.autograd.Function):
    """x W^T + b with its derivatives, all through oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        needs_x = ctx.needs_input_grad[1]
        ctx.save_for_backward(weight, x if needs_x else None)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, x = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        rows = grad.flatten(0, -2)
        if ctx.needs_input_grad[0]:
            of_x = _product(grad, weight.t(), None)
        if ctx.needs_input_grad[1]:
            of_weight = _narrow_first(rows.t(), x.flatten(0, -2).t())
        if ctx.needs_input_grad[2]:
            of_bias = rows.sum(0)
        return of_x, of_weight, of_bias


class OneDNNLinear(nn.Linear):
    """A linear layer as torch's own, but for who multiplies."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        is_plain = input.dtype == self.weight.dtype == torch.float32 and input.device.type == "cpu"
        if not is_plain or input.dim() < 2 or not input.numel():
            return super().forward(input)
        if torch.is_grad_enabled():
            product: Tensor = _Product.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]
            return product
        return _product(input, self.weight, self.bias)


def multiply_with_onednn(model: nn.Module) -> None:
    """Turn a model's linear layers on the CPU into such, where this PyTorch has oneDNN."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _KERNELS_KEPT)
    if not _has_onednn():
        return
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.device.type == "cpu":
            module.__class__ = OneDNNLinear


def _has_onednn() -> bool:
    """Whether the operation is here and does what it is used for; PyTorch does not promise it by name."""
    ones = torch.ones(2, 2)
    try:
        return torch.equal(_product(ones, ones, None), ones @ ones)
    except (AttributeError, TypeError, RuntimeError) as error:
        _log.info("products go through torch's own library, oneDNN's operation cannot be used: %s", error)
        return False


def quick_to_read(weight: Tensor) -> Tensor:
    """The same weight (out, in), laid out so that few rows are multiplied by it in half the time."""
    return weight.t().contiguous().t()


def _narrow_first(left: Tensor, right: Tensor) -> Tensor:
    """(M, K), (N, K) -> (M, N): quicker with the smaller of M and N, as the rank of an adapter, in the rows."""
    if left.shape[0] <= right.shape[0]:
        return _product(left, right, None)
    return _product(right, left, None).t()


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product
