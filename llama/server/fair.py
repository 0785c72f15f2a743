"""A bounded queue in which clients take turns: one that asks a hundred times waits for itself, not others."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Items of clients, in order for each of them, in turns over all. Any thread may use it.

    limit: items that may wait; a push beyond it is refused, but what is pushed at once is taken or refused
    as a whole, so that a request of many texts is not refused for its size alone.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._clients: OrderedDict[str, deque[T]] = OrderedDict()

    def push(self, client: str, items: list[T]) -> bool:
        """Lets items wait. False: the queue is full."""
        with self._lock:
            if self._length() >= self.limit:
                return False
            self._clients.setdefault(client, deque()).extend(items)
            return True

    def pop(self) -> T | None:
        """The next item, None where nothing waits. Its client's next one comes after the other clients'."""
        with self._lock:
            if not self._clients:
                return None
            client, items = self._clients.popitem(last=False)
            item = items.popleft()
            if items:
                self._clients[client] = items
            return item

    def remove(self, client: str, item: T) -> bool:
        """Takes an item out. False: it does not wait any more."""
        with self._lock:
            items = self._clients.get(client, deque())
            if item not in items:
                return False
            items.remove(item)
            if not items:
                del self._clients[client]
            return True

    def _length(self) -> int:
        return sum(map(len, self._clients.values()))

    def __len__(self) -> int:
        with self._lock:
            return self._length()
