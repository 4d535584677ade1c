"""From the settings to a client: MoEngage itself, or the sandbox embedded in this process."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from django.core.signals import setting_changed
from django.dispatch import receiver
from django.utils.module_loading import import_string

from django_moe_personalize.conf import SETTING, Backend, ConfigurationError, Settings, get_settings
from django_moe_personalize.moengage.base_url import validate_base_url
from django_moe_personalize.moengage.client import PersonalizeClient
from django_moe_personalize.moengage.messages import Transport
from django_moe_personalize.resilience import renew_after_fork

if TYPE_CHECKING:
    from django_moe_personalize.sandbox.engine import Engine
    from django_moe_personalize.sandbox.workspace import Workspace

EXTRAS: Final = {"celery": "celery", "django_tasks": "tasks"}
"""The library that a delivery of ours needs, and the extra of this package that brings it."""

MEND: Final = "Correct the path, or install what it needs."


class _Shared:
    """What this process made of the settings, until they change."""

    def __init__(self) -> None:
        self.client: PersonalizeClient | None = None
        self.engine: Engine | None = None
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Take a new lock: the thread that held the old one at the fork does not exist in the child."""
        self.lock = threading.RLock()


_shared = _Shared()
_overrides: list[PersonalizeClient] = []


def get_client() -> PersonalizeClient:
    """Return the client of this process; raises ConfigurationError when the settings allow none."""
    if _overrides:
        return _overrides[-1]
    client = _shared.client
    if client is None:
        with _shared.lock:
            if (client := _shared.client) is None:
                client = _shared.client = build_client(get_settings())
    return client


def has_client() -> bool:
    """Whether get_client() has its answer ready: to make it loads the CA bundle, or the sandbox's workspace."""
    return bool(_overrides) or _shared.client is not None


def get_engine() -> Engine | None:
    """Return the embedded sandbox, or ``None`` where the site talks HTTP; raises ConfigurationError."""
    settings = get_settings()
    if not is_embedded(settings):
        return None
    with _shared.lock:
        if _shared.engine is None:
            from django_moe_personalize.sandbox.engine import Engine

            _shared.engine = Engine(load_workspace(settings))
        return _shared.engine


@contextmanager
def override_client(client: PersonalizeClient) -> Iterator[PersonalizeClient]:
    """Give ``client`` to the whole process while the context lasts; for tests, may be nested."""
    _overrides.append(client)
    try:
        yield client
    finally:
        # The innermost of its kind: contexts of several threads may end in any order.
        del _overrides[max(place for place, other in enumerate(_overrides) if other is client)]


def reset() -> None:
    """Close the client and forget it and the embedded sandbox, events included."""
    with _shared.lock:
        client, _shared.client, _shared.engine = _shared.client, None, None
    if client is not None:
        client.close()


@receiver(setting_changed, dispatch_uid=f"{__name__}.reset")
def _reset_on_change(*, setting: str, **kwargs: object) -> None:
    if setting in (SETTING, "DEBUG"):
        reset()


def is_embedded(settings: Settings) -> bool:
    """Whether the sandbox runs in this process: it is on, and there is no URL to talk HTTP to."""
    return bool(settings.sandbox) and not settings.base_url


def find_missing(settings: Settings) -> tuple[str, ...]:
    """Return the names of the credentials that the settings lack.

    A sandbox behind ``BASE_URL`` needs none, for its workspace file has a pair; half a pair is a
    mistake there as well, because the other half would be of another workspace.
    """
    halves = {"WORKSPACE_ID": settings.workspace_id, "API_KEY": settings.api_key}
    missing = tuple(name for name, value in halves.items() if not value)
    if settings.sandbox:
        return missing if settings.base_url and len(missing) == 1 else ()
    return missing if settings.base_url else (*missing, "DATA_CENTER")


def load_workspace(settings: Settings) -> Workspace:
    """Return the sandbox's workspace; raises ConfigurationError with the place of the mistake."""
    from django_moe_personalize.sandbox import workspace

    path = settings.sandbox if isinstance(settings.sandbox, str) else None
    try:
        return workspace.load_workspace(path)
    except workspace.WorkspaceError as error:
        hint = f'Mend that file, or set {SETTING}["SANDBOX"] to True for the workspace that comes with the package.'
        raise ConfigurationError(f"The sandbox cannot use its workspace: {error}", hint=hint) from error


