"""What ``infer.py`` does: score many images, survive being killed, and write the file that a contest wants."""
