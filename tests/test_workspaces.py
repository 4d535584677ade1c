"""Several workspaces in one process: each has its own settings, runtime, cookies, tokens, outbox and commands."""

import asyncio
import io
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from types import SimpleNamespace

import pytest
from asgiref.sync import async_to_sync
from django.core.management import CommandError, call_command
from django.http import FileResponse, HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, Client, RequestFactory
from django.urls import path

from django_moe_personalize import api
from django_moe_personalize.browser.islands import sign_island
from django_moe_personalize.conf import ConfigurationError, find_problems, get_settings
from django_moe_personalize.context import WorkspacePersonalization, switch_workspace
from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.delivery.queued import deliver_outbox
from django_moe_personalize.log import logger
from django_moe_personalize.management.commands import moe_deliver
from django_moe_personalize.middleware import PersonalizeMiddleware
from django_moe_personalize.runtime import get_runtime, part, use_workspace
from django_moe_personalize.testing import override_experiences, override_personalize
from django_moe_personalize.visitor.identity import delete_anonymous_cookie
from tests import brands as site
from tests.brands import Brand

OUTBOX = {"BACKEND": "django_moe_personalize.delivery.database.DatabaseDelivery"}
IMMEDIATE = {"BACKEND": "django_moe_personalize.delivery.immediate.ImmediateDelivery"}


@pytest.fixture
def brands(settings):
    """The site of two brands, with the MoEngage of each on loopback."""
    with ExitStack() as stack:
        found = [stack.enter_context(Brand(name)) for name in site.BRANDS]
        site.configure(settings, found, DELIVERY=IMMEDIATE)
        yield found
        assert [brand.wrong for brand in found] == [[], []]


@pytest.fixture
def choose(monkeypatch):
    """Return a function that replaces the site's choice."""
    return lambda function: monkeypatch.setattr(site, "choose", function)


def get(client, brand, address="/", **headers):
    return client.get(address, headers={"x-brand": brand, **headers})


# Settings


def test_settings_of_each_workspace(brands, settings):
    """A workspace has the settings of the site, its own changes, and never the key of another workspace."""
    moe = settings.MOE_PERSONALIZE
    outlet = {"WORKSPACE_ID": "OUTLET", "DEADLINE": 0.5, "CACHE": None}
    settings.MOE_PERSONALIZE = {**moe, "API_KEY": "of-the-site", "WORKSPACES": {"default": {}, "outlet": outlet}}
    found = get_runtime("outlet").settings
    assert (found.name, found.suffix, found.deadline, found.cache) == ("outlet", "_outlet", 0.5, "default")
    assert (found.workspace_id, found.api_key) == ("OUTLET", "")
    assert get_settings().api_key == get_runtime().settings.api_key == "of-the-site"
    with use_workspace("outlet"):
        assert (get_settings().deadline, get_settings().api_key) == (0.5, "")
        assert get_runtime().name == "outlet"
        assert get_runtime("default").name == get_runtime("default").settings.name == "default"


def test_workspaces_in_the_environment(settings, monkeypatch):
    """WORKSPACES may be JSON in the environment. A reference to another variable that isn't set is a mistake."""
    settings.MOE_PERSONALIZE = {"SANDBOX": True}
    monkeypatch.setenv("MOE_PERSONALIZE_WORKSPACES", '{"default": {}, "outlet": {"DEADLINE": 2}}')
    assert get_runtime("outlet").settings.deadline == 2
    monkeypatch.setenv("MOE_PERSONALIZE_WORKSPACES", "$NOT_SET")
    assert "names another variable" in find_problems()[0].message


