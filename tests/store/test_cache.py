"""The cache of documents: it is never behind a published commit, whatever is being read meanwhile."""

from __future__ import annotations

import itertools
import random

from paperdb_trio.model import Change
from paperdb_trio.store.cache import OVERHEAD_BYTES, DocumentCache, Key
from paperdb_trio.store.protocol import Stored

KEY: Key = (1, "a", "x")


def change(seq: int, type: str = "update", key: Key = KEY, data: bytes = b"new") -> Change:
    return Change(key[0], seq, type, key[1], key[2], data)


def cache_with(*found: tuple[Key, Stored], max_bytes: int = 10_000) -> DocumentCache:
    cache = DocumentCache(max_bytes)
    for key, stored in found:
        cache.end_reading(key, cache.begin_reading(key), stored)
    return cache


def test_cached_document_follows_commits() -> None:
    cache = cache_with((KEY, Stored(b"old", 1)))
    assert cache.get(KEY) == (b"old", 1)
    cache.apply([change(2)])
    assert cache.get(KEY) == (b"new", 2)
    cache.apply([change(3, "delete")])
    assert cache.get(KEY) is None
    cache.apply([change(4, "insert")])
    assert cache.get(KEY) is None, "not read since"


def test_commit_affects_only_its_own_document() -> None:
    cache = cache_with((KEY, Stored(b"old", 1)))
    cache.apply([change(2, key=key) for key in ((2, "a", "x"), (1, "b", "x"), (1, "a", "y"))])
    assert cache.get(KEY) == (b"old", 1)


def test_document_committed_while_it_is_read_is_not_cached() -> None:
    for type in ("insert", "update", "delete"):
        cache = cache_with()
        mark = cache.begin_reading(KEY)
        cache.apply([change(2, type)])
        cache.end_reading(KEY, mark, Stored(b"old", 1))
        assert cache.get(KEY) is None


def test_read_begun_before_a_commit_is_not_cached() -> None:
    cache = cache_with()
    early = cache.begin_reading(KEY)
    cache.apply([change(2)])
    late = cache.begin_reading(KEY)
    cache.end_reading(KEY, early, Stored(b"old", 1))
    assert cache.get(KEY) is None
    cache.end_reading(KEY, late, Stored(b"new", 2))
    assert cache.get(KEY) == (b"new", 2)


def test_older_commit_does_not_replace_a_newer_document() -> None:
    cache = cache_with((KEY, Stored(b"newest", 5)))
    cache.apply([change(4), change(4, "delete"), change(5)])
    assert cache.get(KEY) == (b"newest", 5)


def test_failed_read_caches_nothing() -> None:
    cache = cache_with()
    cache.end_reading(KEY, cache.begin_reading(KEY), None)
    assert cache.get(KEY) is None
    assert not cache._reading


def test_cache_evicts_the_least_recently_read() -> None:
    keys: list[Key] = [(1, "a", str(n)) for n in range(4)]
    size = OVERHEAD_BYTES + 100
    cache = cache_with(*((key, Stored(b"x" * 100, 1)) for key in keys[:3]), max_bytes=3 * size)
    cache.get(keys[0])
    cache.end_reading(keys[3], cache.begin_reading(keys[3]), Stored(b"x" * 100, 1))
    assert [key for key in keys if cache.get(key)] == [keys[0], keys[2], keys[3]]
    cache.apply([change(2, key=keys[0], data=b"x" * 10_000)])
    assert [key for key in keys if cache.get(key)] == [keys[2], keys[3]]
    cache.apply([change(2, key=keys[3], data=b"x" * 10_000)])  # the most recently read: the others go first
    assert [key for key in keys if cache.get(key)] == []
    assert cache.bytes == 0


def test_cache_counts_its_bytes_correctly() -> None:
    dice = random.Random(1)
    cache = DocumentCache(20_000)
    seqs = itertools.count(1)
    for _ in range(3000):
        key = (1, "a", str(dice.randrange(60)))
        if dice.random() < 0.5:
            stored = Stored(b"x" * dice.randrange(900), next(seqs))
            cache.end_reading(key, cache.begin_reading(key), stored)
        else:
            kind = dice.choice(("insert", "update", "delete"))
            cache.apply([change(next(seqs), kind, key, b"x" * dice.randrange(900))])
        assert cache.bytes == sum(len(s.data) + OVERHEAD_BYTES for s in cache._entries.values()) <= 20_000
