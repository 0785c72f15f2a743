"""Between clients: whatever one asks for, the others get their share."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from serving import serving

from llama import Llama, ResourceError
from llama.batch import Batch
from llama.server.fair import FairQueue, chosen, may_begin

LONG = {"prompt": "abc", "max_tokens": 600, "ignore_eos": True, "seed": 1}
SHORT = {"prompt": "def", "max_tokens": 5, "ignore_eos": True, "temperature": 0}


def test_a_client_with_nothing_begins_whatever_others_hold():
    assert may_begin("a", Counter(a=3), 4, 8)
    assert not may_begin("a", Counter(a=4), 4, 8)
    assert may_begin("b", Counter(a=4), 4, 8)
    assert may_begin("b", Counter(a=4, b=1), 4, 8)
    assert not may_begin("b", Counter(a=4, b=2), 4, 8)  # half of the places
    assert not may_begin("i", Counter("abcdefgh"), 4, 8)  # eight texts are held
    assert not may_begin("b", Counter(a=4), 4, 4)


def test_without_memory_for_paused_texts_there_are_none(slow_path, monkeypatch):
    whole = Batch.__init__

    def small(self: Batch, llama: Llama, sequences: int, **options: object) -> None:
        if sequences > 2:
            raise ResourceError("not enough memory")
        whole(self, llama, sequences, **options)

    monkeypatch.setattr(Batch, "__init__", small)
    with Llama(slow_path, threads=1) as llama, serving(llama, parallel=2) as server:
        assert len(server.get("/slots").json) == 2
        assert server.post("/v1/completions", SHORT | {"n": 5}).status == 200


def test_places_go_round_clients_first():
    held = [("a", 1), ("a", 2), ("a", 3), ("a", 4), ("b", 5)]
    turns = [chosen(held, 4, turn) for turn in range(40)]
    assert all(len(found) == 4 and 5 in found for found in turns)
    assert Counter(item for found in turns for item in found) == {1: 30, 2: 30, 3: 30, 4: 30, 5: 40}


def test_nobody_is_left_out_where_clients_are_more_than_places():
    held = [(client, (client, i)) for client in "abcdefgh" for i in range(1 + (client == "a"))]
    shares = Counter(item for turn in range(64) for item in chosen(held, 4, turn))
    assert shares == {item: 16 if client == "a" else 32 for client, item in held}
    assert chosen([], 4, 3) == []
    assert Counter(
        found for turn in range(8) for found in chosen([("a", 1), ("a", 2), ("b", 3)], 1, turn)
    ) == {
        1: 2,
        2: 2,
        3: 4,
    }


def test_a_client_that_fills_the_queue_keeps_nobody_out():
    queue: FairQueue[int] = FairQueue(4)
    assert queue.push("a", [1, 2, 3, 4])
    assert not queue.push("a", [5])
    assert queue.push("b", [6])
    assert queue.push("b", [7])
    assert not queue.push("b", [8])
    assert queue.pop(lambda client: client == "b") == 6
    assert queue.pop(lambda client: client == "c") is None
    assert [queue.pop() for _ in range(6)] == [1, 7, 2, 3, 4, None]


@pytest.mark.parametrize("draft", [None, "lookup"])
def test_one_client_can_not_hold_all_places(slow_path, draft):
    """Its texts are paused in turn while another is answered, and what they say stays the same."""
    with (
        Llama(slow_path, threads=1) as llama,
        serving(llama, keys=["a", "b"], parallel=2, draft=draft) as server,
    ):
        expected = server.post("/v1/completions", LONG, Authorization="Bearer a").json["choices"]
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(server.post, "/v1/completions", LONG | {"n": 6}, Authorization="Bearer a")
            while server.engine.running < 2:
                time.sleep(0.01)
            for _ in range(3):
                assert server.post("/v1/completions", SHORT, Authorization="Bearer b").status == 200
                assert not asked.done()
                assert server.engine.totals["requests"] <= 4  # b's, and the one that was expected
            assert asked.result().json["choices"][0]["text"] == expected[0]["text"]
