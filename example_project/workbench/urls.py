"""Routes of the workbench. They stand outside the namespace of the shop, so nothing is fetched for them."""

from django.urls import path

from workbench import views

app_name = "workbench"
urlpatterns = [
    path("switches/", views.switch, name="switch"),
    path("ledger/", views.ledger, name="ledger"),
    path("ledger/data.json", views.ledger_data, name="ledger-data"),
    path("ledger/clear/", views.clear_ledger, name="ledger-clear"),
]
