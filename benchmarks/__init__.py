"""What performance is claimed, measured: one script a goal, every figure a ratio to what ran beside it.

``python -m benchmarks`` runs all; ``python -m benchmarks.p01_untouched`` one. docs/performance.md
says how to read them.
"""
