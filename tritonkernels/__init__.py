"""Triton kernels for NVIDIA and AMD GPUs, one file for each family; README.md has the conventions.

Importing this package imports neither Triton nor torch: the modules in it do.
"""
