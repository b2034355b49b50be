"""The output layer: log-probabilities of target tokens, and their gradient, in chunks of rows.

The logits of a batch are its largest tensor by far, so they exist for one chunk at a time. With z a
row's logits, p = softmax(z) and t_0, t_1, ... its targets, and c_k = dL/dlp_k known only after the
loss has been evaluated, the chain rule says

    dL/dz = sum_k c_k (onehot(t_k) - p)
          = sum_{k>0} c_k (onehot(t_k) - onehot(t_0)) - (sum_k c_k) e,   e = p - onehot(t_0)

so it is enough to keep e W (a row of the hidden size) while the logits are at hand: whatever the
loss, the gradient of the hidden states costs no second pass over the vocabulary. Subtracting the
first target before the product, and not after it, keeps confident predictions exact in bfloat16.

Knows nothing of batches, losses or the layers below.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from .products import add_cross_, linear, matmul, wide

# Logits of one chunk. On the CPU they should come from the allocator's free lists, not from the
# operating system, which hands out large blocks page by page.
_CHUNK_BYTES = {"cpu": 24 << 20, "cuda": 512 << 20}
_MIN_CHUNK_ROWS = 64
# An adapter on the output layer needs e again in the backward pass: kept up to here, or recomputed.
_KEEP_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}


@dataclass(frozen=True)
class LowRank:
    """An adapter on the output layer: adds `scale * (h A^T) B^T` to the logits."""

    a: torch.Tensor  # (r, H)
    b: torch.Tensor  # (V, r)
    scale: float


@dataclass(frozen=True)
class OutputLayer:
    """From hidden states to logits.

    They are `z = scale * (h W^T + bias + adapter)`, or `softcap * tanh(z / softcap)`. Everything
    but the weight is optional.
    """

    weight: torch.Tensor  # (V, H)
    bias: torch.Tensor | None = None  # (V,)
    scale: float = 1.0
    softcap: float | None = None
    adapter: LowRank | None = None
    product: Callable[[torch.Tensor], torch.Tensor] | None = None  # h W^T + bias, where it is known

    def with_adapter(self, adapter: LowRank | None) -> OutputLayer:
        return replace(self, adapter=adapter)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(C, H) -> (C, V) in float32."""
        product = self.product or partial(wide, weight=self.weight, bias=self.bias)
        z = product(hidden).float()
        if self.adapter is not None:
            low = linear(hidden.float(), self.adapter.a).mul_(self.adapter.scale)  # (C, r)
            z.addmm_(low, self.adapter.b.t())
        if self.scale != 1.0:
            z.mul_(self.scale)
        if self.softcap is not None:
            z.div_(self.softcap).tanh_().mul_(self.softcap)
        return z


@dataclass(frozen=True)
class _Kept:
    """What a chunk leaves behind for the backward pass, for its A active rows."""

    rows: torch.Tensor  # (A,) which of the R rows they are
    slopes: torch.Tensor | None  # (A, K) of the soft cap at the targets
    e_weight: torch.Tensor | None  # (A, H) e W
    e_adapter: torch.Tensor | None  # (A, r) e B
    e: torch.Tensor | None  # (A, V)


