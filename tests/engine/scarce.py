"""Memory that runs out wherever something new is allocated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jupyter_tinker.wire.ops import OpError


class _Scarce(TorchDispatchMode):
    def __init__(self, left: int) -> None:
        super().__init__()
        self._left = left  # tensors that there is memory for

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if _storages(result) - _storages((args, kwargs)):
            if not self._left:
                raise torch.OutOfMemoryError("there is no memory left")
            self._left -= 1
        return result


def _storages(tree: Any) -> set[int]:
    tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
    return {tensor.untyped_storage().data_ptr() for tensor in tensors} - {0}


def failures(work: Callable[[], object]) -> Iterator[int]:
    """Do `work` again and again, with memory for one tensor more each time, until there is enough;
    yields after each time that there was not."""
    left = 0
    while True:
        try:
            with _Scarce(left):
                work()
        except torch.OutOfMemoryError:
            yield left
        except OpError as error:
            if "no memory left" not in str(error):
                raise
            yield left
        else:
            return
        left += 1
