"""The pages of the test site. Each view shows one way to use the package."""

import asyncio
from collections.abc import Callable

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.template import engines
from django.template.response import TemplateResponse
from django.urls import include, path
from django.views.generic import TemplateView, View

from django_moe_personalize.decorators import personalize
from django_moe_personalize.mixins import PersonalizeMixin
from django_moe_personalize.visitor.identity import DENIED, Consent

TAGS = """{% load moe_personalize %}<main>
{% experience "hero-banner" as hero %}<h1>{{ hero.Title }}</h1>
<a href="{% click_url hero '/sale/' element='cta' %}">{{ hero.CtaLabel }}</a>
{% fallback %}<h1>Welcome</h1>{% endexperience %}
<p>{% experience_value "promo-strip" "Text" default="Free returns" %}</p></main>"""


def show(request: HttpRequest, source: str, **context: object) -> HttpResponse:
    """Render a template given as text."""
    return HttpResponse(engines["django"].from_string(source).render(context, request))


def plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse("plain")


def read(request: HttpRequest) -> HttpResponse:
    hero = request.personalization.get("hero-banner")
    return HttpResponse(hero["Title"] if hero else "default")


async def aread(request: HttpRequest) -> HttpResponse:
    hero = await request.personalization.aget("hero-banner")
    return HttpResponse(hero["Title"] if hero else "default")


@personalize("hero-banner", "promo-strip")
def tags(request: HttpRequest) -> HttpResponse:
    """Render tags whose keys the view declares."""
    return show(request, TAGS)


@personalize("hero-banner", "promo-strip")
async def atags(request: HttpRequest) -> HttpResponse:
    """Render tags in the event loop. The view declares their keys."""
    await asyncio.sleep(0)
    return show(request, TAGS)


async def undeclared(request: HttpRequest) -> HttpResponse:
    """Render tags in the event loop whose keys nothing declares."""
    return show(request, TAGS)


def configured(request: HttpRequest) -> HttpResponse:
    """Render tags whose keys may be in EXPERIENCES."""
    return show(request, TAGS)


def template_response(request: HttpRequest) -> TemplateResponse:
    """Return a response that is rendered after the view."""
    return TemplateResponse(request, engines["django"].from_string(TAGS))


async def atemplate_response(request: HttpRequest) -> TemplateResponse:
    """Return a response that is rendered after an async view."""
    name = request.GET.get("name")
    return TemplateResponse(request, name or engines["django"].from_string(TAGS))


def one_by_one(request: HttpRequest) -> HttpResponse:
    """Read experiences that are in no template."""
    for key in ("hero-banner", "promo-strip"):
        request.personalization.get(key)
    return HttpResponse()


def missing(request: HttpRequest) -> HttpResponse:
    """Show a personalized page with another status than 200."""
    response = show(request, TAGS)
    response.status_code = 404
    return response


def failing(request: HttpRequest) -> HttpResponse:
    """Fail after rendering an experience."""
    show(request, TAGS)
    raise ValueError("the view's own")


def stream(request: HttpRequest, *parts: Callable[[], object]) -> StreamingHttpResponse:
    """Return a response that calls each of the functions while it is sent."""

    async def aparts():
        for part in parts:
            yield part()

    return StreamingHttpResponse(aparts() if hasattr(request, "scope") else (part() for part in parts))


def streaming(request: HttpRequest) -> StreamingHttpResponse:
    """Render while the response is sent."""
    return stream(request, lambda: "<html>", lambda: show(request, TAGS).content)


@personalize("hero-banner", "promo-strip")
def streaming_declared(request: HttpRequest) -> StreamingHttpResponse:
    """Render declared experiences while the response is sent."""
    return streaming(request)


@personalize("hero-banner")
def prefetching(request: HttpRequest) -> HttpResponse:
    """Declare an experience, and read none: the page is public."""
    return HttpResponse("same", headers={"Cache-Control": "public, max-age=300"})


@personalize("hero-banner")
def session_lost(request: HttpRequest) -> HttpResponse:
    """Lose the session while the page is made."""
    type(request.session)().delete(request.session.session_key)
    return HttpResponse("done")


def cdn(request: HttpRequest) -> HttpResponse:
    """Read an experience, and let a CDN keep the page."""
    request.personalization.get("hero-banner")
    timing = {"Server-Timing": "db;dur=1"} if "timing" in request.GET else {}
    told = timing | {"CDN-Cache-Control": "max-age=600", "Surrogate-Control": "max-age=600", "Expires": "soon"}
    return HttpResponse("read", headers=told)


@personalize("hero-banner")
def panel(request: HttpRequest) -> HttpResponse:
    return show(request, "{{ p.identity.anonymous }}", p=request.personalization)


class ClassBased(PersonalizeMixin, TemplateView):
    experiences = ("hero-banner", "promo-strip")

    def render_to_response(self, context: dict[str, object], **kwargs: object) -> HttpResponse:
        return show(self.request, TAGS)


class Method(View):
    """Declare keys on a method, where the middleware can't see them."""

    @personalize("hero-banner", "promo-strip")
    def get(self, request: HttpRequest) -> HttpResponse:
        return show(request, TAGS)

    @personalize("hero-banner")
    def post(self, request: HttpRequest) -> HttpResponse:
        """Report the impressions and clicks of an app."""
        request.personalization.track_impression("hero-banner")
        request.personalization.track_click("hero-banner", element="buy")
        return HttpResponse("told")


def hide(view):
    """Decorate a view without copying its attributes, so that the middleware can't see its keys."""
    return lambda request: view(request)


async def ahidden(request: HttpRequest) -> HttpResponse:
    """See hide()."""
    return await atags(request)


class RestRequest:
    """A request as Django REST framework wraps it."""

    def __init__(self, request: HttpRequest) -> None:
        self._request = request


class RestView:
    """A view as Django REST framework calls it."""

    @personalize("hero-banner", "promo-strip")
    def get(self, request: RestRequest) -> HttpResponse:
        return show(request._request, TAGS)


def rest(request: HttpRequest) -> HttpResponse:
    """Call a view with a wrapped request."""
    return RestView().get(RestRequest(request))


def deny_everything(request: HttpRequest) -> Consent:
    """Return the answer of CONSENT for a visitor who allows nothing."""
    return DENIED


urlpatterns = [
    path("moe/", include("django_moe_personalize.urls")),
    path("plain/", plain, name="plain"),
    path("read/", read, name="read"),
    path("aread/", aread, name="aread"),
    path("tags/", tags, name="tags"),
    path("atags/", atags, name="atags"),
    path("undeclared/", undeclared, name="undeclared"),
    path("configured/", configured, name="configured"),
    path("account/", login_required(tags), name="account"),
    path("template-response/", template_response, name="template-response"),
    path("atemplate-response/", atemplate_response),
    path("one-by-one/", one_by_one, name="one-by-one"),
    path("prefetching/", prefetching),
    path("session-lost/", session_lost),
    path("cdn/", cdn),
    path("panel/", panel),
    path("missing/", missing, name="missing"),
    path("failing/", failing, name="failing"),
    path("streaming/", streaming, name="streaming"),
    path("streaming-declared/", streaming_declared, name="streaming-declared"),
    path("class/", ClassBased.as_view(), name="class"),
    path("method/", Method.as_view(), name="method"),
    path("hidden/", hide(tags)),
    path("ahidden/", ahidden),
    path("rest/", rest),
    path("shop/", include(([path("home/", configured, name="home")], "shop"))),
]
