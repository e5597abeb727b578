"""Times our Triton kernels on a GPU beside torch, pytorch-metric-learning and a plain product."""
