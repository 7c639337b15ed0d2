"""The application that people open in a browser: ``python app.py``, ``aidet app``; see docs/app.md.

``service`` scores images, without Gradio; ``uploads`` reads uploaded files within limits; ``metadata`` and
``pictures`` show more about a file; ``words`` contains every text in both languages; ``cards`` turns results into HTML;
``page`` is the Gradio page; ``server`` starts it.
"""
