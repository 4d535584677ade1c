"""The CMS's own URLs after ours."""

from django.conf.urls.i18n import i18n_patterns
from django.contrib import admin
from django.contrib.auth.views import LoginView
from django.urls import include, path

urlpatterns = [
    path("moe/", include("django_moe_personalize.urls")),
    path("login/", LoginView.as_view(template_name="cms_site/login.html")),
    *i18n_patterns(path("admin/", admin.site.urls), path("", include("cms.urls"))),
]
