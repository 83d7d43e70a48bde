"""Shared by the tests and the benchmarks; product code never imports it."""