@pytest.mark.parametrize(
    ("workspaces", "message", "hint"),
    [
        ({"outlet": {}}, 'has no workspace "default"', 'Add "default": {}'),
        ({"default": {}, "outlet": {"DEADLIN": 1}}, '["outlet"] has the unknown key', 'Did you mean "DEADLINE"'),
        ({"default": {"WORKSPACE": "a.b"}}, '["default"] has WORKSPACE, but all', "Move it out of there"),
        ({"default": {}, "outlet": {"TRUSTED_PROXIES": []}}, '["outlet"] has TRUSTED_PROXIES', "Move it out of there"),
        ({"default": {}, "outlet": {"DEADLINE": "x"}}, '["WORKSPACES"]["outlet"]["DEADLINE"] is \'x\'', ""),
        ({"default": {}, "Outlet": {}}, "expected names of at most 32 lower-case letters", ""),
        ({"default": {}, "outlet": []}, '["WORKSPACES"]["outlet"] is a list, not shown; expected a dict', ""),
        ([], '["WORKSPACES"] is a list, not shown', 'Write {"default"'),
    ],
)
def test_mistakes_in_workspaces(settings, workspaces, message, hint):
    """The check names the workspace of a mistake, and the fix."""
    settings.MOE_PERSONALIZE = {"SANDBOX": True, "WORKSPACES": workspaces}
    [problem] = find_problems()
    assert message in problem.message
    assert hint in problem.hint


def test_unknown_workspace(brands):
    """The name of a workspace that doesn't exist is an error, which lists the names that do. So is an empty name."""
    for name in ("outlt", ""):
        with pytest.raises(ConfigurationError, match=f"has no workspace '{name}'.*outlet"):
            api.fetch_experience("hero-banner", workspace=name)


# Pages


def test_sync_and_async_pages(brands, settings):
    """The function of the site chooses the workspace, whether it and the site are sync or async."""
    for function in ("choose", "achoose"):
        settings.MOE_PERSONALIZE = {**settings.MOE_PERSONALIZE, "WORKSPACE": f"tests.brands.{function}"}
        for brand in brands:
            assert site.read(get(Client(), brand.name, **{"x-customer": "c-1"}))[0] == f"{brand.name}:c-1"
            response = async_to_sync(AsyncClient().get)("/async/", headers={"x-brand": brand.name, "x-customer": "c-1"})
            assert site.read(response)[0] == f"{brand.name}:c-1"


@pytest.mark.parametrize("answer", ["gone", "", None, 7, KeyError("secret")])
def test_choice_that_fails(brands, choose, caplog, answer):
    """The page shows its fallbacks, is private and counts nothing. One line of the log has the fix, and no data."""

    def fail(request):
        if isinstance(answer, Exception):
            raise answer
        return answer

    choose(fail)
    for _ in range(2):
        responses = [Client().get("/"), async_to_sync(AsyncClient().get)("/async/")]
        for response in responses:
            assert (response.status_code, site.read(response)) == (200, ("Welcome", ""))
            assert "no-store" in response["Cache-Control"]
            assert not response.cookies
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("Workspace (none): WORKSPACE failed (tests.brands.choose ")
    assert line.endswith("so the page shows its fallbacks. Return 'default' or 'outlet'.")
    assert "gone" not in line
    assert "secret" not in line
    assert [(brand.fetched, brand.events) for brand in brands] == [([], [])] * 2


def test_site_without_a_function(brands, settings, tmp_path):
    """Without WORKSPACE all pages belong to the default workspace. An old island can't change that for the thread."""
    (tmp_path / "island.html").write_text(site.PAGE)
    settings.TEMPLATES = [{**settings.TEMPLATES[0], "DIRS": [tmp_path]}]
    settings.MOE_PERSONALIZE = {**settings.MOE_PERSONALIZE, "WORKSPACE": ""}
    with use_workspace("outlet"):
        token = sign_island("hero-banner", "island.html")
    assert Client().get(f"/moe/islands/?island={token}").json() == {"islands": {token: None}}
    assert get_runtime().name == "default"
    assert site.read(get(Client(), "outlet", **{"x-customer": "c-1"}))[0] == "default:c-1"


