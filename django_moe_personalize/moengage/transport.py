"""How a request reaches MoEngage: the transport over ``requests`` and, in two steps, over its connections."""

from __future__ import annotations

import functools
import http.client
import os
import ssl
from collections.abc import Mapping
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from requests.utils import DEFAULT_CA_BUNDLE_PATH, get_environ_proxies, select_proxy
from urllib3.exceptions import HTTPError

from django_moe_personalize.exceptions import APIError, DeadlineExceeded, InvalidResponseError
from django_moe_personalize.moengage.answers import MAX_BYTES, build_failure, build_response, refuse_size
from django_moe_personalize.moengage.base_url import validate_base_url
from django_moe_personalize.moengage.exchange import WarmExchange
from django_moe_personalize.moengage.messages import NotTakenError, Request, Response
from django_moe_personalize.moengage.pools import TIMED_POOLS, TimedHTTPPool
from django_moe_personalize.resilience import Deadline

_CHUNK = 64 * 1024


class _Owned(NamedTuple):
    """The connections of one process."""

    pid: int
    adapter: _Adapter
    pool: TimedHTTPPool


class RequestsTransport:
    """Send over HTTP with ``requests``' adapter, on connections that are kept alive.

    ``base_url`` is https, or http on loopback. One call lasts at most its deadline and, with a
    longer one or none, ``timeout`` seconds; ``connect_timeout`` bounds connecting to one address.
    Sending, waiting and reading end on the dot however slowly an answer drips. Two things are not
    in our hands: the system's DNS lookup has no timeout, and a name with several addresses that
    all stay silent takes ``connect_timeout`` for each. A page calls from a thread it can abandon.

    There is no ``Session``, hence no redirect is followed, no netrc is read and no cookie is
    kept: one visitor's cookie must not travel with another's request. ``proxies`` (``{"https":
    "http://proxy:3128"}``) is what ``requests`` takes, without SOCKS. ``trust_env`` reads proxies
    and, when ``verify`` is ``True``, REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE from the environment.
    ``verify`` may be a CA file or folder; ``False`` accepts any certificate.

    Thread-safe. After a fork the child makes connections of its own. Raises ValueError for a base
    URL, proxy or CA path that cannot be.
    """

    def __init__(
        self,
        base_url: str,
        *,
        connect_timeout: float = 3.0,
        timeout: float = 30.0,
        pool_maxsize: int = 128,
        proxies: Mapping[str, str] | None = None,
        trust_env: bool = False,
        verify: bool | str = True,
    ) -> None:
        self.base_url = validate_base_url(base_url)
        self._connect_timeout = connect_timeout
        self._timeout = timeout
        self._pool_maxsize = pool_maxsize
        self._proxies = _choose_proxy(self.base_url, proxies, trust_env=trust_env)
        verify = _choose_verify(verify, trust_env=trust_env)
        # Without TLS there is nothing to verify, but perhaps on the way to a proxy.
        is_plain = self.base_url.startswith("http:") and not self._proxies
        self._context = None if is_plain else _get_tls_context(verify)
        self._base_path = urlsplit(self.base_url).path
        self._owned: _Owned | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.base_url}>"

    def send(self, request: Request, *, deadline: Deadline) -> Response:
        """Return the answer, whatever its status; redirects too.

        Raises DeadlineExceeded, TransportError for no or half an answer, InvalidResponseError for
        a body above 1 MiB or compressed in another way than asked for. A request is sent again
        once, when a kept connection turns out to have died while it was idle.
        """
        outcome = self._attempt(request, deadline)
        if isinstance(outcome, NotTakenError):
            # The pool hands out the connection put back last: the one just closed, which connects anew.
            outcome = self._attempt(request, deadline)
        if isinstance(outcome, APIError):
            raise outcome
        return outcome

    def reserve(self) -> WarmExchange | None:
        """Return a kept connection on which a request can be sent at once; ``None`` when one would have to be made.

        Whoever takes it sends and receives on it, or releases it. Through a proxy there is none.
        """
        if self._proxies:
            return None
        pool = self._get_owned().pool
        connection = pool.take_warm()
        return None if connection is None else WarmExchange(pool, connection, self._base_path)

    def close(self) -> None:
        """Close the idle connections; the transport may be used again."""
        owned, self._owned = self._owned, None
        # Closing in a forked child closes its copies only; the parent's connections live on.
        if owned is not None:
            owned.adapter.close()

    def _attempt(self, request: Request, deadline: Deadline) -> Response | APIError:
        # A failure is returned and raised anew by send(): the frames below hold headers and body
        # in plain sight, and so does every requests exception; error reports print both.
        left = deadline.remaining()
        if left == 0.0:
            return DeadlineExceeded("no time was left to ask MoEngage")
        total = self._timeout if left is None else min(left, self._timeout)
        try:
            answer = self._get_owned().adapter.send(
                self._prepare(request),
                stream=True,
                timeout=cast(Any, urllib3.Timeout(total=total, connect=min(total, self._connect_timeout))),
                proxies=self._proxies,
            )
            return _read(answer.raw)
        except InvalidResponseError as error:
            return InvalidResponseError(str(error))
        except (requests.RequestException, HTTPError, http.client.HTTPException, OSError) as error:
            return build_failure(error, wrapper=requests.RequestException)

    def _get_owned(self) -> _Owned:
        # By process: a connection shared across a fork hands one visitor's answer to another. No
        # lock, since one held at the fork would be held for ever in the child; two threads that
        # both build cost one connection too many.
        owned = self._owned
        if owned is None or owned.pid != os.getpid():
            adapter = _Adapter(self._context, self._pool_maxsize)
            owned = self._owned = _Owned(os.getpid(), adapter, adapter.get_pool(self.base_url))
        return owned

    def _prepare(self, request: Request) -> requests.PreparedRequest:
        # By hand: prepare() costs as much as sending, to normalise what is normal already.
        prepared = requests.PreparedRequest()
        prepared.method = request.method
        prepared.url = self.base_url + request.path + (f"?{request.query}" if request.query else "")
        prepared.headers = _Headers(request.headers)
        prepared.headers["Accept-Encoding"] = "gzip"
        if request.body:
            prepared.headers["Content-Length"] = str(len(request.body))
            prepared.body = _Body(request.body)
        return prepared


