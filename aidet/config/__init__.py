"""Recipes: every key, read from MindCV's YAML files and the command line."""

from .keys import ALIASES, GROUPS, SCHEMA
from .loading import Config, help_text, load, made_by, parse_args
from .profiles import Profile

__all__ = [
    "ALIASES", "Config", "GROUPS", "Profile", "SCHEMA", "help_text", "load", "made_by", "parse_args",
]  # fmt: skip
