"""How clients take turns: one that asks a hundred times waits for itself, not others."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


def may_begin(client: str, held: Counter[str], places: int, most: int) -> bool:
    """Whether a client may begin another text. held: how many each one has, most: all together.

    While there are places, anybody may. Beyond that a client may up to its share of them: others' texts
    are paused for it. All shares together are no more than the places, so twice as many is enough for most.
    """
    if held.total() < places:
        return True
    return held[client] < max(1, places // len({*held, client})) and held.total() < most


def chosen(held: Iterable[tuple[str, T]], places: int, turn: int) -> list[T]:
    """Which of the items that clients hold have a place in a turn.

    Each client has one in turn, then each a second one, until there are no places left. turn counts up:
    who is first moves on with it, and so do the items of one client.
    """
    of: dict[str, list[T]] = {}
    for client, item in held:
        of.setdefault(client, []).append(item)
    queues = [deque(rotated(items, turn // len(of))) for items in rotated(list(of.values()), turn)]
    found: list[T] = []
    while queues and len(found) < places:
        queue = queues.pop(0)
        found.append(queue.popleft())
        if queue:
            queues.append(queue)
    return found


def rotated(items: Sequence[T], turn: int) -> list[T]:
    at = turn % len(items) if items else 0
    return [*items[at:], *items[:at]]


class FairQueue(Generic[T]):
    """Items of clients, in order for each of them, in turns over all. Any thread may use it.

    limit: items that may wait; a push beyond it is refused, but for a client with less than its share of
    them, so that one alone can't keep others out. What is pushed at once is taken or refused as a whole, so
    that a request of many texts is not refused for its size alone.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._clients: OrderedDict[str, deque[T]] = OrderedDict()

    def push(self, client: str, items: list[T]) -> bool:
        """Lets items wait. False: the queue is full."""
        with self._lock:
            share = self.limit // len({*self._clients, client})
            if self._length() >= self.limit and len(self._clients.get(client, ())) >= share:
                return False
            self._clients.setdefault(client, deque()).extend(items)
            return True

    def pop(self, may: Callable[[str], bool] = lambda client: True) -> T | None:
        """The next item of a client that may, None where there is none. The client is last then."""
        with self._lock:
            client = next(filter(may, self._clients), None)
            if client is None:
                return None
            items = self._clients.pop(client)
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
