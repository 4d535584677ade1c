"""Routes of a site with the admin; imported only where that is installed."""

from django.contrib import admin
from django.urls import include, path

urlpatterns = [path("admin/", admin.site.urls), path("moe/", include("django_moe_personalize.urls"))]
