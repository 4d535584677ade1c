"""A django CMS site as its quickstart says, with the page cache and the placeholder cache that are on by default."""

from tests.sites.settings import CMS, CMS_MIDDLEWARE, MIDDLEWARE, OURS, serve

application, asgi = serve(
    __name__,
    **{**CMS, "apps": [*CMS["apps"], "django_moe_personalize.contrib.cms"]},
    middleware=[
        "cms.middleware.utils.ApphookReloadMiddleware",
        *MIDDLEWARE,
        *CMS_MIDDLEWARE,
        "cms.middleware.language.LanguageCookieMiddleware",
        OURS,
    ],
    CMS_TEMPLATES=[("cms_site/page.html", "Page")],
)
