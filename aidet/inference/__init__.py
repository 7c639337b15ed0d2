"""The commands of ``infer.py``: score many images, resume killed runs, and write result files for contests."""
