"""Connections to the site's broker that are kept open for the next message, and the journal each leads to."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from django_moe_personalize.delivery.journal import Journal, open_journal
from django_moe_personalize.resilience import Deadline

Found = TypeVar("Found")


class Link:
    """A connection of kombu's, for one thread at a time."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self._journals: dict[str, Journal | None] = {}

    def open_journal(self, queue: str) -> Journal | None:
        """Return the journal beside a queue, if the broker is Redis."""
        if queue not in self._journals:
            self._journals[queue] = open_journal(self.connection, queue)
        return self._journals[queue]

    def close(self) -> None:
        """Hang up without a word of goodbye, for which a broker that hangs would have to be waited for."""
        with suppress(Exception):
            self.connection.collect(socket.getdefaulttimeout())


class Links:
    """The links of a process, as many as its threads have used at a time."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._idle: deque[Link] = deque()

    def use(self, work: Callable[[Link], Found], deadline: Deadline) -> Found:
        """Work on an idle link, or a new one if there is none or it turns out to have died."""
        while (link := self._take_idle()) is not None:
            try:
                return self._work_on(link, work)
            except Exception:
                # The others are as old; and what took long is no connection that had died.
                self.close()
                if deadline.expired:
                    raise
        return self._work_on(Link(self._connect()), work)

    def _work_on(self, link: Link, work: Callable[[Link], Found]) -> Found:
        try:
            found = work(link)
        except BaseException:
            link.close()
            raise
        self._idle.append(link)
        return found

    def _take_idle(self) -> Link | None:
        # Another thread may have taken the last.
        with suppress(IndexError):
            return self._idle.pop()
        return None

    def close(self) -> None:
        """Close those that are idle."""
        while (link := self._take_idle()) is not None:
            link.close()
