"""Whom a page asks for, shows and counts, if the view or a third-party package authenticates the visitor."""

import json

import pytest
from django.contrib.auth import aauthenticate, alogin, login, logout
from django.contrib.auth.models import User
from django.http import JsonResponse
from django.urls import include, path
from django.utils.decorators import method_decorator
from django.views import View
from hijack.views import AcquireUserView, ReleaseUserView
from ninja import NinjaAPI
from ninja.security import HttpBearer
from rest_framework.authentication import BasicAuthentication, TokenAuthentication
from rest_framework.decorators import action, api_view, authentication_classes
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.permissions import IsAuthenticated
from rest_framework.response import Response
from rest_framework.routers import SimpleRouter
from rest_framework.views import APIView
from rest_framework.viewsets import ModelViewSet, ViewSet
from rest_framework_simplejwt.authentication import JWTAuthentication, JWTStatelessUserAuthentication
from rest_framework_simplejwt.tokens import AccessToken

from django_moe_personalize.decorators import personalize
from django_moe_personalize.mixins import PersonalizeMixin
from django_moe_personalize.visitor import Identity

pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]

KEYS = ("hero-banner", "promo-strip", "trust-badges")


def show(request):
    mapping = request.personalization
    for key in KEYS:
        mapping.track_impression(key)
    return {"shown": [mapping.get(key)["Title"] if key in mapping else None for key in KEYS]}


def respond(request):
    return Response(show(request))


class OwnToken(TokenAuthentication):
    def authenticate_credentials(self, key):
        if user := User.objects.filter(username=key).first():
            return user, key
        raise AuthenticationFailed


class TokenView(APIView):
    authentication_classes = [OwnToken]
    permission_classes = [IsAuthenticated]

    def get(self, request):
        return Response(show(request))


class MixinView(PersonalizeMixin, TokenView):
    experiences = KEYS


class MethodView(TokenView):
    @personalize(*KEYS)
    def get(self, request):
        return super().get(request)


class Bearer(HttpBearer):
    """Authentication of django-ninja, which sets only ``request.auth``."""

    def authenticate(self, request, token):
        return User.objects.filter(username=token).first()


class BearerForUser(Bearer):
    def authenticate(self, request, token):
        request.user = super().authenticate(request, token)
        return request.user


class AsyncBearer(HttpBearer):
    async def authenticate(self, request, token):
        return await User.objects.filter(username=token).afirst()


def identify(request):
    """Return the user of django-ninja, or else of Django."""
    user = getattr(request, "auth", None) or request.user
    return Identity(str(user.pk)) if user.is_authenticated else None


ninja = NinjaAPI()
declared = personalize(*KEYS)(show)
ninja.get("/auth/", auth=Bearer())(show)
ninja.get("/user/", auth=BearerForUser())(declared)
ninja.get("/open/")(declared)


@ninja.get("/async/", auth=AsyncBearer())
@personalize(*KEYS)
async def ninja_async(request):
    await request.personalization.aload(*KEYS)
    return show(request)


async def async_view(request):
    name = request.headers["Authorization"].split()[1]
    user = await aauthenticate(request, username=name, password="x")
    if "login" in request.GET:
        await alogin(request, user)
    else:
        request.user = user
    await request.personalization.aload(*KEYS)
    return JsonResponse(show(request))


def session_view(request):
    if name := request.GET.get("in"):
        login(request, User.objects.get(username=name), "django.contrib.auth.backends.ModelBackend")
    if "out" in request.GET:
        logout(request)
    return JsonResponse(show(request))


class OpenViewSet(ViewSet):
    authentication_classes = [BasicAuthentication]

    @personalize(*KEYS)
    def list(self, request):
        return Response(show(request))

    @action(detail=False)
    @personalize(*KEYS)
    def recent(self, request):
        return Response(show(request))


class UserViewSet(PersonalizeMixin, ModelViewSet):
    experiences = KEYS
    queryset = User.objects.order_by("pk")

    def list(self, request, *args, **kwargs):
        return Response(show(request))


@method_decorator(personalize(*KEYS), name="dispatch")
class DispatchView(APIView):
    def get(self, request):
        return Response(show(request))


class AsyncView(PersonalizeMixin, View):
    experiences = KEYS

    async def get(self, request):
        return JsonResponse(show(request))


class AsyncMethodView(View):
    @personalize(*KEYS)
    async def get(self, request):
        return JsonResponse(show(request))


router = SimpleRouter()
router.register("users", UserViewSet)
router.register("open", OpenViewSet, basename="open")

urlpatterns = [
    path("token/", TokenView.as_view()),
    path("token-mixin/", MixinView.as_view()),
    path("token-method/", MethodView.as_view()),
    path("token-function/", api_view(["GET"])(authentication_classes([OwnToken])(personalize(*KEYS)(respond)))),
    path("jwt/", TokenView.as_view(authentication_classes=[JWTAuthentication])),
    path("stateless-jwt/", MixinView.as_view(authentication_classes=[JWTStatelessUserAuthentication])),
    path("ninja/", ninja.urls),
    path("async/", async_view),
    path("session/", session_view),
    path("hijack/acquire/", AcquireUserView.as_view()),
    path("hijack/release/", ReleaseUserView.as_view()),
    path("viewset/", UserViewSet.as_view({"get": "list"})),
    path("dispatch/", DispatchView.as_view()),
    path("outer/", personalize(*KEYS)(api_view(["GET"])(respond))),
    path("async-class/", AsyncView.as_view()),
    path("async-method/", AsyncMethodView.as_view()),
    path("router/", include(router.urls)),
]


