"""PyTorch and Hugging Face weights to MindSpore checkpoints, proven equal, and back.

``python -m convert --help`` is the way in; ``docs/convert.md`` has the table of what is covered.
"""
