"""Checks of data sets: shortcuts that give the class away, and images that two splits share."""
