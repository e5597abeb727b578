"""Measurements of minerlib against the tools people use today, on the same data in the same run.

`python -m minerlib bench` runs a short choice of them; `make bench` (the folder bench/) runs all.
Nothing here is imported unless asked for, and no peer has to be installed.
"""
