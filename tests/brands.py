"""Two brands in one process: a stand-in for the MoEngage of each, the site's pages, and what each of them got."""

import base64
import json
import re
import threading

from django.http import HttpResponse
from django.template import engines
from django.urls import include, path

from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.runtime import get_runtime
from django_moe_personalize.visitor import Identity
from tests.loopback import Loopback

BRANDS = ("default", "outlet")

PAGE = """{% load moe_personalize %}{% experience "hero-banner" as hero %}<h1>{{ hero.Title }}</h1>
<a href="{% click_url hero '/sale/' element='cta' %}">x</a>{% fallback %}<h1>Welcome</h1>{% endexperience %}"""


class Brand(Loopback):
    """A MoEngage whose experiences name the brand and the visitor. ``wrong`` has all that belongs to another brand."""

    def __init__(self, name: str) -> None:
        super().__init__(self._answer)
        self.name = name
        self.fetched: list[str] = []
        self.events: list[dict] = []
        self.wrong: list[str] = []
        self.is_refusing = False
        self.hanging = threading.Event()

    @property
    def settings(self) -> dict[str, str]:
        return {"WORKSPACE_ID": self.name.upper(), "API_KEY": f"key-of-{self.name}", "BASE_URL": self.url}

    def _answer(self, exchange) -> None:
        request = exchange.received
        pair = base64.b64encode(f"{self.name.upper()}:key-of-{self.name}".encode()).decode()
        if request.headers.get("authorization") != f"Basic {pair}":
            self.wrong.append(f"{request.target}: {request.headers}")
        if self.hanging.is_set():
            exchange.hang()
        elif self.is_refusing:
            exchange.reply(status="503 Service Unavailable")
        elif request.target.startswith("/v1/experiences/fetch"):
            body = json.loads(request.body)
            visitor = body.get("identifiers", {}).get("customer_id", "nobody")
            self.fetched.append(visitor)
            entry = {
                "payload": {"Title": {"value": f"{self.name}:{visitor}", "data_type": "string"}},
                "experience_context": {"cid": f"{self.name}-1", "experience": self.name, "moe_variation_id": "2"},
            }
            exchange.reply(json.dumps({"experiences": dict.fromkeys(body["experience_key"], entry)}).encode())
        elif request.target.startswith("/v1/experiences/events"):
            self._take(json.loads(request.body))
            exchange.reply(b'{"status": "success"}')
        else:
            exchange.reply(b'{"experiences": []}')

    def _take(self, body) -> None:
        for element in body["elements"] if "elements" in body else body["events"]:
            for action in element["actions"]:
                self.events.append({**action, "customer_id": element["customer_id"]})
                if action["attributes"]["experience"] != self.name:
                    self.wrong.append(f"an event of {action['attributes']['experience']}")


def choose(request) -> str:
    # The async client of Django can't replace the host.
    return request.headers.get("X-Brand", "default")


async def achoose(request) -> str:
    return choose(request)


def identify(request) -> Identity | None:
    customer = request.headers.get("X-Customer")
    return Identity(customer) if customer else None


def show(request) -> HttpResponse:
    return HttpResponse(engines["django"].from_string(PAGE).render({}, request))


async def ashow(request) -> HttpResponse:
    await request.personalization.aload("hero-banner")
    return show(request)


urlpatterns = [
    path("", show),
    path("async/", ashow),
    path("moe/", include("django_moe_personalize.urls")),
]


def configure(settings, brands, **changes) -> None:
    """Let the site serve ``brands``."""
    settings.ROOT_URLCONF = __name__
    settings.ALLOWED_HOSTS = ["*"]
    settings.MOE_PERSONALIZE = {
        "SANDBOX": False,
        "DEADLINE": 10,
        "WORKSPACE": f"{__name__}.choose",
        "IDENTIFY": f"{__name__}.identify",
        "WORKSPACES": {brand.name: brand.settings for brand in brands},
        **changes,
    }


def read(response) -> tuple[str, str]:
    """Return the title of a page, and the address of its link."""
    link = re.search('href="(/moe[^"]*)"', response.text)
    return re.search("<h1>(.*)</h1>", response.text)[1], link[1] if link else ""


def flush() -> dict[str, int]:
    """Deliver the events of all brands, and return how many each of them has accepted."""
    return {name: get_delivery(get_runtime(name)).flush(30).accepted for name in BRANDS}
