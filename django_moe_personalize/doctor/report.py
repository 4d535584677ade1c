"""Run all parts of the doctor. ``manage.py moe_doctor`` prints the findings.

The doctor really uses each part, within a time limit. If a part fails in an unexpected way, the doctor reports the
failure and continues with the next part.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from typing import Any, Final

from django.core.checks import ERROR

from django_moe_personalize.checks.experience_keys import find_keys
from django_moe_personalize.checks.settings import check_site
from django_moe_personalize.checks.template_leaks import get_engines, read_sources
from django_moe_personalize.conf import SETTING, ConfigurationError, Settings
from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.doctor import site
from django_moe_personalize.doctor.site import Finding, State
from django_moe_personalize.doctor.vendor import examine_vendor
from django_moe_personalize.planning import find_template_keys
from django_moe_personalize.resilience import WorkerPool
from django_moe_personalize.runtime import get_runtime

SECONDS: Final = 5.0
"""The seconds that one call or one part may take."""

NO_MIDDLEWARE: Final = "moe_personalize.W001"
"""A warning for the system checks, because a site may use only the API. To the doctor it's a problem."""

_USES = re.compile(r"(?:\{%|\|)\s*(experience|experience_value|experience_html|personalize_scripts)\b")


def diagnose(*, seconds: float = SECONDS) -> Iterator[Finding]:
    """Yield the findings about the current workspace, first about its settings and MoEngage. Never raises.

    Each step may take ``seconds``.
    """
    try:
        yield from _examine("the settings", examine_checks)
        settings = get_runtime().settings
    except ConfigurationError:
        # The system checks have already reported this mistake.
        return
    if not settings.enabled:
        what = "Personalization is off, so visitors see no experience."
        yield Finding("warning", what, f'Set {SETTING}["ENABLED"] to True to turn it on.', "settings.off")
        return
    yield from _examine("the kill switch", lambda: site.examine_switch(get_runtime()))
    keys, used = read_templates()
    yield from _examine("MoEngage", examine_vendor, settings, keys | find_keys(settings), seconds)
    pool = WorkerPool(2, name="moe-personalize-doctor")
    yield from _examine("the cache", _within, pool, seconds, site.examine_cache, settings)
    yield from _examine("the notices of the processes", _within, pool, seconds, site.examine_processes)
    yield from _examine("the notices of new visitors", _within, pool, seconds, site.examine_visitors, settings)
    # In this thread, which has the database connection of the command.
    yield from _examine("the delivery", lambda: site.examine_delivery(get_delivery()))
    yield from _examine("the sessions", site.examine_sessions)
    yield from _examine("the installed packages", site.examine_packages, used)
    yield from examine_scripts(settings, used)


def _examine(part: str, function: Callable[..., Iterable[Finding]], *args: Any) -> Iterator[Finding]:
    """Yield the findings of ``function``, or a finding about its error."""
    try:
        yield from function(*args)
    except TimeoutError:
        what = f"The doctor tried {part}, and got no answer in time."
        yield Finding("problem", what, "Find out what hangs: pages wait for it too.", "doctor.timeout")
    except ConfigurationError as error:
        what = f"The doctor couldn't try {part}: {error.message}"
        yield Finding("problem", what, error.hint, "doctor.settings")
    except Exception as error:
        # Leave out the error's text, because it may contain a setting's value or a visitor's data.
        what = f"The doctor tried {part}, and got the error {type(error).__name__}."
        yield Finding(
            "problem", what, "Read the log of the database, the cache or the queue that this step uses.", "doctor.error"
        )


def _within(pool: WorkerPool, seconds: float, function: Callable[..., Iterable[Finding]], *args: Any) -> list[Finding]:
    run = get_runtime().copy_context().run
    return pool.submit(lambda: run(lambda: list(function(*args)))).result(seconds)


def examine_checks() -> Iterator[Finding]:
    """Report the messages of this package's system checks, except messages that the site has silenced."""
    for message in check_site(get_runtime().name):
        if not message.is_silenced():
            is_serious = message.level >= ERROR or message.id == NO_MIDDLEWARE
            state: State = "problem" if is_serious else "warning"
            yield Finding(state, f"{message.id}: {message.msg}", message.hint or "", str(message.id))


def read_templates() -> tuple[dict[str, str], set[str]]:
    """Return the keys in the site's templates, each with the first template that names it, and the tags in use.

    Skips the keys of a template that doesn't compile.
    """
    keys: dict[str, str] = {}
    used: set[str] = set()
    for engine in get_engines():
        for name, source in read_sources(engine).items():
            tags = set(_USES.findall(source))
            used |= tags
            # Compiling a tag may raise any exception. The page that uses the template reports the mistake.
            with suppress(Exception):
                if tags & {"experience", "experience_value"}:
                    for key in find_template_keys(engine.get_template(name)):
                        keys.setdefault(key, f"the template {name}")
    return keys, used


def examine_scripts(settings: Settings, used: Collection[str]) -> Iterator[Finding]:
    """Report a missing script, if the browser has to count impressions."""
    if settings.impressions in ("visible", "web_sdk") and "personalize_scripts" not in used:
        what = f'IMPRESSIONS is "{settings.impressions}", but no template has {{% personalize_scripts %}}'
        fix = "Put this tag at the end of the pages."
        yield Finding("warning", f"{what}, so nothing is counted.", fix, "scripts.missing")
