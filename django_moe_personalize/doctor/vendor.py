"""Examine MoEngage: call its API as a page does, for an unknown visitor."""

from __future__ import annotations

import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from types import SimpleNamespace
from typing import Any, Final
from urllib.parse import urlsplit

from django_moe_personalize import exceptions
from django_moe_personalize.client import build_client, is_embedded
from django_moe_personalize.conf import SETTING, ConfigurationError, Settings
from django_moe_personalize.conf.readers import suggest
from django_moe_personalize.doctor.site import RATE_LIMIT_FIX, Finding
from django_moe_personalize.log import PROXY_FIX
from django_moe_personalize.moengage.client import PersonalizeClient, Transport
from django_moe_personalize.moengage.http1 import Request, Response
from django_moe_personalize.moengage.types import MAX_KEYS, ExperiencesMetadata, ExperienceStatus
from django_moe_personalize.resilience import Deadline, WorkerPool
from django_moe_personalize.runtime import get_runtime

MAX_SKEW: Final = 5.0
"""The tolerated difference of this machine's clock, in seconds. MoEngage refuses future events (contract §7)."""

Call = Callable[..., tuple[Any, float]]
"""Make a call to MoEngage. Return the result and the duration in seconds. Raises APIError, TimeoutError."""


def _compare_clocks(inner: Transport, skews: list[float], proxies: list[str]) -> Any:
    """Wrap ``inner``. For each response, append to ``skews`` how many seconds this machine is ahead of MoEngage.

    Append the name of the proxy, or ``""``, to ``proxies``.
    """
    proxies.append(getattr(inner, "proxy", ""))

    def send(request: Request, *, deadline: Deadline) -> Response:
        response = inner.send(request, deadline=deadline)
        with suppress(ValueError):
            # The header omits fractions of a second: half a second on average.
            vendor_time = parsedate_to_datetime(response.headers.get("date", "")).timestamp() + 0.5
            skews.append(time.time() - vendor_time)
        return response

    return SimpleNamespace(send=send, close=inner.close)


def examine_vendor(settings: Settings, keys: Mapping[str, str], seconds: float) -> Iterator[Finding]:
    """Fetch the metadata, compare ``keys`` with the metadata, and fetch the experiences of ``keys``.

    ``keys`` maps each key of the site to the place that names the key. Each call may take ``seconds``.
    """
    skews, proxies = [0.0], [""]
    try:
        client = build_client(get_runtime(), wrap=lambda transport: _compare_clocks(transport, skews, proxies))
    except ConfigurationError:
        what = "The doctor can't call MoEngage, because the settings are wrong or incomplete."
        yield Finding("problem", what, "Fix the problems above.", "vendor.settings")
        return
    pool = WorkerPool(1, name="moe-personalize-doctor")

    def call(method: Callable[..., Any], *args: Any) -> tuple[Any, float]:
        # In another thread: a DNS lookup has no deadline, so the doctor may have to leave it running.
        started = time.perf_counter()
        result = pool.submit(method, *args, deadline=Deadline(seconds)).result(seconds + 1)
        return result, time.perf_counter() - started

    yield Finding("ok", describe_end(settings, proxies[-1]), id="vendor.server")
    try:
        yield from _examine_calls(client, call, keys, settings)
    except Exception as error:
        yield explain_error(error, str(urlsplit(settings.base_url).hostname), proxies[-1], seconds)
    if abs(skews[-1]) > MAX_SKEW:
        ahead = "ahead of" if skews[-1] > 0 else "behind"
        what = f"This machine's clock is {abs(skews[-1]):.0f} s {ahead} MoEngage's, so the times of events are wrong."
        yield Finding("warning", what, "Synchronize the clock with NTP.", "clock.wrong")
    client.close()


