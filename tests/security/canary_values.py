"""Secrets and personal data that the tests search for in places where they must not be."""

SECRET = "canary-key-4711"
CUSTOMER = "canary-customer-4711"
MAIL = "canary-4711@mail.example"
CART = "canary-cart-4711"
AGENT = "Mozilla/5.0 (X11; canary-laptop-4711) Firefox/140.0"
CAMPAIGN = "canary-campaign-4711"
ADDRESS = "9.9.47.11"
PASSWORD = "canary-password-4711"
PERSONAL = (CUSTOMER, MAIL, CART, AGENT, CAMPAIGN, ADDRESS)