def test_streams_belong_to_the_workspace(brands):
    """The content of a streamed page, which runs after the middleware, finds the runtime of the request's workspace."""

    def stream():
        for _ in range(2):
            yield get_runtime().name

    async def astream():
        for _ in range(2):
            yield get_runtime().name

    request = RequestFactory().get("/", headers={"x-brand": "outlet"})
    middleware = PersonalizeMiddleware(lambda request: StreamingHttpResponse(stream()))
    assert b"".join(middleware(request).streaming_content) == b"outletoutlet"
    file = FileResponse(io.BytesIO(b"x"))
    assert PersonalizeMiddleware(lambda request: file)(request).file_to_stream is not None

    async def view(request):
        return StreamingHttpResponse(astream())

    async def collect():
        response = await PersonalizeMiddleware(view)(request)
        return [piece async for piece in response.streaming_content]

    assert asyncio.run(collect()) == [b"outlet", b"outlet"]
    assert get_runtime().name == "default"


def test_threads_of_the_site(brands, settings):
    """A thread without the context of the request asks for the request's workspace too."""

    def view(request):
        assert isinstance(request.personalization, WorkspacePersonalization)
        request.personalization.now = None
        with ThreadPoolExecutor(1) as pool:
            hero = pool.submit(request.personalization.get, "hero-banner").result()
            visitor = pool.submit(lambda: request.personalization.identity).result()
        return HttpResponse(f"<h1>{hero['Title']} for {visitor.customer_id}</h1>")

    settings.ROOT_URLCONF = type("URLs", (), {"urlpatterns": [path("", view)]})
    assert site.read(get(Client(), "outlet", **{"x-customer": "c-1"}))[0] == "outlet:c-1 for c-1"
    assert brands[0].fetched == []


# Visitors


def test_ids_of_a_browser(brands):
    """A browser has an id, remembered parameters and a withdrawal of their own in each workspace."""
    client = Client()
    titles = {}
    for _ in range(2):
        for brand in brands:
            titles.setdefault(brand.name, set()).add(site.read(get(client, brand.name, "/?utm_source=x"))[0])
    assert {name: len(found) for name, found in titles.items()} == {"default": 1, "outlet": 1}
    assert {title.partition(":")[2] for found in titles.values() for title in found} == set(
        brands[0].fetched + brands[1].fetched
    )
    assert sorted(client.cookies) == ["moe_id", "moe_id_outlet", "moe_query", "moe_query_outlet"]
    response = HttpResponse()
    with use_workspace("outlet"):
        delete_anonymous_cookie(response)
    assert sorted(response.cookies) == ["__Host-moe_id_outlet", "moe_id_outlet", "moe_query_outlet"]
    # The signature of a cookie is for its name, so an id doesn't move to another workspace.
    client.cookies["moe_id_outlet"] = client.cookies["moe_id"].value
    assert site.read(get(client, "outlet"))[0] not in titles["outlet"] | {f"outlet:{brands[0].fetched[0]}"}


def test_token_goes_to_its_own_workspace(brands):
    """A link and a beacon count for the workspace of their page, whichever the site chooses for their address."""
    client = Client()
    links = {brand.name: site.read(get(client, brand.name))[1] for brand in brands}
    for name, other in (("outlet", "default"), ("default", "outlet")):
        assert get(client, other, links[name])["Location"] == "/sale/"
    assert get(Client(), "default", links["outlet"])["Location"] == "/sale/"
    tokens = [link.split("/")[3] for link in links.values()]
    beacon = {"events": [["impression", token] for token in tokens]}
    client.post("/moe/beacon/", beacon, content_type="application/json", headers={"x-brand": "outlet"})
    for brand in brands:
        assert [event["action"][-7:] for event in brand.events] == ["E_SHOWN", "CLICKED", "CLICKED"]
        assert len({event["moe_event_uuid"] for event in brand.events}) == 2


