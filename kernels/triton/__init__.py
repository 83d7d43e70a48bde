"""Triton kernels, one module per operation."""