def _choose_proxy(base_url: str, proxies: Mapping[str, str] | None, *, trust_env: bool) -> dict[str, str]:
    given = dict(proxies or {})
    proxy = select_proxy(base_url, given)
    if proxy is None and trust_env:
        proxy = select_proxy(base_url, get_environ_proxies(base_url, no_proxy=None))
    if not proxy:
        return {}
    # SOCKS has pools of its own, which ours would replace: the call would go out without a proxy.
    if "://" in proxy and not proxy.lower().startswith(("http://", "https://")):
        raise ValueError("a proxy must be an http:// or https:// URL")
    return {"all": proxy}


def _choose_verify(verify: bool | str, *, trust_env: bool) -> bool | str:
    if verify is True and trust_env:
        verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
    if isinstance(verify, str) and not os.path.exists(verify):
        raise ValueError("verify must be True, False or the path of an existing CA file or folder")
    return verify


@functools.cache
def _get_tls_context(verify: bool | str) -> ssl.SSLContext:
    """Return the process's one context for a CA bundle: to load the bundle takes 13 ms."""
    path = DEFAULT_CA_BUNDLE_PATH if verify is True else verify or None
    is_folder = path is not None and os.path.isdir(path)
    context = ssl.create_default_context(cafile=None if is_folder else path, capath=path if is_folder else None)
    if verify is False:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class _Adapter(HTTPAdapter):
    """``requests``' adapter on our pools and one TLS context."""

    def __init__(self, context: ssl.SSLContext | None, pool_maxsize: int) -> None:
        self._context = context
        super().__init__(pool_connections=1, pool_maxsize=pool_maxsize)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = TIMED_POOLS

    def get_pool(self, base_url: str) -> TimedHTTPPool:
        """Return the pool that requests to ``base_url`` use."""
        request = requests.PreparedRequest()
        request.url = base_url
        return cast(TimedHTTPPool, self.get_connection_with_tls_context(request, verify=True))

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs)
        manager.pool_classes_by_scheme = TIMED_POOLS
        return manager

    def build_connection_pool_key_attributes(self, *args: Any, **kwargs: Any) -> Any:
        host, _tls = super().build_connection_pool_key_attributes(*args, **kwargs)
        return host, {"ssl_context": self._context}

    def cert_verify(self, *args: Any, **kwargs: Any) -> None:
        """Leave the pool alone: the inherited method makes every connection load the CA bundle."""


class _Headers(CaseInsensitiveDict[str]):
    """Headers that no repr shows, in whichever frame of ``requests`` they are a local."""

    def __repr__(self) -> str:
        return "<headers>"

    def copy(self) -> _Headers:
        """Return a copy that hides as well: urllib3 works on one, the inherited method tells all."""
        return _Headers(self)


class _Body(bytes):
    """See _Headers."""

    def __repr__(self) -> str:
        return "<body>"


def _read(raw: urllib3.HTTPResponse) -> Response:
    """Return the whole answer; a connection with anything left on it is closed, not kept."""
    try:
        # Not decoded by urllib3: before 2.6 it inflates whatever a chunk holds.
        body = b""
        while chunk := raw.read(min(_CHUNK, MAX_BYTES + 1 - len(body)), decode_content=False):
            body += chunk
            if len(body) > MAX_BYTES:
                raise refuse_size()
        return build_response(raw.status, raw.headers.items(), body)
    finally:
        raw.close()
