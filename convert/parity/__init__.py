"""Is the converted model the same model? Comparisons, and the original model in PyTorch (imported nowhere else)."""
