"""Training that runs in PyTorch and results in a MindSpore checkpoint.

MindSpore's convolution gradient is slow on a CPU (a step of the tiny autoencoder takes five times as long as in
PyTorch, see LOG.md), and PyTorch accelerators are easier to get than NPUs. Every conversion is verified to be equal.
"""
