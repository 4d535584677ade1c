"""How events reach MoEngage: one interface (``base.py``), several ways, chosen by the setting ``DELIVERY``."""
