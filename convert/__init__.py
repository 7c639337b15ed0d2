"""PyTorch and Hugging Face weights to MindSpore checkpoints, proven equal, and back.

``python -m convert --help`` is the way in, ``aidet convert --help`` where the wheel is installed: there the package is
``aidet.convert``, so all imports within it are relative. ``docs/convert.md`` has the table of what is covered.
"""

# How users of this installation call it, for usage texts and messages.
COMMAND = "python -m convert" if __name__ == "convert" else "aidet convert"
MAKE_REFERENCE = f"python -m {__name__}.make_reference"
