"""Keep connections open between calls, and open new connections in the background.

A connection outlives the call that wanted it. If connecting takes longer than a page may wait, the page shows its
default, and the next page finds the open connection.
"""

from __future__ import annotations

import copy
import math
import os
import socket
import ssl
import threading
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future
from concurrent.futures import wait as wait_for
from contextlib import suppress
from typing import Final, cast

from django_moe_personalize.exceptions import APIError, DeadlineExceeded, StillConnecting
from django_moe_personalize.moengage.connections import Address, Connector
from django_moe_personalize.moengage.http1 import HTTPExchange
from django_moe_personalize.resilience import PoolBusy, WorkerPool, monotonic

STAGGER: Final = 0.25
"""Seconds until the next address of the host is tried as well (RFC 8305 §5)."""

EARLY_SECONDS: Final = 1.0
"""How long an attempt may take before the circuit breaker counts the calls that gave up. To connect takes 3 to 5 round
trips, so a server that takes longer is also too far away to answer within a page's deadline."""

COLD_ATTEMPTS: Final = 4
"""The most attempts at a time until one succeeds, however many callers wait."""

MAX_THREADS: Final = 64
"""The most threads that connect or read late responses. Only DNS lookups or responses that hang can fill them."""

ADDRESS_SECONDS: Final = 60.0
"""How long callers reconnect to an address without another DNS lookup."""

GRACE: Final = 0.5
"""Seconds after the end of an attempt's time. Only a DNS lookup, which has no timeout, takes longer."""

LINGER_SECONDS: Final = 3.0
"""How long a thread reads the rest of a response whose caller has left."""

MAX_SUSPECTS: Final = 64


