"""A Wagtail site with wagtail-cache, as their quickstarts say."""

from tests.sites.settings import MIDDLEWARE, OURS, WAGTAIL, serve

application, asgi = serve(
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
