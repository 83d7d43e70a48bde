"""Kernels: shared functors, CUDA C++ and Triton. Imports nothing of fastadv."""