class Attempt(Future[None]):
    """An attempt to open a connection. Sockets wait until ``until``, and callers wait a little longer."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.started = monotonic()
        self.extend(seconds)

    def extend(self, seconds: float) -> None:
        """Let the attempt take ``seconds`` from now on."""
        self.until = monotonic() + seconds
        self.overdue = self.until + GRACE


class Connection:
    """An open connection to one address. ``is_used``: it has carried a request."""

    __slots__ = ("address", "is_used", "sock")

    def __init__(self, sock: socket.socket, address: Address) -> None:
        self.sock = sock
        self.address = address
        self.is_used = False

    @property
    def is_connected(self) -> bool:
        """Whether the server has neither closed the connection nor sent anything unasked, except session tickets."""
        self.sock.settimeout(0.0)
        try:
            # TLS 1.3 sends tickets after the handshake, and recv() doesn't return them.
            self.sock.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            pass
        return False

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()


class ConnectionPool:
    """The idle connections to one server, and the attempts to open more. Thread-safe."""

    def __init__(self, connector: Connector, *, connect_timeout: float, max_idle: int) -> None:
        self._connector = connector
        self._connect_timeout = connect_timeout
        self._max_idle = max_idle
        self._start()

    def __del__(self) -> None:
        # At the end of a process, the names that close() uses may be gone.
        while self.idle:
            self.idle.popleft().close()

    def _start(self) -> None:
        self._pid = os.getpid()
        self.idle: deque[Connection] = deque()
        """The idle connections, the most recently used last."""
        self._changed = threading.Condition()
        self._attempts: list[Attempt] = []
        self._waiting = 0
        # Whether the last attempt succeeded, or None before the end of the first attempt.
        self._is_up: bool | None = None
        # When an address failed last. The address that failed last is tried last.
        self._suspects: dict[Address, float] = {}
        # The address of the last new connection, until when it's valid, and the seconds that connecting took.
        self._fastest: tuple[Address | None, float, float] = None, 0.0, 0.0
        self._threads = WorkerPool(MAX_THREADS, name="moe-personalize-connect")

    def take(self) -> Connection | None:
        """Return the most recently used idle connection, or ``None``. Drops connections that the server has closed."""
        # After a fork: two processes on one connection would read each other's responses. This code uses no lock,
        # because a lock that a thread holds during the fork stays locked in the child. Two threads at this point at
        # the same time lose one connection at most.
        if self._pid != os.getpid():
            self.close()
            self._start()
        idle = self.idle
        while True:
            try:
                connection = idle.pop()
            except IndexError:
                return None
            if connection.is_connected:
                return connection
            connection.close()

    def wait(self, seconds: float, *, is_new: bool = False) -> Connection:
        """Return a connection as soon as one is idle or newly open. ``is_new``: one that carried no request yet.

        Raises StillConnecting after ``seconds``, and an APIError if no connection can be opened.
        """
        until = monotonic() + seconds
        if not self.idle and (reconnected := self._reconnect(seconds)) is not None:
            return reconnected
        attempt: Attempt | None = None
        try:
            with self._changed:
                self._waiting += 1
                try:
                    while (connection := self._take_new() if is_new else self.take()) is None:
                        attempt = self._join(attempt)
                        if (now := monotonic()) >= until:
                            raise self._give_up()
                        self._changed.wait(max(0.0, min(until, attempt.overdue) - now))
                    return connection
                finally:
                    self._waiting -= 1
        except PoolBusy:
            return self._connect_here(until)

    def give_back(
        self,
        connection: Connection,
        idle: deque[Connection],
        is_reusable: bool,
        late: HTTPExchange | None = None,
    ) -> None:
        """Make a connection idle again, or close it. ``idle`` is the attribute at the start of the exchange.

        ``late`` is an exchange on the connection whose caller has left. A thread reads the rest of its response.
        """
        if late is not None:
            self._linger(connection.address, late)
            return
        if self._suspects and is_reusable:
            self._suspects.pop(connection.address, None)
        # A different ``idle`` means that close() ran in the meantime.
        if not is_reusable or idle is not self.idle:
            connection.close()
            return
        idle.append(connection)
        if len(idle) > self._max_idle:
            # Another thread may have taken the last connection.
            with suppress(IndexError):
                idle.popleft().close()
        if self._waiting:
            with self._changed:
                self._changed.notify()

    def close(self) -> None:
        """Close the idle connections. The pool stays usable. A child process closes only its own copies."""
        idle, self.idle = self.idle, deque()
        # Another thread may have taken the last connection.
        with suppress(IndexError):
            while idle:
                idle.popleft().close()

    def _reconnect(self, seconds: float) -> Connection | None:
        """Connect in the caller's thread if that took little time before. Else, and after an error, return ``None``.

        A thread in the background would take 1,300 bytecodes and two hand-overs more.
        """
        (address, until, took), self._fastest = self._fastest, (None, 0.0, 0.0)
        is_near = monotonic() <= until and 4 * took <= min(seconds, 2 * STAGGER)
        if address is None or address in self._suspects or self._attempts or not is_near:
            return None
        start = monotonic()
        try:
            connection = Connection(self._connector.connect(address, min(seconds / 2, STAGGER)), address)
        except APIError:
            self._suspect(address)
            return None
        self._fastest = address, until, monotonic() - start
        return connection

    # A caller waits. Each of these methods needs the lock.

    def _take_new(self) -> Connection | None:
        """Return a connection that no request has used."""
        for connection in [*self.idle]:
            # Another thread may have taken the connection.
            with suppress(ValueError):
                if not connection.is_used:
                    self.idle.remove(connection)
                    return connection
        return None

    def _join(self, attempt: Attempt | None) -> Attempt:
        """Return the attempt to wait for. Raises the error of the caller's last ``attempt`` if no other is under way.

        A page that leaves makes its successor wait for the same attempt.
        """
        now = monotonic()
        for late in [one for one in self._attempts if now >= one.overdue]:
            self._end(late, DeadlineExceeded(f"{self._connector.peer} did not answer in time: the DNS lookup hangs"))
        if attempt is not None and not attempt.done():
            return attempt
        error = None if attempt is None else attempt.exception()
        if (error is None or self._is_up) and self._may_begin(now):
            attempt = Attempt(self._connect_timeout)
            self._threads.submit(self._run, attempt, self.idle)
            self._attempts.append(attempt)
        elif self._attempts:
            attempt = self._attempts[-1]
        else:
            failure = cast(BaseException, error)
            # A copy, because several threads raise the error at the same time.
            raise (copy.copy(failure) if isinstance(failure, APIError) else failure) from failure.__cause__
        return attempt

    def _may_begin(self, now: float) -> bool:
        """Return whether a waiting caller may begin an attempt: one for each caller, and fewer until one succeeds."""
        most = self._waiting if self._is_up else min(self._waiting, COLD_ATTEMPTS)
        # If all hang, one more attempt from time to time, because the cause may be gone.
        return len(self._attempts) < most or now - self._attempts[-1].started >= EARLY_SECONDS

    def _give_up(self) -> StillConnecting:
        attempt = self._attempts[-1]
        is_early = self._is_up is not False and monotonic() - self._attempts[0].started < EARLY_SECONDS
        message = f"{self._connector.peer} did not answer in time: the connection isn't open yet"
        return StillConnecting(message, attempt, is_early=is_early)

    def _connect_here(self, until: float) -> Connection:
        """Connect in the caller's thread. At its exit, Python starts no thread for the last events."""
        attempt = Attempt(self._connect_timeout)
        self._run(attempt, self.idle, until)
        attempt.result()
        return self.take() or self._connect_here(until)

    # A thread connects.

    def _run(self, attempt: Attempt, idle: deque[Connection], until: float = math.inf) -> None:
        """Open a connection before ``until`` and make it idle."""
        error: BaseException | None = None
        try:
            addresses = sorted(self._connector.look_up(), key=lambda address: self._suspects.get(address, 0.0))
            attempt.extend(min(self._connect_timeout, until - monotonic()))
            self._race(attempt, addresses, idle)
        except BaseException as caught:
            error = caught
        with self._changed:
            self._end(attempt, error)

    def _race(self, attempt: Attempt, addresses: list[Address], idle: deque[Connection]) -> None:
        """Try one address after the other, and return after the first connection. Raises the error of the last address.

        An address that needs more than STAGGER to connect, with TLS, doesn't hold up the next address.
        """
        running: dict[Future[None], Address] = {}
        while True:
            if addresses:
                address = addresses.pop(0)
                if not addresses and not running:
                    return self._open(attempt, address, idle)
                running[self._submit(attempt, address, idle)] = address
            done, _ = wait_for(running, STAGGER if addresses else None, FIRST_COMPLETED)
            for ended in done:
                del running[ended]
            is_open = any(ended.exception() is None for ended in done)
            if is_open or not done:
                for slow in running.values():
                    self._suspect(slow)
            if is_open:
                return None
            if not addresses and not running:
                return done.pop().result()

    def _submit(self, attempt: Attempt, address: Address, idle: deque[Connection]) -> Future[None]:
        try:
            return self._threads.submit(self._open, attempt, address, idle)
        except PoolBusy:
            ended: Future[None] = Future()
            try:
                self._open(attempt, address, idle)
                ended.set_result(None)
            except BaseException as error:
                ended.set_exception(error)
            return ended

    def _open(self, attempt: Attempt, address: Address, idle: deque[Connection]) -> None:
        """Connect to one address and make the connection idle, unless another address was faster."""
        start = monotonic()
        try:
            connection = Connection(self._connector.connect(address, attempt.until - start), address)
        except BaseException:
            self._suspect(address)
            raise
        if not self._connector.proxy:
            # Through a proxy, only a background thread may wait: the timeout of TLS inside of TLS is that of one read.
            self._fastest = address, monotonic() + ADDRESS_SECONDS, monotonic() - start
        is_faster = not attempt.done() or attempt.exception() is not None
        self.give_back(connection, idle, is_reusable=is_faster)

    def _end(self, attempt: Attempt, error: BaseException | None) -> None:
        """End an attempt, and wake the callers. Needs the lock."""
        self._is_up = error is None
        if not attempt.done():
            with suppress(ValueError):
                self._attempts.remove(attempt)
            if error is None:
                attempt.set_result(None)
            else:
                attempt.set_exception(error)
        self._changed.notify_all()

    def _linger(self, address: Address, exchange: HTTPExchange) -> None:
        """Read the rest of a late response, because a new connection could take longer than the next page waits."""
        if not exchange.has_begun:
            if address in self._suspects:
                # The second silence in a row. After one slow response, the other connections stay open.
                self._drop(address)
            self._suspect(address)
        if not self._threads.offer(self._drain, exchange):
            exchange.release()

    def _drain(self, exchange: HTTPExchange) -> None:
        # After an APIError, the exchange has ended.
        with suppress(APIError):
            if exchange.receive(LINGER_SECONDS) is None:
                exchange.release()

    def _suspect(self, address: Address) -> None:
        """Try this address last from now on."""
        if len(self._suspects) >= MAX_SUSPECTS:
            self._suspects.clear()
        self._suspects[address] = monotonic()

    def _drop(self, address: Address) -> None:
        """Close the idle connections to an address."""
        for connection in [*self.idle]:
            # Another thread may have taken the connection.
            with suppress(ValueError):
                if connection.address == address:
                    self.idle.remove(connection)
                    connection.close()