@pytest.fixture
def seen(upstream, visit, settings):
    """Give the function that opens a page and returns whom it asked for, showed and counted, and if it set a cookie."""

    def open_page(address, **options):
        upstream.requests.clear()
        visit.client.cookies.pop("moe_id", None)
        response = visit(address, **options)
        assert response.status_code == 200, response.content
        shown = set(json.loads(response.content)["shown"])
        booked = upstream.booked
        assert len(booked) == len(KEYS)
        return [*shown.intersection(upstream.asked), *shown, *set(booked)], "moe_id" in response.cookies

    settings.SIMPLE_JWT = {"SIGNING_KEY": "x" * 64}
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    settings.MOE_PERSONALIZE = settings.MOE_PERSONALIZE | {"CACHE_TTL": 0, "CACHE_STALE_TTL": 0}
    for number, name in enumerate(["ada", "bob", "cy"], 10):
        User.objects.create_user(name, password="x", pk=number, is_superuser=name == "ada")
    upstream.echo()
    return open_page


@pytest.mark.parametrize(
    ("address", "scheme"),
    [
        ("/token/", "Token"),
        ("/token-mixin/", "Token"),
        ("/token-method/", "Token"),
        ("/token-function/", "Token"),
        ("/jwt/", "Bearer"),
        ("/stateless-jwt/", "Bearer"),
        ("/ninja/auth/", "Bearer"),
        ("/ninja/user/", "Bearer"),
        ("/ninja/async/", "Bearer"),
        ("/async/", "Bearer"),
        ("/async/?login", "Bearer"),
    ],
)
def test_ten_requests_with_authentication_in_the_view(seen, upstream, visit, settings, address, scheme):
    """From the first to the tenth request the user is known, and no user gets the cookie of an anonymous visitor."""
    if "ninja" in address and "user" not in address:
        settings.MOE_PERSONALIZE = settings.MOE_PERSONALIZE | {"IDENTIFY": f"{__name__}.identify"}
    for number in range(10):
        user = User.objects.get(pk=10 + number % 3)
        token = str(AccessToken.for_user(user)) if "jwt" in address else user.username
        found = seen(address, headers={"authorization": f"{scheme} {token}"})
        assert found == ([str(user.pk)] * 3, False)
        # After its first wrong guess, the package no longer asks for the wrong visitor too.
        assert number < 2 or upstream.asked == [str(user.pk)]
        if "login" in address:
            visit.client.cookies.clear()


def test_sign_in_and_sign_out_by_get(seen):
    """A page that signs a user in or out shows the content of the visitor after the change."""
    for _ in range(5):
        for query, expected in [("in=ada", "10"), ("", "10"), ("in=bob", "11"), ("out", "anon"), ("in=cy&out", "anon")]:
            visitors, has_cookie = seen(f"/session/?{query}")
            assert len(set(visitors)) == 1
            assert visitors[0].startswith(expected)
            assert has_cookie is (expected == "anon")


@pytest.mark.parametrize("position", [0, 1], ids=["before", "after"])
def test_impersonation_with_hijack(seen, visit, settings, position):
    """After the start, pages are for the hijacked user. After the release, they are for the superuser again."""
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "hijack"]
    *others, ours = settings.MIDDLEWARE
    hijack = "hijack.middleware.HijackUserMiddleware"
    settings.MIDDLEWARE = [*others, *([hijack, ours] if position == 0 else [ours, hijack])]
    visit.log_in(User.objects.get(pk=10))
    for _ in range(3):
        assert seen("/session/") == (["10"] * 3, False)
        assert visit("/hijack/acquire/", method="post", data={"user_pk": 11}).status_code == 302
        assert seen("/session/") == (["11"] * 3, False)
        assert visit("/hijack/release/", method="post").status_code == 302


def test_user_switched_between_two_requests(seen, visit):
    """Each request is for the user of its session."""
    for number in range(10):
        visit.log_in(User.objects.get(pk=10 + number % 3))
        assert seen("/session/") == ([str(10 + number % 3)] * 3, False)


@pytest.mark.parametrize(
    "address",
    [
        *("token-function", "viewset", "dispatch", "outer", "async-class", "async-method"),
        *("ninja/open", "router/users", "router/open", "router/open/recent"),
    ],
)
def test_declared_keys_travel_in_one_call(seen, upstream, address):
    """From the first request on, the decorator and the mixin fetch all keys together."""
    for _ in range(3):
        visitors, has_cookie = seen(f"/{address}/")
        assert [body["experience_key"] for body in upstream.fetches] == [[*KEYS]]
        assert len(set(visitors)) == 1
        assert visitors[0].startswith("anon")
        assert has_cookie
