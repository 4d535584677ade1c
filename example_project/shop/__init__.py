"""Fernweh, a small shop: what a site writes to be personalised stands in this app."""
