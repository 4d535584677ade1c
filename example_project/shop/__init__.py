"""Fernweh, a small shop: what a site writes to be personalized stands in this app."""
