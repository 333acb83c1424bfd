"""Causal convolutions by FFT and by matrix products, with gradients of few sweeps."""

from __future__ import annotations

from typing import Any, Optional, Tuple

import torch
from torch.nn import functional


class _Convolution(torch.autograd.Function):
    """See `convolve`.

    The gradients are correlations, hence FFTs of real numbers, too. Autograd would run complex
    transforms of twice the size: 59 instead of 35 ms for 192 features and 4,096 tokens.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, u: torch.Tensor, kernel: torch.Tensor, skip: int
    ) -> torch.Tensor:
        length, taps = u.shape[-1], kernel.shape[-1]
        # Wrapped-around products then fall on outputs that are skipped.
        size = 1 << (max(length, length + taps - 1 - skip) - 1).bit_length()
        spectrum_u = torch.fft.rfft(u, n=size).unsqueeze(1)                       # [B, 1, D, f]
        spectrum_k = torch.fft.rfft(kernel, n=size)                               # [C, D, f]
        ctx.save_for_backward(spectrum_u, spectrum_k)
        ctx.sizes = (length, taps, skip, size)
        return torch.fft.irfft(spectrum_u * spectrum_k, n=size)[..., skip:length]

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, grad: torch.Tensor
    ) -> Tuple[Optional[torch.Tensor], ...]:
        spectrum_u, spectrum_k = ctx.saved_tensors
        length, taps, skip, size = ctx.sizes
        spectrum = torch.fft.rfft(functional.pad(grad, (skip, 0)), n=size)        # [B, C, D, f]
        grad_u = torch.fft.irfft((spectrum * spectrum_k.conj()).sum(1), n=size)
        grad_k = torch.fft.irfft((spectrum * spectrum_u.conj()).sum(0), n=size)
        return grad_u[..., :length], grad_k[..., :taps], None


def convolve(u: torch.Tensor, kernel: torch.Tensor, skip: int = 0) -> torch.Tensor:
    """y[b, c, d, t - skip] = Σ_{s<=t} kernel[c, d, t-s] u[b, d, s] for t = skip .. L-1.

    u [B, D, L], kernel [C, D, T]; returns [B, C, D, L - skip].
    """
    y: torch.Tensor = _Convolution.apply(u, kernel, skip)
    return y


class _BlockEndProducts(torch.autograd.Function):
    """See `block_end_products`.

    One batched matrix product per feature, [J, W] by [W, C Q], makes the products of all blocks
    with all parts of the filters; those that belong together lie on diagonals of the result. That
    is twice the arithmetic of windows of all the inputs, but needs no copies of them.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, u: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        features, rows, blocks, window = u.shape
        _, filters, parts, _ = weights.shape
        u = u.reshape(features, rows * blocks, window)
        weights = weights.reshape(features, filters * parts, window)
        ctx.save_for_backward(u, weights)
        ctx.sizes = (features, rows, blocks, filters, parts)
        products = torch.bmm(u, weights.transpose(1, 2))                          # [D, BJ, CQ]
        return _diagonals(products, ctx.sizes).sum(-1)

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, grad: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        u, weights = ctx.saved_tensors
        features, rows, blocks, filters, parts = ctx.sizes
        products = u.new_zeros(features, rows * blocks, filters * parts)
        _diagonals(products, ctx.sizes).copy_(grad.unsqueeze(-1))
        grad_u = torch.bmm(products, weights).reshape(features, rows, blocks, -1)
        grad_weights = torch.bmm(products.transpose(1, 2), u)
        return grad_u, grad_weights.reshape(features, filters, parts, -1)


def _diagonals(products: torch.Tensor, sizes: Tuple[int, ...]) -> torch.Tensor:
    """The view [d, b, k, c, q] of products[d, (b, k + q), (c, q)]."""
    features, rows, blocks, filters, parts = sizes
    row = filters * parts
    return products.as_strided(
        (features, rows, blocks - parts + 1, filters, parts),
        (rows * blocks * row, blocks * row, row, parts, row + 1),
    )


def block_end_products(u: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Σ_q ⟨u[d, b, k + q], weights[d, c, q]⟩, products of runs of Q blocks with filters.

    u [D, B, J, W], weights [D, C, Q, W]; returns [D, B, J - Q + 1, C].
    """
    y: torch.Tensor = _BlockEndProducts.apply(u, weights)
    return y
