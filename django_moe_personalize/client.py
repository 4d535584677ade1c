"""Build the client from the settings. The client calls MoEngage, or the sandbox in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from django_moe_personalize.conf import SETTING, ConfigurationError, Settings
from django_moe_personalize.conf.settings import load_backend
from django_moe_personalize.moengage.base_url import validate_base_url
from django_moe_personalize.moengage.client import PersonalizeClient, Transport
from django_moe_personalize.moengage.data_api import DataClient
from django_moe_personalize.runtime import Runtime, part

if TYPE_CHECKING:
    from django_moe_personalize.sandbox.engine import Engine
    from django_moe_personalize.sandbox.workspace import WorkspaceFile


@part
def get_engine(runtime: Runtime) -> Engine | None:
    """Return the sandbox in this process, or ``None`` if the client uses HTTP. Raises ConfigurationError."""
    if not is_embedded(runtime.settings):
        return None
    from django_moe_personalize.sandbox.engine import Engine

    return Engine(open_workspace_file(runtime.settings))


def is_embedded(settings: Settings) -> bool:
    """Return whether the sandbox runs in this process: SANDBOX is on, and BASE_URL is empty."""
    return bool(settings.sandbox) and not settings.base_url


def find_missing_credentials(settings: Settings) -> tuple[str, ...]:
    """Return the names of the credentials that the settings lack.

    A sandbox behind ``BASE_URL`` needs no credentials in the settings, because its workspace file has a pair. If the
    settings have only half of a pair, the other half would come from a different workspace.
    """
    pair = {"WORKSPACE_ID": settings.workspace_id, "API_KEY": settings.api_key}
    missing = tuple(name for name, value in pair.items() if not value)
    if settings.sandbox:
        return missing if settings.base_url and len(missing) == 1 else ()
    return missing if settings.base_url else (*missing, "DATA_CENTER")


def open_workspace_file(settings: Settings) -> WorkspaceFile:
    """Return the sandbox's workspace file. Raises ConfigurationError with the place of each mistake in the file."""
    from django_moe_personalize.sandbox import workspace

    path = settings.sandbox if isinstance(settings.sandbox, str) else None
    try:
        return workspace.WorkspaceFile(path)
    except workspace.WorkspaceError as error:
        message = f"The sandbox can't use its workspace file: {error}"
        hint = f'Fix that file, or set {SETTING}["SANDBOX"] to True to use the workspace of this package.'
        raise ConfigurationError(message, hint=hint) from error


def read_base_url(settings: Settings) -> str:
    """Return BASE_URL, normalized. Raises ConfigurationError for an unsafe URL."""
    try:
        return validate_base_url(settings.base_url)
    except ValueError as error:
        message = f'{SETTING}["BASE_URL"] can\'t be used: {error}.'
        hint = "Remove it to talk to MoEngage. Only a sandbox or a proxy needs it."
        raise ConfigurationError(message, hint=hint) from None


def build_transport(settings: Settings) -> Transport:
    """Return a new transport for BASE_URL. Raises ConfigurationError for a wrong URL, class or option."""
    base_url = read_base_url(settings)
    backend = load_backend("TRANSPORT", settings.transport, base_url)
    try:
        transport: Transport = backend(base_url, **settings.transport.options)
    except Exception as error:
        # Show only messages of ValueError and OSError: others may contain an option, such as a proxy's password.
        reason = f": {error}" if isinstance(error, ValueError | OSError) else ""
        message = f"{settings.transport.backend} can't be built: {type(error).__name__}{reason}."
        raise ConfigurationError(message, hint=f'Correct {SETTING}["TRANSPORT"]["OPTIONS"].') from None
    return transport


def build_client(runtime: Runtime, *, wrap: Callable[[Transport], Transport] = lambda t: t) -> PersonalizeClient:
    """Return a new client with the transport ``wrap(transport)``. Raises ConfigurationError."""
    settings = runtime.settings
    if (engine := get_engine(runtime)) is not None:
        from django_moe_personalize.sandbox.transport import SandboxTransport

        # The sandbox never gets the site's own API key.
        workspace_id, api_key = engine.workspace.workspace_id, engine.workspace.api_key
        return PersonalizeClient(workspace_id=workspace_id, api_key=api_key, transport=wrap(SandboxTransport(engine)))
    if missing := find_missing_credentials(settings):
        variables = ", ".join(f"{SETTING}_{name}" for name in missing)
        hint = f'Set {variables} in the environment, or {SETTING}["SANDBOX"] = True to work without MoEngage.'
        raise ConfigurationError(f"{SETTING} lacks {' and '.join(missing)}.", hint=hint)
    transport = wrap(build_transport(settings))
    # Don't put the API key into a local variable: an error report prints local variables.
    owner = settings if settings.workspace_id else open_workspace_file(settings).workspace
    return PersonalizeClient(workspace_id=owner.workspace_id, api_key=owner.api_key, transport=transport)


class MissingDataKeyError(ConfigurationError):
    """The settings have no key for the Data API."""


def find_data_key_error(settings: Settings) -> MissingDataKeyError | None:
    """Return the error if the settings have no DATA_API_KEY, and no sandbox has one either."""
    if settings.data_api_key or (settings.sandbox and not (settings.base_url and settings.workspace_id)):
        return None
    hint = f"Set {SETTING}_DATA_API_KEY in the environment to the Data key of your workspace."
    return MissingDataKeyError(f"{SETTING} lacks DATA_API_KEY, which track_event() needs.", hint=hint)


@part
def get_data_client(runtime: Runtime, *, wrap: Callable[[Transport], Transport] = lambda t: t) -> DataClient:
    """Return the client of the Data API. Raises ConfigurationError."""
    settings = runtime.settings
    if (engine := get_engine(runtime)) is not None:
        from django_moe_personalize.sandbox.transport import SandboxTransport

        workspace = engine.workspace
        transport = wrap(SandboxTransport(engine))
        return DataClient(workspace_id=workspace.workspace_id, api_key=workspace.data_api_key, transport=transport)
    if (error := find_data_key_error(settings)) is not None:
        raise error
    transport = wrap(build_transport(replace(settings, base_url=read_data_url(settings))))
    owner = settings if settings.workspace_id else open_workspace_file(settings).workspace
    return DataClient(workspace_id=owner.workspace_id, api_key=owner.data_api_key, transport=transport)


def read_data_url(settings: Settings) -> str:
    """Return the base URL of the Data API (contract §8). A sandbox or a proxy in BASE_URL has both APIs."""
    url, center = read_base_url(settings), settings.data_center
    return f"https://api-{center}.moengage.com/v1" if url == f"https://sdk-{center}.moengage.com/v1" else url


get_client = part(build_client)
"""Return the client of the workspace. Raises ConfigurationError for incomplete or wrong settings.

The first call takes some 60 ms, to import requests and to load the CA bundle. A server makes it at its start.
"""