class Scores:
    """Target log-probabilities, and the way from their gradient to that of what made them."""

    def __init__(
        self,
        layer: OutputLayer,
        hidden: torch.Tensor,  # (R, H)
        targets: torch.Tensor,  # (R, K)
        # (R,) bool, on the CPU: rows that may receive a gradient; None: none do
        active: torch.Tensor | None,
        hidden_gradient: bool = True,  # whether `backward` shall return the hidden states' gradient
    ) -> None:
        self._layer = layer
        self._hidden = hidden
        self._targets = targets
        self._hidden_gradient = hidden_gradient
        self._kept: list[_Kept] = []
        self._keep_bytes = _KEEP_BYTES.get(hidden.device.type, _KEEP_BYTES["cpu"])
        starts = range(0, len(hidden), chunk_rows(layer, hidden.device))
        step = starts.step
        with torch.no_grad():
            chunks = [self._score(slice(start, start + step), active) for start in starts]
        self.logprobs = torch.cat(chunks)  # (R, K) float32

    def backward(
        self, gradient: torch.Tensor, adapter_gradients: tuple[torch.Tensor, torch.Tensor] | None
    ) -> torch.Tensor:
        """dL/dlogprobs (R, K) -> dL/dhidden (R, H); adds to the adapter's (A, B) gradients."""
        out = torch.zeros_like(self._hidden)
        with torch.no_grad():
            for kept in self._kept:
                c = gradient[kept.rows] * self._layer.scale  # (A, K)
                if self._hidden_gradient:
                    out[kept.rows] = self._hidden_rows(kept, c).to(out.dtype)
                if adapter_gradients is not None:
                    self._add_adapter_gradients(kept, c, *adapter_gradients)
        return out

    def _score(self, chunk: slice, active: torch.Tensor | None) -> torch.Tensor:
        targets = self._targets[chunk]
        logits = self._layer.logits(self._hidden[chunk])  # (C, V)
        # Where they are many is known without waiting for the device.
        rows = torch.empty(0) if active is None else active[chunk].nonzero().squeeze(1)
        rows = rows.to(targets)
        slope = self._slope(logits, rows)
        logprobs = torch.log_softmax(logits, dim=-1, out=logits)  # (C, V)
        at_targets = logprobs.gather(1, targets)  # (C, K)
        if 0 < len(rows) < len(targets):
            logprobs, targets = logprobs[rows], targets[rows]
        if len(rows):
            self._kept.append(self._keep(rows + chunk.start, logprobs, slope, targets))
        return at_targets

    def _keep(
        self,
        rows: torch.Tensor,
        logprobs: torch.Tensor,
        slope: torch.Tensor | None,
        targets: torch.Tensor,
    ) -> _Kept:
        e, slopes = self._error(logprobs, slope, targets)
        weight, adapter = self._layer.weight, self._layer.adapter
        kept_e = None
        if adapter is not None and e.nbytes <= self._keep_bytes:
            self._keep_bytes -= e.nbytes
            kept_e = e
        return _Kept(
            rows=rows,
            slopes=slopes,
            e_weight=matmul(e.to(weight.dtype), weight) if self._hidden_gradient else None,
            e_adapter=matmul(e, adapter.b) if adapter is not None else None,
            e=kept_e,
        )

    def _slope(
        self, logits: torch.Tensor, rows: torch.Tensor | slice = slice(None)
    ) -> torch.Tensor | None:
        """Of the soft cap at these rows of the logits that came out of it; None without one."""
        if self._layer.softcap is None:
            return None
        return 1 - (logits[rows] / self._layer.softcap).square()

    def _error(
        self, logprobs: torch.Tensor, slope: torch.Tensor | None, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """e = softmax - onehot(t_0), as seen through the soft cap. Overwrites `logprobs`."""
        e = logprobs.exp_()
        first = targets[:, :1]
        if slope is None:
            return e.scatter_add_(1, first, torch.full_like(e[:, :1], -1.0)), None
        slopes = slope.gather(1, targets)
        return e.mul_(slope).scatter_add_(1, first, -slopes[:, :1]), slopes

    def _hidden_rows(self, kept: _Kept, c: torch.Tensor) -> torch.Tensor:
        assert kept.e_weight is not None
        rows = self._through(self._layer.weight, kept.e_weight, kept, c)
        if self._layer.adapter is not None and kept.e_adapter is not None:
            low = self._through(self._layer.adapter.b, kept.e_adapter, kept, c)  # (A, r)
            rows.addmm_(low, self._layer.adapter.a, alpha=self._layer.adapter.scale)
        return rows

    def _through(
        self, matrix: torch.Tensor, e_matrix: torch.Tensor, kept: _Kept, c: torch.Tensor
    ) -> torch.Tensor:
        """dL/dz @ matrix, (A, columns of matrix), from e @ matrix."""
        out = e_matrix.float() * -c.sum(1, keepdim=True)
        targets, slopes = self._targets[kept.rows], kept.slopes
        for k in range(1, targets.shape[1]):
            here, first = _ends(c[:, k], slopes, k)
            out.addcmul_(matrix[targets[:, k]].float(), here)
            out.addcmul_(matrix[targets[:, 0]].float(), first, value=-1)
        return out

    def _add_adapter_gradients(
        self, kept: _Kept, c: torch.Tensor, a_gradient: torch.Tensor, b_gradient: torch.Tensor
    ) -> None:
        adapter = self._layer.adapter
        assert adapter is not None
        assert kept.e_adapter is not None
        hidden = self._hidden[kept.rows].float()  # (A, H)
        targets, slopes = self._targets[kept.rows], kept.slopes
        low_gradient = self._through(adapter.b, kept.e_adapter, kept, c)  # (A, r)
        add_cross_(a_gradient, low_gradient, hidden, adapter.scale)
        low = linear(hidden, adapter.a).mul_(adapter.scale)  # (A, r)
        e = self._error_again(kept) if kept.e is None else kept.e
        add_cross_(b_gradient, e, low * c.sum(1, keepdim=True), -1.0)
        for k in range(1, targets.shape[1]):
            here, first = _ends(c[:, k], slopes, k)
            b_gradient.index_add_(0, targets[:, k], low * here)
            b_gradient.index_add_(0, targets[:, 0], low * first, alpha=-1)

    def _error_again(self, kept: _Kept) -> torch.Tensor:
        logits = self._layer.logits(self._hidden[kept.rows])
        slope = self._slope(logits)
        logprobs = torch.log_softmax(logits, dim=-1, out=logits)
        return self._error(logprobs, slope, self._targets[kept.rows])[0]


def _ends(
    c: torch.Tensor, slopes: torch.Tensor | None, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights (A, 1) of onehot(t_k) and of onehot(t_0) in dL/dz."""
    if slopes is None:
        return c[:, None], c[:, None]
    return (c * slopes[:, k])[:, None], (c * slopes[:, 0])[:, None]


def chunk_rows(layer: OutputLayer, device: torch.device) -> int:
    budget = _CHUNK_BYTES.get(device.type, _CHUNK_BYTES["cpu"])
    return max(_MIN_CHUNK_ROWS, budget // (4 * layer.weight.shape[0]))
