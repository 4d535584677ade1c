"""From the settings to a client: MoEngage itself, or the sandbox embedded in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from django_moe_personalize.conf import SETTING, ConfigurationError, Settings
from django_moe_personalize.conf.backends import load_backend
from django_moe_personalize.moengage.base_url import validate_base_url
from django_moe_personalize.moengage.client import PersonalizeClient
from django_moe_personalize.moengage.messages import Transport
from django_moe_personalize.runtime import Runtime, part

if TYPE_CHECKING:
    from django_moe_personalize.sandbox.engine import Engine
    from django_moe_personalize.sandbox.workspace import Workspace


@part
def get_client(runtime: Runtime) -> PersonalizeClient:
    """Return the client of the workspace. Raises ConfigurationError when the settings allow none.

    Building it loads the CA bundle or the sandbox's workspace file, which takes some 13 ms.
    """
    return build_client(runtime.settings)


@part
def get_engine(runtime: Runtime) -> Engine | None:
    """Return the embedded sandbox, or ``None`` where the site talks HTTP. Raises ConfigurationError."""
    if not is_embedded(runtime.settings):
        return None
    from django_moe_personalize.sandbox.engine import Engine

    return Engine(load_workspace(runtime.settings))


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
