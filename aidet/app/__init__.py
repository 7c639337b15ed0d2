"""The application that people open in a browser: ``python app.py``, ``aidet app``; see docs/app.md.

``service`` scores images and knows no Gradio; ``uploads`` reads what came in, within limits; ``metadata`` and
``pictures`` look at a file; ``words`` holds every text in both languages; ``cards`` turns results into HTML; ``page``
is the Gradio page; ``server`` starts it.
"""