def describe_end(settings: Settings, proxy: str = "") -> str:
    """Name the server, the workspace and the proxy that the site uses, without credentials."""
    if is_embedded(settings):
        return "The sandbox in each process answers, so nothing is sent to MoEngage."
    host = urlsplit(settings.base_url).hostname
    is_vendor = host == f"sdk-{settings.data_center}.moengage.com"
    end = f"MoEngage's data center {settings.data_center}" if is_vendor else "the server in BASE_URL"
    end = "a sandbox in BASE_URL" if settings.sandbox else end
    kind = ", a test workspace" if settings.workspace_id.endswith("_DEBUG") else ""
    workspace = settings.workspace_id or "in its file"
    through = f", through {proxy}" if proxy else ""
    return f"The site calls {end}, at {host}, for the workspace {workspace}{kind}{through}."


def _examine_calls(
    client: PersonalizeClient, call: Call, keys: Mapping[str, str], settings: Settings
) -> Iterator[Finding]:
    metadata, seconds = call(client.fetch_metadata)
    statuses = Counter(meta.status.value for meta in metadata.experiences)
    counts = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items())) or "none"
    took = f"answered in {seconds * 1000:.0f} ms"
    if statuses[ExperienceStatus.ACTIVE.value]:
        what = f"The credentials are right. Experiences in the workspace: {counts} ({took})."
        yield Finding("ok", what, id="vendor.works")
    else:
        fix = "Publish an experience in the dashboard, or use the credentials of the right workspace."
        what = f"The workspace has no active experience: {counts} ({took})."
        yield Finding("warning", what, fix, "vendor.no_experience")
    yield from compare_keys(keys, metadata)
    active = [meta.experience_key for meta in metadata.experiences if meta.status is ExperienceStatus.ACTIVE]
    wanted = [key for key in keys if key in active] or active
    if wanted:
        yield _examine_fetch(client, call, wanted[:MAX_KEYS], settings)


def compare_keys(keys: Mapping[str, str], metadata: ExperiencesMetadata) -> Iterator[Finding]:
    """Report each key of the site that is unknown or inactive in the workspace, and the number of active keys."""
    statuses = {meta.experience_key: meta.status for meta in metadata.experiences}
    for key, place in keys.items():
        status = statuses.get(key)
        if status is None:
            fix = suggest(key, statuses, "Correct the key there, or create the experience in the dashboard.")
            what = f"The workspace has no experience {key!r}, but {place} names it."
            yield Finding("problem", what, fix, "keys.unknown")
        elif status is not ExperienceStatus.ACTIVE:
            what = f"Experience {key!r}, which {place} names, is {status.value}, so visitors see the fallback."
            yield Finding("warning", what, "Activate it in the dashboard to show it.", "keys.inactive")
    active = sum(statuses.get(key) is ExperienceStatus.ACTIVE for key in keys)
    if not keys:
        what = "No setting, view or template names an experience. Other code may still read some."
        yield Finding("ok", what, id="keys.none")
    elif active:
        what = f"Of the {len(keys)} keys in settings, views and templates, {active} are active."
        yield Finding("ok", what, id="keys.active")


def _examine_fetch(client: PersonalizeClient, call: Call, keys: Sequence[str], settings: Settings) -> Finding:
    """Fetch on a new connection, as the first page of a process does. Then fetch again on the open connection."""
    client.close()
    (_, first), (result, second) = [call(client.fetch_experiences, keys) for _ in range(2)]
    what = (
        f"A fetch of {len(keys)} keys took {first * 1000:.0f} ms on a new connection and {second * 1000:.0f} ms on "
        f"an open one. A page waits up to {settings.deadline * 1000:.0f} ms. "
        f"An unknown visitor gets {len(result.experiences)} of these experiences."
    )
    if second > settings.deadline:
        fix = "Raise DEADLINE, or find out why MoEngage takes so long."
        what = f"{what} So pages show their fallbacks until an answer is cached."
        return Finding("warning", what, fix, "vendor.slow")
    if first > settings.deadline:
        what += " So a page without an open connection, such as the first page of a process, shows its fallbacks."
        fix = "Raise DEADLINE if that matters. The next page uses the connection."
        return Finding("warning", what, fix, "vendor.slow_start")
    return Finding("ok", what, id="vendor.speed")


