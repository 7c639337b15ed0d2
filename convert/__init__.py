"""Convert PyTorch and Hugging Face weights to MindSpore checkpoints, verified to be equal, and back.

Start with ``python -m convert --help``, or ``aidet convert --help`` if the wheel is installed. In the wheel the package
is ``aidet.convert``, so all imports within it are relative. ``docs/convert.md`` lists what is supported.
"""

# How users of this installation call it, for usage texts and messages.
COMMAND = "python -m convert" if __name__ == "convert" else "aidet convert"
MAKE_REFERENCE = f"python -m {__name__}.make_reference"
