"""A line in which the owners take turns, and each owner's items keep their order."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class WaitingLine(Generic[T]):
    """First come, first served within an owner; owners in turn."""

    def __init__(self) -> None:
        self._queues: OrderedDict[str, deque[T]] = OrderedDict()

    def put(self, owner: str, item: T) -> None:
        self._queues.setdefault(owner, deque()).append(item)

    def put_back(self, owner: str, item: T) -> None:
        """Before all others of its owner."""
        self._queues.setdefault(owner, deque()).appendleft(item)

    def first(self) -> T | None:
        """Whose turn it is; None if nobody waits."""
        return next((queue[0] for queue in self._queues.values()), None)

    def pop(self) -> T:
        """Take the first out; it is the next owner's turn then."""
        owner, queue = self._queues.popitem(last=False)
        item = queue.popleft()
        if queue:
            self._queues[owner] = queue
        return item

    def remove(self, owner: str, item: T) -> bool:
        """Whether it was there."""
        queue = self._queues.get(owner)
        if queue is None or item not in queue:
            return False
        queue.remove(item)
        if not queue:
            del self._queues[owner]
        return True

    def of(self, owner: str) -> list[T]:
        return list(self._queues.get(owner, ()))

    def ahead(self, owner: str, item: T) -> int:
        """How many are served before `item`, as things are now."""
        queue = self._queues.get(owner)
        if queue is None or item not in queue:
            return 0
        place = queue.index(item)
        owners = list(self._queues)
        earlier = set(owners[: owners.index(owner)])
        return place + sum(
            min(len(other), place + (name in earlier))
            for name, other in self._queues.items()
            if name != owner
        )

    def __iter__(self) -> Iterator[T]:
        return (item for queue in list(self._queues.values()) for item in list(queue))

    def __bool__(self) -> bool:
        return bool(self._queues)
