"""A Wagtail site with wagtail-cache, as their quickstarts say."""

from django.contrib.staticfiles.handlers import StaticFilesHandler

from tests.sites.settings import MIDDLEWARE, OURS, WAGTAIL, serve

wsgi, asgi = serve(
    __name__,
    **{**WAGTAIL, "apps": [*WAGTAIL["apps"], "django_moe_personalize.contrib.wagtail"]},
    middleware=[
        "wagtailcache.cache.UpdateCacheMiddleware",
        *MIDDLEWARE,
        OURS,
        "wagtailcache.cache.FetchFromCacheMiddleware",
    ],
    WAGTAIL_I18N_ENABLED=False,
    WAGTAILDOCS_EXTENSIONS=[],
)
# An editor's form needs Wagtail's scripts.
application = StaticFilesHandler(wsgi)
