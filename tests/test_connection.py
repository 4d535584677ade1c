"""From the settings to a client, and what a site is told when there is none."""

import json
import os
import signal
import threading

import pytest

from django_moe_personalize import client
from django_moe_personalize.client import get_client, get_engine, override_client, reset
from django_moe_personalize.conf import Backend, ConfigurationError, get_settings
from django_moe_personalize.moengage.client import PersonalizeClient
from django_moe_personalize.moengage.messages import Response
from django_moe_personalize.moengage.transport import RequestsTransport
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.sandbox.workspace import load_workspace
from tests.configured import _clean_environment  # noqa: F401 - a fixture

SECRET = "key-nobody-may-read"
CREDENTIALS = {"WORKSPACE_ID": "SITE", "API_KEY": SECRET, "DATA_CENTER": "03"}
RECORDING = {"BACKEND": "tests.test_connection.RecordingTransport"}
not_callable = "a string"


class RecordingTransport:
    """Answer every call with no experience, and remember it."""

    made = []

    def __init__(self, base_url, *, verify=True):
        self.base_url = base_url
        self.verify = verify
        self.requests = []
        self.is_closed = False
        self.made.append(self)

    def send(self, request, *, deadline):
        self.requests.append(request)
        return Response(200, {}, b'{"experiences": {}}')

    def close(self):
        self.is_closed = True


def failing_transport(base_url, *, password="", error=RuntimeError):
    """Fail with a message that repeats the option."""
    raise error(f"{password} refused")


@pytest.fixture(autouse=True)
def _clean_connection(clean_environment):
    """Start and end without clients and transports, and without variables of ours."""
    reset()
    RecordingTransport.made.clear()
    yield
    reset()


def fetch(client):
    """Ask a client for one experience."""
    return client.fetch_experiences(["hero-banner"], deadline=Deadline(5.0))


def recorded_headers():
    """Return the headers of the one request that was sent."""
    [transport] = RecordingTransport.made
    [request] = transport.requests
    return {name.lower(): value for name, value in request.headers.items()}


@pytest.fixture
def workspace_file(tmp_path):
    """Return a workspace of the test's own."""
    file = tmp_path / "moe.json"
    hero = {"key": "hero-banner", "payload": {"Title": "From the file"}}
    file.write_text(json.dumps({"workspace_id": "FILE_DEBUG", "api_key": "file", "experiences": [hero]}))
    return file


def test_debug_without_credentials_has_the_embedded_sandbox(settings):
    """A new site answers from the shipped workspace, with nothing configured."""
    settings.DEBUG = True
    settings.MOE_PERSONALIZE = {}
    assert "hero-banner" in fetch(get_client()).experiences
    assert get_engine().workspace.workspace_id == load_workspace().workspace_id


def test_embedded_sandbox_has_the_workspace_of_its_file(settings, workspace_file):
    """The path in SANDBOX names the workspace; the site's own credentials are not for it."""
    settings.MOE_PERSONALIZE = {**CREDENTIALS, "SANDBOX": str(workspace_file)}
    assert fetch(get_client()).experiences["hero-banner"]["Title"] == "From the file"


def test_client_is_shared_until_settings_change(settings):
    """There is one client and one engine, and after a change of the settings others."""
    settings.MOE_PERSONALIZE = {"SANDBOX": True}
    client, engine = get_client(), get_engine()
    assert (get_client(), get_engine()) == (client, engine)
    settings.USE_TZ = False
    assert get_client() is client
    settings.MOE_PERSONALIZE = {"SANDBOX": True, "DEADLINE": 0.2}
    assert get_client() is not client
    assert get_engine() is not engine


def test_engine_may_come_before_the_client(settings):
    """The client talks to the engine that get_engine() has already given."""
    settings.MOE_PERSONALIZE = {"SANDBOX": True}
    engine = get_engine()
    fetch(get_client())
    assert get_engine() is engine


