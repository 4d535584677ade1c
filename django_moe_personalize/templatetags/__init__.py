"""The library of ``{% load moe_personalize %}``."""
