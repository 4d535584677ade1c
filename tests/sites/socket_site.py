"""A site behind nginx that shows the visitor's address. The environment variable TRUSTED_PROXIES has JSON."""

import json
import os

import django
from django.conf import settings
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, HttpResponse
from django.urls import path

settings.configure(
    SECRET_KEY="sockets",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["django_moe_personalize"],
    MIDDLEWARE=["django_moe_personalize.middleware.PersonalizeMiddleware"],
    MOE_PERSONALIZE={"SANDBOX": True, "TRUSTED_PROXIES": json.loads(os.environ["TRUSTED_PROXIES"])},
)
django.setup()


def show(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.personalization.attributes.get("USER_IP_ADDRESS", "unknown"))


urlpatterns = [path("", show)]
application, asgi = WSGIHandler(), ASGIHandler()
