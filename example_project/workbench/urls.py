"""The routes of the workbench. They aren't in the namespace ``shop``, so these pages fetch no experiences."""

from django.urls import path

from workbench import views

app_name = "workbench"
urlpatterns = [
    path("switches/", views.switch, name="switch"),
    path("ledger/", views.ledger, name="ledger"),
    path("ledger/clear/", views.clear_ledger, name="ledger-clear"),
]