def test_threads_that_race_share_one_engine(settings, monkeypatch):
    """Two threads that need a client at once get the same one, and one engine is made."""
    settings.MOE_PERSONALIZE = {"SANDBOX": True}
    threads = 8
    barrier = threading.Barrier(threads)
    found, loaded = [], []
    load = client.load_workspace

    def load_once_all_wait(given):
        loaded.append(given)
        return load(given)

    monkeypatch.setattr(connection, "load_workspace", load_once_all_wait)

    def ask():
        barrier.wait()
        found.append(get_client())

    crew = [threading.Thread(target=ask) for _ in range(threads)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    assert len(found) == threads
    assert len(set(map(id, found))) == len(loaded) == 1


class AnnouncingLock:
    """A lock that says when a thread is about to wait for it."""

    def __init__(self, lock):
        self.lock = lock
        self.asked = threading.Event()

    def __enter__(self):
        self.asked.set()
        self.lock.acquire()

    def __exit__(self, *exception):
        self.lock.release()


def test_second_thread_finds_the_client_of_the_first(settings, monkeypatch):
    """A thread that waited while another made the client takes that one."""
    settings.MOE_PERSONALIZE = {"SANDBOX": True}
    lock = AnnouncingLock(client._shared.lock)
    found = []
    waiting = threading.Thread(target=lambda: found.append(get_client()))
    with lock.lock:
        with monkeypatch.context() as patch:
            patch.setattr(client._shared, "lock", lock)
            waiting.start()
            lock.asked.wait()
        made = get_client()
    waiting.join()
    assert found == [made]


def test_credentials_go_to_the_data_center(settings):
    """A site with credentials talks HTTPS to its data centre, through requests."""
    settings.MOE_PERSONALIZE = {**CREDENTIALS, "TRANSPORT": {"OPTIONS": {"pool_maxsize": 4}}}
    transport = client.build_transport(get_settings())
    assert isinstance(transport, RequestsTransport)
    assert transport.base_url == "https://sdk-03.moengage.com/v1"
    assert get_engine() is None
    assert get_client() is get_client()


def test_transport_of_the_site_takes_url_options_and_credentials(settings):
    """A TRANSPORT is made with the base URL and its options, and carries the credentials."""
    settings.MOE_PERSONALIZE = {**CREDENTIALS, "TRANSPORT": {**RECORDING, "OPTIONS": {"verify": False}}}
    fetch(get_client())
    [transport] = RecordingTransport.made
    assert (transport.base_url, transport.verify) == ("https://sdk-03.moengage.com/v1", False)
    assert recorded_headers()["moe-appkey"] == "SITE"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param({}, "SANDBOX_DEBUG", id="of the shipped workspace"),
        pytest.param({"WORKSPACE_ID": "SITE", "API_KEY": "k", "SANDBOX": True}, "SITE", id="of the site"),
    ],
)
def test_sandbox_behind_a_url(settings, given, expected):
    """A URL alone suffices in DEBUG: the sandbox is asked there, with its own credentials or those given."""
    settings.DEBUG = True
    settings.MOE_PERSONALIZE = {"BASE_URL": "http://127.0.0.1:8899/v1/", "TRANSPORT": RECORDING, **given}
    assert get_engine() is None
    fetch(get_client())
    assert RecordingTransport.made[0].base_url == "http://127.0.0.1:8899/v1"
    assert recorded_headers()["moe-appkey"] == expected


def test_sandbox_behind_a_url_has_the_credentials_of_its_file(settings, workspace_file):
    """With a workspace file the pair is that file's."""
    url = "http://127.0.0.1:8899/v1"
    settings.MOE_PERSONALIZE = {"BASE_URL": url, "TRANSPORT": RECORDING, "SANDBOX": workspace_file}
    fetch(get_client())
    assert recorded_headers()["moe-appkey"] == "FILE_DEBUG"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param({}, "MOE_PERSONALIZE lacks WORKSPACE_ID and API_KEY and DATA_CENTER.", id="nothing"),
        pytest.param({"WORKSPACE_ID": "SITE"}, "lacks API_KEY and DATA_CENTER.", id="id alone"),
        pytest.param({"API_KEY": SECRET, "DATA_CENTER": "01"}, "lacks WORKSPACE_ID.", id="key and data centre"),
        pytest.param({"BASE_URL": "https://x", "WORKSPACE_ID": "SITE"}, "lacks API_KEY.", id="id and url"),
        pytest.param(
            {"BASE_URL": "https://x", "WORKSPACE_ID": "SITE", "SANDBOX": True}, "lacks API_KEY.", id="half a pair"
        ),
    ],
)
def test_missing_credentials_are_told(settings, given, expected):
    """Without credentials there is no client, and the error names what is missing and two ways out."""
    settings.MOE_PERSONALIZE = given
    with pytest.raises(ConfigurationError) as caught:
        get_client()
    assert expected in caught.value.message
    assert "in the environment" in caught.value.hint
    assert '["SANDBOX"] = True' in caught.value.hint
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        pytest.param("http://sdk-01.moengage.com/v1", "https", id="plain http"),
        pytest.param(f"https://user:{SECRET}@example.com", "user name or password", id="user info"),
        pytest.param("ftp://example.com", "https://", id="scheme"),
    ],
)
def test_unsafe_url_is_told(settings, url, expected):
    """A URL that would show the key to others gives no client, and is not repeated."""
    settings.MOE_PERSONALIZE = {**CREDENTIALS, "BASE_URL": url}
    with pytest.raises(ConfigurationError, match='BASE_URL"] cannot be used') as caught:
        get_client()
    assert expected in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param("{", "line 1, column 2", id="broken JSON"),
        pytest.param('{"workspace_id": "W", "api_key": "k", "experiences": 7}', "experiences", id="wrong type"),
    ],
)
def test_broken_workspace_is_told(settings, tmp_path, content, expected):
    """A mistake in the workspace file is told with its place."""
    file = tmp_path / "moe.json"
    file.write_text(content)
    settings.MOE_PERSONALIZE = {"SANDBOX": str(file)}
    for get in (get_engine, get_client):
        with pytest.raises(ConfigurationError, match=r"moe\.json") as caught:
            get()
        assert expected in str(caught.value)