def load_object(name: str, path: str) -> Any:
    """Return what the dotted path of the setting ``name`` names; raises ConfigurationError.

    The object has to be callable, as everything is that a site may swap.
    """
    place = f'{SETTING}["{name}"]'
    try:
        found = import_string(path)
    except Exception as error:
        # A module of the site may raise anything while it is imported.
        message = f"{place} names {path!r}, which cannot be imported: {type(error).__name__}: {error}."
        extra = EXTRAS.get(getattr(error, "name", None) or "")
        hint = f'Type: pip install "django-moe-personalize[{extra}]".' if extra else MEND
        raise ConfigurationError(message, hint=hint) from error
    if not callable(found):
        raise ConfigurationError(f"{place} names {path!r}, which is not callable.", hint="Name a function or a class.")
    return found


def load_backend(name: str, backend: Backend, *args: object) -> Any:
    """Return the class of a swappable part, if it takes ``args`` and the options; raises ConfigurationError."""
    found = load_object(f'{name}"]["BACKEND', backend.backend)
    try:
        signature = inspect.signature(found)
    except ValueError:
        # Written in C, and says nothing of what it takes.
        return found
    try:
        signature.bind(*args, **backend.options)
    except TypeError as error:
        # The error names options, never their values.
        message = f'{SETTING}["{name}"]["OPTIONS"] does not fit {backend.backend}: {error}.'
        taken = ", ".join(list(signature.parameters)[len(args) :]) or "no options"
        raise ConfigurationError(message, hint=f"It takes {taken}.") from None
    return found


def read_base_url(settings: Settings) -> str:
    """Return the base URL as a transport takes it; raises ConfigurationError when it is not safe."""
    try:
        return validate_base_url(settings.base_url)
    except ValueError as error:
        message = f'{SETTING}["BASE_URL"] cannot be used: {error}.'
        hint = "Leave it out to talk to MoEngage; it is for a sandbox or a proxy."
        raise ConfigurationError(message, hint=hint) from None


def build_transport(settings: Settings) -> Transport:
    """Return a new transport to the base URL; raises ConfigurationError for a URL or options that cannot be."""
    base_url = read_base_url(settings)
    found = load_backend("TRANSPORT", settings.transport, base_url)
    try:
        transport: Transport = found(base_url, **settings.transport.options)
    except Exception as error:
        # What an unforeseen exception says may hold an option's value, such as a proxy's password.
        said = f": {error}" if isinstance(error, ValueError | OSError) else ""
        message = f"{settings.transport.backend} cannot be made: {type(error).__name__}{said}."
        raise ConfigurationError(message, hint=f'Correct {SETTING}["TRANSPORT"]["OPTIONS"].') from None
    return transport


def build_client(
    settings: Settings, *, wrap: Callable[[Transport], Transport] = lambda transport: transport
) -> PersonalizeClient:
    """Return a new client over ``wrap(transport)``; raises ConfigurationError when the settings allow none."""
    engine = get_engine()
    if engine is not None:
        from django_moe_personalize.sandbox.transport import SandboxTransport

        workspace = engine.workspace
        # The workspace's own pair, whatever the settings hold: the site's key has no business here.
        return PersonalizeClient(
            workspace_id=workspace.workspace_id, api_key=workspace.api_key, transport=wrap(SandboxTransport(engine))
        )
    if missing := find_missing(settings):
        raise ConfigurationError(
            f"{SETTING} lacks {' and '.join(missing)}.",
            hint=f"Set {', '.join(f'{SETTING}_{name}' for name in missing)} in the environment, "
            f'or {SETTING}["SANDBOX"] = True to work without MoEngage.',
        )
    return PersonalizeClient(**_credentials(settings), transport=wrap(build_transport(settings)))


def _credentials(settings: Settings) -> Mapping[str, str]:
    if settings.workspace_id:
        return {"workspace_id": settings.workspace_id, "api_key": settings.api_key}
    workspace = load_workspace(settings)
    return {"workspace_id": workspace.workspace_id, "api_key": workspace.api_key}
