"""The routes of the shop; ``EXPERIENCES`` in the settings uses their names."""

from django.urls import path

from shop import views

app_name = "shop"
urlpatterns = [
    path("", views.home, name="home"),
    path("category/<slug:slug>/", views.CategoryView.as_view(), name="category"),
    path("product/<slug:slug>/", views.ProductView.as_view(), name="product"),
    path("cart/", views.cart, name="cart"),
    path("cart/add/<slug:slug>/", views.add_to_cart, name="cart-add"),
    path("cart/remove/<slug:slug>/", views.remove_from_cart, name="cart-remove"),
    path("cart/order/", views.place_order, name="cart-order"),
    path("cart/offer/", views.take_offer, name="cart-offer"),
    path("sign-in/", views.SignInView.as_view(), name="sign-in"),
    path("sign-out/", views.sign_out, name="sign-out"),
]