def explain_error(error: Exception, host: str, proxy: str, seconds: float) -> Finding:
    """Explain why a call failed."""
    if isinstance(error, exceptions.ProxyError):
        return Finding("problem", f"MoEngage can't be reached: {error}.", PROXY_FIX, "vendor.proxy")
    if isinstance(error, exceptions.ResponseError) and error.status == 407:
        what = f"MoEngage can't be reached: {proxy or 'a proxy'} answered 407 (wrong user or password)."
        return Finding("problem", what, PROXY_FIX, "vendor.proxy")
    if answer := _explain_answer(error):
        return Finding("problem", *answer, f"vendor.http_{getattr(error, 'status', 200)}")
    end = f"{host} through {proxy}" if proxy else host
    return Finding("problem", *_explain_silence(error, end, seconds), "vendor.no_answer")


def _explain_answer(error: Exception) -> tuple[str, str] | None:
    """Explain an error response of MoEngage, and its fix. Return ``None`` for other errors.

    Leaves out the text of the response, because it may contain a visitor's data.
    """
    match error:
        case exceptions.AuthenticationError(status=403):
            fix = (
                "Use a Personalize key: newer keys of another kind get a 403. If the key is right, ask MoEngage whether"
            )
            return "MoEngage forbids the call (403).", f"{fix} the account is suspended."
        case exceptions.AuthenticationError():
            where = "Copy WORKSPACE_ID and the Personalize key of that workspace from Settings > Account > APIs."
            fix = f"{where} A key of another feature, or an old key, doesn't work."
            return "MoEngage refuses the credentials (401).", fix
        case exceptions.RateLimitedError():
            return "MoEngage limits the rate of this workspace's calls (429).", RATE_LIMIT_FIX
        case exceptions.ServerError():
            fix = "Wait. Until then, pages show cached answers or their fallbacks."
            return f"MoEngage itself has a failure ({error.status}).", fix
        case exceptions.ResponseError(status=400, title="Request Error"):
            fix = "Correct WORKSPACE_ID or DATA_CENTER. Only its own data center knows a workspace."
            return "MoEngage doesn't know the workspace (400).", fix
        case exceptions.ResponseError():
            fix = "Correct BASE_URL or DATA_CENTER, or the proxy in between."
            return f"MoEngage's API doesn't answer like this ({error.status}).", fix
        case exceptions.InvalidResponseError():
            fix = "Correct BASE_URL, or the proxy in between: it may answer with a page of its own."
            return "MoEngage's API doesn't answer like this (the body is wrong).", fix
    return None


def _explain_silence(error: Exception, host: str, seconds: float) -> tuple[str, str]:
    """Explain why a call got no answer, and how to fix the cause."""
    match error.__cause__:
        case socket.gaierror():
            return f"{host} can't be found (DNS).", "Correct DATA_CENTER or BASE_URL, or this machine's DNS."
        case ssl.SSLError() as cause:
            reason = f": {cause.verify_message}" if isinstance(cause, ssl.SSLCertVerificationError) else ""
            fix = f'If a proxy decrypts TLS, set {SETTING}["TRANSPORT"]["OPTIONS"]["verify"] to its CA file.'
            return f"No TLS with {host}{reason}.", fix
        case ConnectionRefusedError():
            return f"{host} refuses connections.", "Start the server, or correct the port in BASE_URL."
    if isinstance(error, (exceptions.DeadlineExceeded, TimeoutError)):
        fix = "Let this machine through the firewall, or set the proxy in TRANSPORT. MoEngage may also be slow."
        return f"No answer from {host} within {seconds:g} s.", fix
    fix = "Try again. If it fails again, check the firewall and the proxy."
    return f"No whole answer from {host} ({type(error).__name__}).", fix
