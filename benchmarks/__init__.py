"""Benchmarks: ratios to a peer or to a physical limit, measured in one run."""