def test_missing_workspace_is_told(settings, tmp_path):
    """A workspace file that is not there is a mistake in the settings."""
    settings.MOE_PERSONALIZE = {"SANDBOX": tmp_path / "none.json"}
    with pytest.raises(ConfigurationError, match=r"none\.json"):
        get_client()


@pytest.mark.parametrize(
    ("transport", "expected", "hint"),
    [
        pytest.param({"BACKEND": "no_such.Transport"}, "ModuleNotFoundError", "Correct the path", id="module"),
        pytest.param({"BACKEND": "tests.test_connection.NoSuch"}, "cannot be imported", "Correct", id="attribute"),
        pytest.param({"BACKEND": "tests.test_connection.not_callable"}, "not callable", "Name a", id="a string"),
        pytest.param(
            {**RECORDING, "OPTIONS": {"verfy": SECRET}}, "'verfy'", "It takes verify.", id="option it does not take"
        ),
        pytest.param({"OPTIONS": {"verify": "/no/such/file"}}, "ValueError: verify must", "OPTIONS", id="CA file"),
        pytest.param(
            {"BACKEND": "tests.test_connection.failing_transport", "OPTIONS": {"password": SECRET}},
            "cannot be made: RuntimeError.",
            "Correct MOE_PERSONALIZE",
            id="unforeseen",
        ),
    ],
)
def test_transport_that_cannot_be_made_is_told(settings, transport, expected, hint):
    """A wrong TRANSPORT is a mistake in the settings, told without the values of its options."""
    settings.MOE_PERSONALIZE = {**CREDENTIALS, "TRANSPORT": transport}
    with pytest.raises(ConfigurationError) as caught:
        get_client()
    assert expected in caught.value.message
    assert hint in caught.value.hint
    assert SECRET not in str(caught.value)


def test_backend_that_hides_its_signature_is_taken():
    """What says nothing of its parameters cannot be refused for them."""
    assert client.load_backend("TRANSPORT", Backend("builtins.dict", {"x": 1}), "url") is dict


def test_backend_that_takes_no_options_says_so():
    """The hint of a refused option says that there is none to give."""
    with pytest.raises(ConfigurationError) as caught:
        client.load_backend("DELIVERY", Backend("tests.test_connection.fetch", {"y": 1}), "client")
    assert caught.value.hint == "It takes no options."


def test_override_reaches_every_thread_and_ends(settings):
    """The client of a test is the process's while the context lasts; inner ones win, also twice the same."""
    settings.MOE_PERSONALIZE = {}
    first, second = (PersonalizeClient(workspace_id="W", api_key="k", transport=None) for _ in range(2))
    with override_client(first) as given:
        assert given is first
        with override_client(second), override_client(first):
            assert get_client() is first
        with override_client(second):
            found = []
            thread = threading.Thread(target=lambda: found.append(get_client()))
            thread.start()
            thread.join()
            assert found == [second]
            with override_client(first):
                pass
            assert get_client() is second
        assert get_client() is first
    with pytest.raises(ConfigurationError):
        get_client()


def test_override_ends_with_an_error(settings):
    """An error in a test leaves no client behind."""
    settings.MOE_PERSONALIZE = {"SANDBOX": True}
    mine = PersonalizeClient(workspace_id="W", api_key="k", transport=None)

    def fail():
        with override_client(mine):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert get_client() is not mine


def test_reset_closes_the_client(settings):
    """The connections of a client that is forgotten are closed, and a new one is made."""
    settings.MOE_PERSONALIZE = {**CREDENTIALS, "TRANSPORT": RECORDING}
    client = get_client()
    reset()
    assert RecordingTransport.made[0].is_closed
    assert get_client() is not client


def test_child_of_a_fork_does_not_wait_for_a_thread_it_lost(settings):
    """A process forked while another thread made the client makes its own."""
    settings.MOE_PERSONALIZE = {"SANDBOX": True}
    # A thread that is over without having let go holds the lock as one does that is not in the child.
    holder = threading.Thread(target=client._shared.lock.acquire)
    holder.start()
    holder.join()
    child = os.fork()
    if not child:
        # The alarm ends a child that waits for ever.
        signal.alarm(10)
        os._exit(0 if "hero-banner" in fetch(get_client()).experiences else 1)
    client._shared.after_fork()
    assert os.waitpid(child, 0)[1] == 0
