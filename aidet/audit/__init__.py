"""Data sets examined: shortcuts that give a class away, and images that two splits share."""
