"""For MkDocs: files of the repository that are no pages stay text, as the site does not hold them."""

import re

_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[^)]*\)")


def on_page_markdown(markdown, **_):
    """Links to ``../something`` become their text."""
    return _OUTSIDE.sub(r"\1", markdown)
