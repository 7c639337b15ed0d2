"""What is real and what is generated: folders, tables and lists of images, their labels, training sets."""

from .samples import Samples, open_data
from .sources import Inputs, Table, read, read_images
from .truth import Truth, read_labels

__all__ = ["Inputs", "Samples", "Table", "Truth", "open_data", "read", "read_images", "read_labels"]
