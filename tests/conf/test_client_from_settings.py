"""The client that follows from the settings, and the errors of settings that describe none."""

import json

import pytest

from django_moe_personalize.client import build_transport, get_client, get_engine
from django_moe_personalize.conf import ConfigurationError, get_settings
from django_moe_personalize.moengage.http1 import Response
from django_moe_personalize.moengage.transport import RequestsTransport
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.runtime import reset_runtimes
from django_moe_personalize.sandbox.workspace import load_workspace
from tests.conf.configured import CREDENTIALS, SECRET

SANDBOX_URL = "http://127.0.0.1:8899/v1"


class RecordingTransport:
    """Keep every request, and answer without experiences."""

    built, is_closed = [], False

    def __init__(self, base_url, *, verify=True):
        self.base_url = base_url
        self.verify = verify
        self.requests = []
        self.built.append(self)

    def send(self, request, *, deadline):
        self.requests.append(request)
        return Response(200, {}, b'{"experiences": {}}')

    def close(self):
        self.is_closed = True


RECORDING = {"BACKEND": f"{__name__}.RecordingTransport"}


def failing_transport(base_url, *, password=""):
    raise RuntimeError(f"{password} refused")


@pytest.fixture(autouse=True)
def forget_transports():
    RecordingTransport.built.clear()


def fetch():
    return get_client().fetch_experiences(["hero-banner"], deadline=Deadline(5.0))


@pytest.fixture
def workspace_file(tmp_path):
    file = tmp_path / "moe.json"
    hero = {"key": "hero-banner", "payload": {"Title": "From the file"}}
    file.write_text(json.dumps({"workspace_id": "FILE_DEBUG", "api_key": "file", "experiences": [hero]}))
    return file


def test_new_site_uses_the_embedded_sandbox(settings):
    """With DEBUG and no settings, the package's own workspace answers, through one engine."""
    settings.DEBUG = True
    settings.MOE_PERSONALIZE = {}
    engine = get_engine()
    assert "hero-banner" in fetch().experiences
    assert get_engine() is engine
    assert engine.workspace.workspace_id == load_workspace().workspace_id


def test_embedded_sandbox_uses_its_file(settings, workspace_file):
    """SANDBOX may name a workspace file. The sandbox doesn't get the site's own credentials."""
    settings.MOE_PERSONALIZE = {**CREDENTIALS, "SANDBOX": str(workspace_file)}
    assert fetch().experiences["hero-banner"].payload["Title"] == "From the file"


def test_client_is_shared_until_the_settings_change(settings):
    """A change of MOE_PERSONALIZE closes the client, and the next call builds another."""
    settings.MOE_PERSONALIZE = {**CREDENTIALS, "TRANSPORT": RECORDING}
    client = get_client()
    assert get_client() is client
    settings.MOE_PERSONALIZE = {**CREDENTIALS, "TRANSPORT": RECORDING, "DEADLINE": 0.2}
    assert RecordingTransport.built[0].is_closed
    assert get_client() is not client
    reset_runtimes()
    assert RecordingTransport.built[1].is_closed


def test_credentials_lead_to_the_data_center(settings):
    """A site with credentials calls its data center over HTTPS, through requests."""
    settings.MOE_PERSONALIZE = {**CREDENTIALS, "TRANSPORT": {"OPTIONS": {"pool_maxsize": 4}}}
    transport = build_transport(get_settings())
    assert isinstance(transport, RequestsTransport)
    assert transport.base_url == "https://sdk-03.moengage.com/v1"
    assert get_engine() is None


def test_transport_of_the_site(settings):
    """A TRANSPORT gets the base URL and its options, and carries the credentials."""
    settings.MOE_PERSONALIZE = {**CREDENTIALS, "TRANSPORT": {**RECORDING, "OPTIONS": {"verify": False}}}
    fetch()
    [transport] = RecordingTransport.built
    assert (transport.base_url, transport.verify) == ("https://sdk-03.moengage.com/v1", False)
    assert transport.requests[0].headers["MOE-APPKEY"] == "SITE"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "SANDBOX_DEBUG"),
        ({"SANDBOX": "file"}, "FILE_DEBUG"),
        ({"WORKSPACE_ID": "SITE", "API_KEY": "k", "SANDBOX": True}, "SITE"),
    ],
)
def test_sandbox_behind_a_url(settings, workspace_file, given, expected):
    """With DEBUG, a BASE_URL is enough to call a sandbox there: the credentials come from the workspace file."""
    settings.DEBUG = True
    given = given | ({"SANDBOX": workspace_file} if given.get("SANDBOX") == "file" else {})
    settings.MOE_PERSONALIZE = {"BASE_URL": f"{SANDBOX_URL}/", "TRANSPORT": RECORDING, **given}
    fetch()
    assert get_engine() is None
    [transport] = RecordingTransport.built
    assert (transport.base_url, transport.requests[0].headers["MOE-APPKEY"]) == (SANDBOX_URL, expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "MOE_PERSONALIZE lacks WORKSPACE_ID and API_KEY and DATA_CENTER."),
        ({"WORKSPACE_ID": "SITE"}, "MOE_PERSONALIZE lacks API_KEY and DATA_CENTER."),
        ({"API_KEY": SECRET, "DATA_CENTER": "01"}, "MOE_PERSONALIZE lacks WORKSPACE_ID."),
        ({"BASE_URL": "https://x", "WORKSPACE_ID": "SITE"}, "MOE_PERSONALIZE lacks API_KEY."),
        ({"BASE_URL": "https://x", "WORKSPACE_ID": "SITE", "SANDBOX": True}, "MOE_PERSONALIZE lacks API_KEY."),
    ],
)
def test_missing_credentials(settings, given, message):
    """The error names the missing credentials and two fixes."""
    settings.MOE_PERSONALIZE = given
    with pytest.raises(ConfigurationError) as caught:
        get_client()
    assert caught.value.message == message
    assert "in the environment" in caught.value.hint
    assert '["SANDBOX"] = True' in caught.value.hint
    assert SECRET not in str(caught.value)


def test_unsafe_url(settings):
    """The client never sends credentials to an unsafe URL, and the error doesn't show it."""
    settings.MOE_PERSONALIZE = {**CREDENTIALS, "BASE_URL": f"https://user:{SECRET}@example.com"}
    with pytest.raises(ConfigurationError, match=r"can't be used.*user name or password") as caught:
        get_client()
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "line 1, column 2"),
        ('{"workspace_id": "W", "api_key": "k", "experiences": 7}', "experiences"),
        (None, "moe.json"),
    ],
)
def test_wrong_workspace_file(settings, tmp_path, content, reason):
    """The error names the file and the place of the mistake."""
    if content is not None:
        (tmp_path / "moe.json").write_text(content)
    settings.MOE_PERSONALIZE = {"SANDBOX": tmp_path / "moe.json"}
    for get in (get_engine, get_client):
        with pytest.raises(ConfigurationError, match=r"moe\.json") as caught:
            get()
        assert reason in str(caught.value)
        assert caught.value.hint.startswith("Fix that file")


def test_wrong_transport(settings):
    """The error names the mistake without the value of an option."""
    transport = {"BACKEND": f"{__name__}.failing_transport", "OPTIONS": {"password": SECRET}}
    settings.MOE_PERSONALIZE = {**CREDENTIALS, "TRANSPORT": transport}
    with pytest.raises(ConfigurationError) as caught:
        get_client()
    assert "can't be built: RuntimeError." in caught.value.message
    assert "Correct MOE_PERSONALIZE" in caught.value.hint
    assert SECRET not in str(caught.value)
