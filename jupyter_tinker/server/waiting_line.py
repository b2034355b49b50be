"""A line in which the owners take turns, and each owner's items keep their order."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
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

    def first(self, may: Callable[[T], bool]) -> T | None:
        """The first whose turn it is of those that may go; None if there is none."""
        return next((queue[0] for queue in self._queues.values() if may(queue[0])), None)

    def pop(self, owner: str) -> T:
        """Take the owner's first out; all others go before its next."""
        queue = self._queues.pop(owner)
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
        """How many of the same owner come before `item`."""
        queue = self._queues.get(owner, deque())
        return queue.index(item) if item in queue else 0

    def __iter__(self) -> Iterator[T]:
        return (item for queue in list(self._queues.values()) for item in list(queue))

    def __bool__(self) -> bool:
        return bool(self._queues)
