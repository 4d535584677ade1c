"""Integrations: one module for each library, imported only where that library is installed. The core knows none."""
