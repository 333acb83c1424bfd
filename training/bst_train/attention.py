"""Block-tiled attention: every product is a batched [W, keys] tile.

A segment is cut into tiles of T queries. With the sliding scope T is W / 2 (W if W is
odd), and the queries of a tile meet the W keys before the tile and the T keys of the tile: 1.5 W
instead of the 2 W that whole blocks would need. The keys before the segment come from a ring of
W rows that the previous segment left behind. With the block scope T is W, and queries meet the
keys of their own block. Segments start at a multiple of W (counted from the document's start), so
masks and biases are the same for all tiles, except that the first W tokens of a document have
fewer keys before them.

Tiles are laid out [B, tiles, H, ...] so that one tile's heads stay together; a tile's logits are
made by one `baddbmm` into a copy of the bias and mask, which costs no extra pass over them.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Optional, Tuple

import torch
from torch import nn

from .config import AttentionConfig

# Added to the logits of invisible keys. Finite, so that a row without any visible key stays finite;
# such rows are multiplied by zero afterwards.
INVISIBLE = -1e30


def l2_normalize(x: torch.Tensor) -> torch.Tensor:
    """x / sqrt(Σ x² + 1e-6) over the last dimension, in float32."""
    y = x.float()
    return (y * torch.rsqrt(y.square().sum(-1, keepdim=True) + 1e-6)).to(x.dtype)


def unit(x: torch.Tensor, qk_norm: bool) -> torch.Tensor:
    """Queries or keys [..., H, dh] as attention takes them: l2-normalised under qk_norm."""
    return l2_normalize(x) if qk_norm else x


def scale_parameter(heads: int, qk_norm: bool) -> Optional[nn.Parameter]:
    """The learned scale of every head, [H]; None without qk_norm.

    l2-normalised logits lie within ±scale: at 1 attention would stay near uniform for long.
    """
    return nn.Parameter(torch.full((heads,), 8.0)) if qk_norm else None


def scale_queries(q: torch.Tensor, scale: Optional[torch.Tensor]) -> torch.Tensor:
    """q [..., H, dh] times |scale| of its head, or 1 / sqrt(dh) where there is no scale."""
    if scale is None:
        return q * q.shape[-1] ** -0.5
    return q * scale.abs().to(q.dtype)[:, None]


def t5_bucket(distance: int, num_buckets: int, max_distance: int) -> int:
    """Unidirectional T5 bucket of a distance >= 0.

    The first half of the buckets hold one distance each, the others grow logarithmically. The
    logarithm is taken in double precision with 1e-9 on top, so that a distance that lies exactly
    on a boundary belongs to the upper bucket.
    """
    half = num_buckets // 2
    if distance < half:
        return distance
    position = math.log(distance / half) / math.log(max_distance / half) * (num_buckets - half)
    return min(num_buckets - 1, half + math.floor(position + 1e-9))


def rope_tables(
    begin: int, end: int, head_dim: int, theta: float
) -> Tuple[torch.Tensor, torch.Tensor]:
    """(cos, sin) [end - begin, head_dim / 2] of the angles t * theta^(-2j / head_dim)."""
    t = torch.arange(begin, end, dtype=torch.float64)
    j = torch.arange(head_dim // 2, dtype=torch.float64)
    base = torch.tensor(theta, dtype=torch.float64)
    angles = t.unsqueeze(-1) * torch.pow(base, -2 * j / head_dim)
    return torch.cos(angles).float(), torch.sin(angles).float()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates the pairs (x[j], x[j + dh/2]). x [..., dh]; cos and sin broadcast against halves."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


@dataclasses.dataclass
class Segment:
    """What all layers must know of the segment they work on; made once per forward pass."""

    fresh: torch.Tensor      # [B] bool: the row starts a document; its rings hold zeros
    any_fresh: bool          # whether one of them is set
    # (cos, sin) [W + L, 1, dh / 2], from W tokens before the segment's start on; RoPE only
    rope: Optional[Tuple[torch.Tensor, torch.Tensor]]


# Keys (after l2, before rotation) and values of the W tokens before a segment, both
# [B, W, H, dh]; zeros where there are none.
Ring = Tuple[torch.Tensor, torch.Tensor]


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: Optional[torch.Tensor] = None
) -> torch.Tensor:
    """softmax(q kᵀ + bias) v over tiles.

    q [B, n, H, T, dh], scaled; k, v [B, n, H, J, dh]; bias broadcasts to [B, n, H, T, J].
    Returns [B, n, H, T, dh].
    """
    rows, tiles, heads, queries, head_dim = q.shape
    keys = k.shape[3]
    products = rows * tiles * heads
    left = q.reshape(products, queries, head_dim)
    right = k.reshape(products, keys, head_dim).transpose(1, 2)
    if bias is None:
        logits = torch.bmm(left, right)
    else:
        bias = bias.to(q.dtype).expand(rows, tiles, heads, queries, keys)
        logits = torch.baddbmm(bias.reshape(products, queries, keys), left, right)
    weights = torch.softmax(logits.float(), dim=-1).to(v.dtype)
    out = torch.bmm(weights, v.reshape(products, keys, head_dim))
    return out.reshape(rows, tiles, heads, queries, head_dim)


def to_tiles(x: torch.Tensor, tile: int) -> torch.Tensor:
    """[B, n * T, H, dh] -> [B, n, H, T, dh]."""
    rows, length, heads, head_dim = x.shape
    return x.reshape(rows, length // tile, tile, heads, head_dim).transpose(2, 3)


def from_tiles(x: torch.Tensor) -> torch.Tensor:
    """[B, n, H, T, dh] -> [B, n * T, H * dh]."""
    rows, tiles, heads, tile, head_dim = x.shape
    return x.transpose(2, 3).reshape(rows, tiles * tile, heads * head_dim)


def with_previous(x: torch.Tensor, previous: int) -> torch.Tensor:
    """Prepends to every tile the `previous` tiles before it.

    [B, previous + n, H, T, dh] -> [B, n, H, (previous + 1) * T, dh]
    """
    tiles = x.shape[1] - previous
    return torch.cat([x[:, i : i + tiles] for i in range(previous + 1)], dim=3)


class LocalAttention(nn.Module):
    """The window attention of every layer: logits, mask, position signal and scale.

    Projections belong to the layer; this module owns the per-head scale and the T5 table alone.
    """

    def __init__(self, heads: int, head_dim: int, window: int, config: AttentionConfig) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = head_dim
        self.window = window
        self.config = config
        self.scale = scale_parameter(heads, config.qk_norm)
        if config.position == "t5":
            self.position_bias = nn.Parameter(torch.zeros(heads, config.t5_num_buckets))
        else:
            self.register_parameter("position_bias", None)

        sliding = config.scope == "sliding"
        halve = sliding and window % 2 == 0
        self.tile = window // 2 if halve else window
        self.previous = window // self.tile if sliding else 0   # tiles of keys before a tile's own
        begin = -self.previous * self.tile                       # first key, from the tile's start
        keys = torch.arange(begin, self.tile)
        distance = torch.arange(self.tile).unsqueeze(-1) - keys                   # [T, J]
        nearest = 0 if config.include_self else 1
        visible = (distance >= nearest) & (distance < window + nearest)
        # What the tiles at the start of a document see: keys before it may not exist.
        starts = torch.arange(window // self.tile) * self.tile
        exists = keys + starts[:, None, None] >= 0                               # [W / T, 1, J]
        if not sliding or config.empty_prefix == "zeros":
            exists = torch.ones_like(exists)
        first = visible & exists                                                  # [W / T, T, J]
        zero = torch.zeros(())
        self.register_buffer("mask", torch.where(visible, zero, zero + INVISIBLE), False)
        self.register_buffer("first_mask", torch.where(first, zero, zero + INVISIBLE), False)
        # 0 for queries that see no key at all.
        self.register_buffer("sees_any", visible.any(-1).float(), False)          # [T]
        self.register_buffer("first_sees_any", first.any(-1).float(), False)      # [W / T, T]
        self._every_query_sees = bool(first.any(-1).all())
        buckets = [
            [t5_bucket(max(0, n), config.t5_num_buckets, config.t5_max_distance) for n in row]
            for row in distance.tolist()
        ]
        self.register_buffer("buckets", torch.tensor(buckets), False)

    def _bias(self, rows: int, tiles: int, segment: Segment) -> torch.Tensor:
        """Mask plus scaled position bias, [B or 1, n or 1, H or 1, T, J]."""
        if self.position_bias is not None:
            scale = self.head_dim**-0.5 if self.scale is None else self.scale.abs()[:, None, None]
            position = self.position_bias[:, self.buckets] * scale
        else:
            position = torch.zeros(1, 1, 1, device=self.mask.device)
        usual = self.mask + position                                              # [H, T, J]
        if not segment.any_fresh:
            return usual[None, None]
        first = self.first_mask.unsqueeze(1) + position                           # [W/T, H, T, J]
        head = torch.where(segment.fresh[:, None, None, None, None], first, usual)
        tail = usual.expand(rows, tiles - head.shape[1], *usual.shape)
        return torch.cat([head, tail], dim=1)

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        ring: Optional[Ring],
        segment: Segment,
    ) -> Tuple[torch.Tensor, Ring]:
        """Attends within one segment.

        q, k, v  [B, L, H, dh]  L a multiple of W; q and k l2-normalised if the model does that
        ring     the W tokens before the segment; None when all rows are fresh
        Returns the output [B, L, A] and the ring behind the segment, detached.
        """
        window = self.window
        rows, length = q.shape[:2]
        tiles = length // self.tile
        after = (k[:, -window:].detach(), v[:, -window:].detach())
        q = scale_queries(q, self.scale)
        sliding = self.config.scope == "sliding"
        if sliding:
            if ring is None:
                zeros = torch.zeros_like(after[0])
                ring = (zeros, zeros)
            k = torch.cat([ring[0].to(k.dtype), k], dim=1)
            v = torch.cat([ring[1].to(v.dtype), v], dim=1)
        if segment.rope is not None:
            # Only differences of positions matter, so they count from the segment's start.
            cos, sin = (table.to(k.dtype) for table in segment.rope)
            q = rotate(q, cos[-length:], sin[-length:])
            k = rotate(k, cos[-k.shape[1] :], sin[-k.shape[1] :])
        q = to_tiles(q, self.tile)
        k = with_previous(to_tiles(k, self.tile), self.previous)
        v = with_previous(to_tiles(v, self.tile), self.previous)
        out = attend(q, k, v, self._bias(rows, tiles, segment))
        if not self._every_query_sees:
            first = torch.where(
                segment.fresh[:, None, None], self.first_sees_any, self.sees_any
            )                                                                     # [B, W/T, T]
            tail = self.sees_any.expand(rows, tiles - first.shape[1], self.tile)
            sees = torch.cat([first, tail], dim=1)
            out = out * sees[:, :, None, :, None].to(out.dtype)
        return from_tiles(out), after
