"""Training that runs in PyTorch and comes back as a MindSpore checkpoint.

MindSpore's convolution gradient on a CPU is slow (five times PyTorch's step for the tiny autoencoder, see LOG.md), and
accelerators with PyTorch are easier to come by than NPUs. What is trained here is proven equal after conversion.
"""
