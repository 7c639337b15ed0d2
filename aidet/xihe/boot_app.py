"""Inference app of a Xihe project: Gradio 3.21.0, Python 3.9, CPU. Host and port come from the platform's variables.

The model is the ONNX file named in config.json, which the platform puts beside this file.
"""

import os
import sys
from pathlib import Path
from typing import Any, Tuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
BOTH = ("zh", "en")


def both(key: str) -> str:
    """A text in Chinese and English."""
    from aidet.app.words import say

    return " / ".join(say(language, key) for language in BOTH)


def examined(served: Any, path: Any, threshold: float) -> Tuple[str, str, str, Any, Any]:
    """Verdict, votes and stability as HTML, spectrum and noise as images, of one image file.

    Parameters
    ----------
    served : aidet.app.service.Service
    path : str or None
        None: no image, and nothing is shown.
    threshold : float
        On the probability, as the slider has it.
    """
    from aidet import images
    from aidet.app import cards, pictures, service

    if path is None:
        return "", "", "", None, None
    threshold, unsure = served.rule(threshold)
    record = served.verdict(path, Path(path).name, threshold, unsure)
    image = images.decode(path) if record.ok else None
    part = "" if image is None else service.part_of(image)
    verdict = "".join(cards.verdict(language, record, threshold, unsure, part=part) for language in BOTH)
    if image is None:
        return verdict, "", "", None, None
    votes = cards.votes("zh", record, served.lines(threshold))
    stability = cards.stability("zh", record, threshold, part)
    return verdict, votes, stability, pictures.spectrum(image), pictures.residual(image)


def build() -> Any:
    """The Gradio page: one image in, verdict, votes, stability and spectrum out."""
    import gradio as gr

    from aidet import xihe
    from aidet.app import style
    from aidet.app.service import Service

    served = Service(xihe.model_files(HERE))
    start = round(served.threshold, 3)  # as the slider displays it

    def examine(path, threshold):
        return examined(served, path, threshold)

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
