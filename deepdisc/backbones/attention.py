"""Pooled multi-head attention with relative positions, whole or in windows (Li et al. 2022, arXiv:2112.01526).

Legend: N images, A attention heads of width D, (H, W) a map, (h, w) a window of it, K keys per window. `q`, `k`, `v`
are queries, keys and values. Maps are channels-last, (N, H, W, C).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6  # of every LayerNorm of the network


def to_windows(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut a map into windows that do not overlap, with zeros added below and at the right where they do not fit.

    Args:
        x: (..., H, W, C).
        size: (h, w) of a window.

    Returns:
        (..., ceil(H / h), ceil(W / w), h, w, C); a view where nothing has to be added.
    """
    height, width = x.shape[-3:-1]
    bottom, right = -height % size[0], -width % size[1]
    if bottom or right:
        x = F.pad(x, (0, 0, 0, right, 0, bottom))
    return x.unflatten(-2, (-1, size[1])).unflatten(-4, (-1, size[0])).transpose(-4, -3)


def from_windows(windows: Tensor, size: tuple[int, int]) -> Tensor:
    """Put the windows of `to_windows` together to a map, without what was added.

    Args:
        windows: (..., rows, columns, h, w, C).
        size: (H, W) of the map.

    Returns:
        (..., H, W, C).
    """
    x = windows.transpose(-4, -3).flatten(-5, -4).flatten(-3, -2)
    return x[..., : size[0], : size[1], :]


def relative_positions(table: Tensor, q_size: int, k_size: int) -> Tensor:
    """The learned vector of each distance between a query and a key along one axis.

    The table is stretched linearly to the 2 max(q, k) - 1 distances that occur; distances are counted in cells of the
    finer of the two maps, and truncated where the sizes are no multiples of each other.

    Args:
        table: (distances, D), from the most negative to the most positive one.
        q_size: number of queries along the axis.
        k_size: number of keys along the axis.

    Returns:
        (q_size, k_size, D).
    """
    distances = 2 * max(q_size, k_size) - 1
    if len(table) != distances:
        table = F.interpolate(table.T[None], size=distances, mode="linear")[0].T
    finer = max(q_size, k_size)
    query_places = torch.arange(q_size, device=table.device) * (finer / q_size)
    key_places = torch.arange(k_size, device=table.device) * (finer / k_size)
    row_of_zero = (k_size - 1) * (finer / k_size)
    distance = query_places[:, None] - key_places[None, :]
    return table[(distance + row_of_zero).long()]


def attend(q: Tensor, k: Tensor, v: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor) -> Tensor:
    """Softmax attention with decomposed relative positions (arXiv:2112.01526, equation 4).

    The logit of query (y, x) and key (i, j) is q.k / sqrt(D) + q.R_h[y, i] + q.R_w[x, j]. The last two terms enter the
    one product of queries and keys: a query carries its q.R for every row and column, a key marks its own with a one.
    So no tensor of the size of the logits is made for them, which is faster than adding them to the logits or passing
    them to torch's fused attention as a mask.

    Args:
        q: (..., h, w, D) queries.
        k: (..., h', w', D) keys.
        v: (..., h', w', D) values.
        rel_pos_h: table of distances along y, see `relative_positions`.
        rel_pos_w: table of distances along x.

    Returns:
        (..., h, w, D).
    """
    (rows, columns), size = k.shape[-3:-1], q.shape[-3:-1]
    by_row = torch.einsum("...yxd,yid->...yxi", q, relative_positions(rel_pos_h, size[0], rows))
    by_column = torch.einsum("...yxd,xjd->...yxj", q, relative_positions(rel_pos_w, size[1], columns))
    row_marks = torch.eye(rows, dtype=k.dtype, device=k.device)[:, None].expand(-1, columns, -1)
    column_marks = torch.eye(columns, dtype=k.dtype, device=k.device).expand(rows, -1, -1)
    marks = torch.cat([row_marks, column_marks], dim=-1).expand(*k.shape[:-1], -1)
    queries = torch.cat([q, by_row, by_column], dim=-1).flatten(-3, -2)
    # the keys are scaled, not the queries: q.R has no factor, and most blocks have fewer keys
    keys = torch.cat([k * k.shape[-1] ** -0.5, marks], dim=-1).flatten(-3, -2)
    weights = (queries @ keys.transpose(-2, -1)).softmax(dim=-1)
    return (weights @ v.flatten(-3, -2)).unflatten(-2, size)


class HeadPool(nn.Conv2d):
    """Depthwise 3x3 convolution with the same weights for every attention head."""

    def __init__(self, head_dim: int, stride: int):
        super().__init__(head_dim, head_dim, 3, stride, padding=1, groups=head_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, A D) -> (N, A, ceil(H / stride), ceil(W / stride), D)."""
        heads = x.shape[-1] // self.in_channels
        weight = self.weight.repeat(heads, 1, 1, 1)
        x = F.conv2d(x.permute(0, 3, 1, 2), weight, None, self.stride, self.padding, groups=x.shape[-1])
        return x.permute(0, 2, 3, 1).unflatten(-1, (heads, -1)).permute(0, 3, 1, 2, 4)


class PooledAttention(nn.Module):
    """Multi-head attention whose queries, keys and values are pooled by strided convolutions before they meet.

    Pooling sees the whole map; only then it is cut into windows. Zeros that fill the windows at the border take part
    in the softmax, as in the published networks. The pooled queries are added to the result.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        *,
        num_heads: int,
        stride_q: int,
        stride_kv: int,
        window_size: int,
        pretrain_size: int,
    ):
        """Build the layer.

        Args:
            dim: width of the input.
            dim_out: width of the output, `num_heads` times D.
            num_heads: number of heads.
            stride_q: of the pooling of queries.
            stride_kv: of the pooling of keys and values.
            window_size: side of a window in cells of the input; 0 = the whole map.
            pretrain_size: side of the square map for which the position tables have one row per distance.
        """
        super().__init__()
        head_dim = dim_out // num_heads
        self.qkv = nn.Linear(dim, 3 * dim_out)
        self.proj = nn.Linear(dim_out, dim_out)
        for name, stride in {"q": stride_q, "k": stride_kv, "v": stride_kv}.items():
            self.add_module(f"pool_{name}", HeadPool(head_dim, stride))
            self.add_module(f"norm_{name}", nn.LayerNorm(head_dim, eps=NORM_EPS))
        distances = 2 * (pretrain_size // min(stride_q, stride_kv)) - 1
        self.rel_pos_h = nn.Parameter(nn.init.trunc_normal_(torch.empty(distances, head_dim), std=0.02))
        self.rel_pos_w = nn.Parameter(nn.init.trunc_normal_(torch.empty(distances, head_dim), std=0.02))
        self.q_window = (window_size // stride_q,) * 2
        self.kv_window = (window_size // stride_kv,) * 2

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, dim) -> (N, ceil(H / stride_q), ceil(W / stride_q), dim_out)."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k, v = self.norm_q(self.pool_q(q)), self.norm_k(self.pool_k(k)), self.norm_v(self.pool_v(v))
        size = q.shape[-3:-1]
        if self.q_window[0]:
            windows = (to_windows(q, self.q_window), to_windows(k, self.kv_window), to_windows(v, self.kv_window))
            out = from_windows(attend(*windows, self.rel_pos_h, self.rel_pos_w), size)
        else:
            out = attend(q, k, v, self.rel_pos_h, self.rel_pos_w)
        # the "residual pooling" of the paper, section 3.2
        out = out + q
        return self.proj(out.permute(0, 2, 3, 1, 4).flatten(-2))
