"""Looks behind the pages: switches, the panel on every page, the ledger. No site needs this app."""