def test_islands_belong_to_their_workspace(brands, settings, tmp_path):
    """An island shows the experience of its page's workspace, and never that of two workspaces in one request."""
    (tmp_path / "island.html").write_text(site.PAGE)
    settings.TEMPLATES = [{**settings.TEMPLATES[0], "DIRS": [tmp_path]}]
    tokens = []
    for name in site.BRANDS:
        with use_workspace(name):
            tokens.append(sign_island("hero-banner", "island.html"))
    for place, brand in enumerate(brands):
        client = Client()
        found = get(client, brands[1 - place].name, f"/moe/islands/?island={tokens[place]}").json()["islands"]
        assert f"<h1>{brand.name}:anon-" in found[tokens[place]]
        assert list(client.cookies) == [f"moe_id{get_runtime(brand.name).settings.suffix}"]
    found = get(Client(), "default", f"/moe/islands/?island={tokens[1]}&island={tokens[0]}").json()["islands"]
    assert [html is None for html in found.values()] == [False, True]
    page = SimpleNamespace(runtime=get_runtime("outlet"), _is_used=True)
    assert [switch_workspace(page, name) for name in ("outlet", "default")] == [True, False]
    page._is_used = False
    assert switch_workspace(page, "gone") is False


# The runtime


def test_log_names_the_workspace(brands, settings, caplog):
    """On a site with several workspaces, each line begins with the workspace, and has it as a field."""
    with use_workspace("outlet"):
        logger.warning("It fails (%s).", "here")
    settings.MOE_PERSONALIZE = {"SANDBOX": True}
    get_runtime().log_once("key", "Alone.", level=logging.WARNING)
    assert [record.getMessage() for record in caplog.records] == ["Workspace outlet: It fails (here).", "Alone."]
    assert caplog.records[0].moe_workspace == "outlet"


def test_override_of_one_workspace(brands):
    """part.override() replaces the object in all workspaces, or in one."""
    get_thing = part(lambda runtime: runtime.name)
    with get_thing.override("mine", "outlet"):
        assert [get_thing(get_runtime(name)) for name in site.BRANDS] == ["default", "mine"]
        with get_thing.override("ours"):
            assert [get_thing(get_runtime(name)) for name in site.BRANDS] == ["ours", "ours"]


def test_experiences_of_one_workspace_in_a_test(brands):
    """override_experiences() gives all workspaces the experiences, or one, and then counts its events alone."""
    with override_experiences({"hero-banner": {"Title": "all"}}) as both:
        titles = [site.read(get(Client(), name))[0] for name in site.BRANDS]
        with override_experiences({"hero-banner": {"Title": "sale"}}, workspace="outlet") as outlet:
            titles += [site.read(get(Client(), name))[0] for name in site.BRANDS]
    assert titles == ["all", "all", "all", "sale"]
    assert (both.impressions, outlet.impressions) == ({"hero-banner": 3}, {"hero-banner": 1})
    with override_personalize(workspace="outlet", DEADLINE=3.0, WORKSPACE="a.b"):
        assert [get_runtime(name).settings.deadline for name in site.BRANDS] == [10, 3]
        assert get_settings().workspace == "tests.brands.choose"
    with pytest.raises(ConfigurationError, match="outlt"), override_personalize(workspace="outlt", DEADLINE=3.0):
        pass


def test_sandbox_of_each_workspace(settings, tmp_path):
    """The embedded sandbox of each workspace has a workspace file and a ledger of its own."""
    files = {}
    for name in site.BRANDS:
        file = files[name] = tmp_path / f"{name}.json"
        experience = {"key": "hero-banner", "name": name, "variations": [{"payload": {"Title": name}}]}
        content = {"workspace_id": "SAME_DEBUG", "api_key": "same", "experiences": [experience]}
        file.write_text(json.dumps(content))
    site.configure(settings, [], DELIVERY=IMMEDIATE, WORKSPACES={n: {"SANDBOX": str(f)} for n, f in files.items()})
    client = Client()
    assert [site.read(get(client, name))[0] for name in site.BRANDS] == ["default", "outlet"]
    assert [get_delivery(get_runtime(name)).counts().delivered for name in site.BRANDS] == [1, 1]


# The API, the outbox and the commands


