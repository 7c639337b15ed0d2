"""Inference app of a Xihe project: Gradio 3.21.0, Python 3.9, CPU. Host and port come from the platform's variables.

The model is the ONNX file named in config.json, which the platform puts beside this file.
"""

import os
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
BOTH = ("zh", "en")


def both(key: str) -> str:
    """A text in Chinese and English."""
    from aidet.app.words import say

    return " / ".join(say(language, key) for language in BOTH)


def build() -> Any:
    """The Gradio page: one image in, verdict, votes, stability and spectrum out."""
    import gradio as gr

    from aidet import images, xihe
    from aidet.app import cards, pictures, style
    from aidet.app.service import Service

    served = Service(xihe.model_files(HERE))
    start = round(served.threshold, 3)  # as the slider displays it

    def examine(path, threshold):
        if path is None:
            return "", "", "", None, None
        record = served.verdict(path, Path(path).name)
        if not record.ok:
            return cards.verdict("en", record, threshold, served.unsure), "", "", None, None
        threshold, unsure = served.rule(threshold)
        record = served.decided(record, threshold, unsure)
        image = images.decode(path)
        verdict = "".join(cards.verdict(language, record, threshold, unsure) for language in BOTH)
        votes, stability = (show("zh", record, threshold) for show in (cards.votes, cards.stability))
        return verdict, votes, stability, pictures.spectrum(image), pictures.residual(image)

    with gr.Blocks(title="AIDet", css=style.CSS, analytics_enabled=False) as page:
        gr.Markdown(f"# {both('title')}\n\n{both('not')}")
        with gr.Row():
            with gr.Column():
                image = gr.Image(type="filepath", label=both("upload"))
                threshold = gr.Slider(0, 1, value=start, step=0.001, label=both("threshold"))
            with gr.Column():
                shown = [gr.HTML(), gr.HTML(), gr.HTML()]
        with gr.Row():
            pair = [gr.Image(label=both("spectrum")), gr.Image(label=both("residual"))]
        for component, name in ((image, "verdict"), (threshold, False)):
            component.change(examine, [image, threshold], [*shown, *pair], api_name=name)
    return page


if __name__ == "__main__":
    # Gradio reads GRADIO_SERVER_NAME and GRADIO_SERVER_PORT by itself.
    build().launch()
