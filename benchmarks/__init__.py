"""Every claim about speed, measured beside its peer and beside the C program that is its limit: ``python -m benchmarks``."""
