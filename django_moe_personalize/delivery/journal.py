"""Note on Redis, beside the queue, what no worker is done with: Redis forgets what it hands to a worker.

Celery's transport takes a message off a list, and notes in a second step that a worker has it. Who
is killed between the two has the only copy. So each message is noted here before it is queued, is
struck when it was worked on, and is found overdue when it was not.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

_NAME = "journal"
"""A field among those of the messages, whose names are UUIDs."""


class Entry(NamedTuple):
    """What a message says of its entry: the key, the queue whose journal has it, and that journal's name.

    The name goes when Redis loses the journal. So an entry that is missing, where the name is still
    the same, was struck; where it is another, nothing is known.
    """

    key: str
    queue: str
    name: str


class Journal:
    """The messages of a queue that no worker is done with, and when each is due (seconds since the epoch).

    All workers and web processes of a site share it; another site may use the same Redis with
    another queue. Every method raises what the Redis client raises.
    """

    def __init__(self, client: Any, queue: str, prefix: str = "") -> None:
        self._client = client
        self._queue = queue
        # In braces, so that a Redis that spreads its keys keeps them together.
        base = f"{prefix}{{moe_personalize.{queue}}}"
        self._messages, self._due, self._sweeper = f"{base}.messages", f"{base}.due", f"{base}.sweeper"

    def write(self, key: str, message: str, *, due: float, instead_of: Entry | None = None) -> Entry | None:
        """Note a message, once however often it is tried; in place of another of this queue, which is struck.

        None says that the other was struck already, by somebody else who had it in hand too: then
        nothing was noted.
        """
        old = instead_of.key if instead_of is not None and instead_of.queue == self._queue else None
        with self._client.pipeline() as pipe:
            if old is not None:
                self._add_strike(pipe, old)
            pipe.hset(self._messages, key, message)
            pipe.zadd(self._due, {key: due})
            pipe.hsetnx(self._messages, _NAME, uuid.uuid4().hex)
            pipe.hget(self._messages, _NAME)
            answers = pipe.execute()
        # What is not new was noted by an attempt whose answer was lost, and which struck the other.
        if old is not None and not answers[0] and answers[2]:
            self.strike(key)
            return None
        return Entry(key, self._queue, answers[-1].decode())

    def strike(self, key: str) -> None:
        """Forget a message, if it is there."""
        with self._client.pipeline() as pipe:
            self._add_strike(pipe, key)
            pipe.execute()

    def _add_strike(self, pipe: Any, key: str) -> None:
        pipe.hdel(self._messages, key)
        pipe.zrem(self._due, key)

    def find(self, entry: Entry) -> bool | None:
        """Say whether an entry is there; None where this journal is not the one that had it."""
        message, name = self._client.hmget(self._messages, [entry.key, _NAME])
        if message is not None:
            return True
        return False if name == entry.name.encode() else None

    def take_turn(self, seconds: float) -> bool:
        """Say whether the caller is the one who looks for what is overdue, for the next seconds."""
        return bool(self._client.set(self._sweeper, "", nx=True, px=round(seconds * 1000)))

    def find_overdue(self, before: float, limit: int) -> list[bytes]:
        """Return the keys of messages that were due before a moment, the oldest first."""
        found: list[bytes] = self._client.zrangebyscore(self._due, "-inf", before, start=0, num=limit)
        return found

    def claim(self, keys: Sequence[bytes], due: float) -> list[tuple[Entry, str]]:
        """Return those messages that are still there, which are due at another moment from now on.

        Who is killed before they are queued has lost nothing: they will be overdue again.
        """
        with self._client.pipeline() as pipe:
            pipe.zadd(self._due, dict.fromkeys(keys, due), xx=True)
            pipe.hmget(self._messages, [*keys, _NAME])
            *messages, name = pipe.execute()[-1]
        if gone := [key for key, message in zip(keys, messages, strict=True) if message is None]:
            # A Redis that has lost a part of what it had: nobody will be done with these.
            self._client.zrem(self._due, *gone)
        return [
            (Entry(key.decode(), self._queue, name.decode()), message.decode())
            for key, message in zip(keys, messages, strict=True)
            if message is not None
        ]

    def __len__(self) -> int:
        return int(self._client.zcard(self._due))


def open_journal(connection: Any, queue: str) -> Journal | None:
    """Return the journal that is kept beside a queue where a connection of kombu's leads, None if that is no Redis."""
    if connection.transport.driver_type != "redis":
        return None
    from redis import Redis

    channel = connection.default_channel
    # Kombu's own client puts its prefix before the keys of some commands only.
    return Journal(Redis(connection_pool=channel.pool), queue, channel.global_keyprefix)