def test_api_of_a_workspace(brands):
    """Each call takes the name of a workspace. Without it, a call works for the current one."""
    for brand in brands:
        hero = api.fetch_experience("hero-banner", customer_id="c-1", workspace=brand.name)
        assert hero["Title"] == f"{brand.name}:c-1"
        async_to_sync(api.aexperience_clicked)(hero, customer_id="c-1", workspace=brand.name)
        with use_workspace(brand.name):
            api.experiences_shown([hero], customer_id="c-1")
        assert len(brand.events) == 2


@pytest.mark.django_db(transaction=True)
def test_outbox_of_each_workspace(brands, settings, capsys, monkeypatch):
    """The rows, counters, erasures and deliverers of the workspaces are apart, although they share the tables."""
    # In this thread: threads can't wait for each other's locks in a database in memory, and don't close it.
    monkeypatch.setattr(moe_deliver, "ThreadPoolExecutor", lambda threads: nullcontext(SimpleNamespace(map=map)))
    settings.MOE_PERSONALIZE = {**settings.MOE_PERSONALIZE, "DELIVERY": OUTBOX}
    client, counts = Client(), lambda: [get_delivery(get_runtime(name)).counts() for name in site.BRANDS]

    def show():
        for name in ("default", "outlet", "outlet"):
            get(client, name, **{"x-customer": "c-1"})

    show()
    assert [found.pending for found in counts()] == [1, 2]
    call_command("moe_deliver", workspace="outlet")
    assert [found.pending for found in counts()] == [1, 0]
    show()
    assert api.erase(customer_id="c-1", workspace="outlet") == 2
    assert [found.pending for found in counts()] == [2, 0]
    show()
    call_command("moe_deliver", "--replay")
    assert [(found.delivered, found.dropped) for found in counts()] == [(3, {}), (4, {"erased": 2})]
    assert [line for line in capsys.readouterr().out.splitlines() if "delivered" in line] == [
        "2 events delivered, 0 refused and parked, 0 pending.",
        "default: 3 events delivered, 0 refused and parked, 0 pending.",
        "outlet: 2 events delivered, 0 refused and parked, 0 pending.",
    ]
    show()
    assert [deliver_outbox(workspace="outlet"), deliver_outbox()] == [2, 1]
    with pytest.raises(ConfigurationError, match="gone"):
        deliver_outbox(workspace="gone")
    assert [len(brand.events) for brand in brands] == [4, 6]


def test_commands_choose_a_workspace(brands, settings):
    """A command works for one workspace or for all, as its help says. An unknown name is an error with the fix."""

    def run(*arguments):
        out = io.StringIO()
        call_command(*arguments, stdout=out)
        return out.getvalue()

    assert "outlet:nobody" in run("moe_fetch", "hero-banner", "--workspace", "outlet")
    assert "default:nobody" in run("moe_fetch", "hero-banner")
    for arguments in (["moe_fetch", "hero-banner"], ["moe_doctor"], ["moe_deliver"], ["moe_erase", "c-1"]):
        with pytest.raises(CommandError, match=r"has no workspace 'outlt'.*outlet"):
            call_command(*arguments, workspace="outlt")
    with pytest.raises(CommandError, match="Choose one: --workspace default or outlet"):
        run("moe_erase", "c-1")
    assert "Erased 0" in run("moe_erase", "c-1", "--workspace", "outlet")
    with pytest.raises(CommandError, match="which has no outbox"):
        run("moe_deliver")


def test_doctor_examines_each_workspace(brands):
    """Each finding names its workspace, in the lines and in the JSON."""
    out = io.StringIO()
    with pytest.raises(CommandError, match="problems"):
        call_command("moe_doctor", stdout=out)
    lines = [line.split(maxsplit=2)[1] for line in out.getvalue().splitlines()]
    assert {*lines} == {"default:", "outlet:"}
    assert "for the workspace OUTLET" in next(
        line for line in out.getvalue().splitlines() if "outlet: The site" in line
    )
    out = io.StringIO()
    with pytest.raises(CommandError):
        call_command("moe_doctor", "--json", "--workspace", "outlet", stdout=out)
    assert {finding["workspace"] for finding in json.loads(out.getvalue())["findings"]} == {"outlet"}
