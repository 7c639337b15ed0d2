"""The HTTP interface: the documented calls, and how an upload and a user error are handled in all of them."""

import functools
import reprlib
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

from .. import images
from ..errors import UserError
from . import service, uploads

FILE = '{"path": what /upload answered, "orig_name": "a.jpg", "meta": {"_type": "gradio.FileData"}}'


def received(payload: Dict[str, Any], folder: Path) -> Tuple[Path, str]:
    """(path, name) of an upload from Gradio.

    Gradio refuses paths outside its upload folder. They are checked again here, because a bug in Gradio would expose
    every file on the server.

    Raises
    ------
    UserError
        The path is outside ``folder`` or is not a file.
    """
    path = Path(payload["path"]).resolve()
    if folder not in path.parents or not path.is_file():
        raise UserError("the file is not one that was uploaded; send it again")
    return path, uploads.safe_name(payload.get("orig_name") or path.name)


def told(work: Callable) -> Callable:
    """Decorator: turn a user error into the message that Gradio shows and the HTTP interface returns."""

    import gradio as gr

    @functools.wraps(work)
    def run(*arguments):
        try:
            return work(*arguments)
        except (UserError, images.ImageError) as error:
            raise gr.Error(str(error), print_exception=False) from None

    return run


def in_one_line(page: Any) -> None:
    """Have a page refuse the inputs of a call in one line.

    Gradio checks them before the call is made. Its own messages have many lines, and every refusal would leave a
    traceback in the server's log.

    Parameters
    ----------
    page : gradio.Blocks
    """
    import gradio as gr

    check = page.preprocess_data

    async def checked(block_fn, inputs, *rest, **more):
        wanted = [one.label for one in block_fn.inputs if one.label]
        if len(inputs) < len(block_fn.inputs):
            text = f"{block_fn.api_name} takes {len(block_fn.inputs)} values ({', '.join(wanted)}), got {len(inputs)}"
            raise gr.Error(f"{text}; give all, null for the server's own", print_exception=False)
        try:
            return await check(block_fn, inputs, *rest, **more)
        except gr.exceptions.InvalidPathError:
            text = "the file is not one that was uploaded; send it again"
        except ValueError as error:  # pydantic's, which knows the value at fault
            found = getattr(error, "errors", lambda: [{}])()[0]
            # What lacks a part is shown whole, what has a wrong part with that part.
            text = f"a file is given as {FILE}, and files as a list of these; got {reprlib.repr(found.get('input'))}"
        raise gr.Error(text, print_exception=False) from None

    page.preprocess_data = checked


def interface(served: service.Service, folder: Path) -> None:
    """Add the documented endpoints to the page that is being built; hidden components hold their inputs and outputs.

    Parameters
    ----------
    served : service.Service
    folder : Path
        The only folder from which an input may come.
    """
    import gradio as gr

    with gr.Group(visible=False):
        image, files = gr.File(label="image"), gr.File(label="files", file_count="multiple")
        threshold, low, high = (gr.Number(label=n, value=None) for n in ("threshold", "unsure_low", "unsure_high"))
        resaved = gr.Checkbox(label="stability", value=True)
        answer, picture, call = gr.JSON(label="result"), gr.Image(label="heat map", format="png"), gr.Button()

    def rule_of(threshold, low, high):
        if (low is None) != (high is None):
            raise UserError("give both unsure_low and unsure_high, or neither")
        for name, value in (("unsure_low", low), ("unsure_high", high)):
            if isinstance(value, bool):
                raise UserError(f"{name} (={value}) must be between 0 and 1")
        return served.rule(threshold, None if low is None else (low, high))

    def verdict(image, threshold=None, unsure_low=None, unsure_high=None, stability=True):
        """The verdict on one image file."""
        path, name = uploaded(image)
        rule = rule_of(threshold, unsure_low, unsure_high)
        stability = True if stability is None else stability  # plain HTTP has no defaults but null
        if not isinstance(stability, bool):
            raise UserError(f"stability (={stability!r}) must be true or false")
        record = served.verdict(path, name, *rule, stability=stability)
        return service.as_json(record, *rule, service.findings_of(path))

    def batch(files, threshold=None, unsure_low=None, unsure_high=None):
        """The verdicts on many image files and zip archives, in their order."""
        items = [uploaded(one) for one in files or []]
        rule = rule_of(threshold, unsure_low, unsure_high)
        found = served.batch([p for p, _ in items], [n for _, n in items], *rule)
        images = [service.as_json(r, *rule) for r in found.records]
        left = [{"file": name, "reason": why} for name, why in found.left_out]
        return {"images": images, "left_out": left, "note": service.NOTE}

    def heat(image):
        """An occlusion map over the image, as a PNG."""
        return served.heat(*uploaded(image)).picture

    def localize(image):
        """Which parts of an image are generated: area, box of the largest region, map."""
        path, name = uploaded(image)
        try:
            return service.located(name, served.localize(path)[0])
        except images.ImageError as error:
            return {"file": name, "status": f"error: {error}"}

    def about():
        """Models, threshold, unsure zone and limits of this server."""
        return served.about()

    def uploaded(payload):
        if payload is None:
            raise UserError("no image given")
        return received(payload, folder)

    rule = [threshold, low, high]
    offered: List[Tuple[Callable, List[Any], Any]] = [
        (verdict, [image, *rule, resaved], answer),
        (batch, [files, *rule], answer),
        (heat, [image], picture),
        (about, [], answer),
    ]
    if served.localizer is not None:
        offered.append((localize, [image], answer))
    for work, inputs, output in offered:
        call.click(
            told(work),
            inputs,
            output,
            api_name=work.__name__,
            api_description=work.__doc__,
            preprocess=False,
        )
