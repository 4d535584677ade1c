"""Measure the performance that the package claims: one script for each goal, each figure against a baseline.

``python -m benchmarks`` runs all scripts, ``python -m benchmarks.p01_untouched`` runs one. steps.py counts
bytecodes instead of seconds. docs/performance.md explains the figures.
"""
