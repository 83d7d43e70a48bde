"""Benchmarks: a registry, one runner, and the results that the README quotes."""
