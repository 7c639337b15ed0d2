"""The page after a while: what is still being made while its user goes on, and files that Gradio removes with time."""

import os
import shutil
import threading

import numpy as np
import pytest
from app_tools import make_onnx
from PIL import Image

from aidet.app import server, service, uploads

pytest.importorskip("gradio", reason="Gradio 6 needs Python 3.10")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    return service.Service([make_onnx(tmp_path_factory.mktemp("app"))], uploads.Limits())


@pytest.fixture(scope="module")
def running(served):
    """The application inside this process, so that a test can hold it up."""
    before = dict(os.environ)
    folder = server.prepare()
    page = server.launch(served, folder, port=0)
    yield page
    page.close(verbose=False)
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def visit(running):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright needs Python 3.10 here")
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])

        def go():
            page = browser.new_page(locale="en-US")
            page.goto(running.local_url)
            page.wait_for_selector("#verdict .aidet-card")
            return page

        yield go
        browser.close()


def held(monkeypatch, served, name):
    """Let a method of the service wait until the event that is returned is set."""
    go_on, real = threading.Event(), getattr(served, name)

    def waiting(*arguments, **more):
        assert go_on.wait(60)
        return real(*arguments, **more)

    monkeypatch.setattr(served, name, waiting)
    return go_on


def move(page, name, value):
    field = page.locator(f"#{name} input[type=number]")
    field.fill(str(value))
    field.press("Tab")


def test_what_was_changed_meanwhile_holds_for_what_comes_later(visit, served, tmp_path, monkeypatch):
    noise = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    resaved, heat = held(monkeypatch, served, "resaved"), held(monkeypatch, served, "heat")
    page = visit()
    page.set_input_files("#image input[type=file]", tmp_path / "a.png")
    page.wait_for_selector("#verdict h2")
    page.get_by_text("Threshold and unsure zone").click()
    for name, value in (("low", 0.01), ("threshold", 0.01), ("high", 0.02)):
        move(page, name, value)
    rule = "Threshold 1%, unsure from 1% to 2%"
    page.wait_for_function(f"document.querySelector('#verdict').innerText.includes('{rule}')")
    resaved.set()
    page.wait_for_function("/Stable|Weak/.test(document.querySelector('#verdict').innerText)")
    assert rule in page.inner_text("#verdict")
    page.get_by_label("中文").check()
    page.wait_for_function("document.querySelector('#heat').innerText.includes('正在生成热力图')")
    heat.set()
    page.wait_for_selector("#heat img")
    assert "支持“生成”" in page.inner_text("#heat")


def test_a_batch_is_shown_in_the_language_of_its_end(visit, served, tmp_path, monkeypatch):
    Image.new("RGB", (40, 30)).save(tmp_path / "mine.png")
    batch = held(monkeypatch, served, "batch")
    page = visit()
    page.get_by_role("tab", name="Batch", exact=True).click()
    page.set_input_files("#files input[type=file]", tmp_path / "mine.png")
    page.wait_for_function("document.querySelector('#files').innerText.includes('mine')")
    page.click("#run")
    page.get_by_label("中文").check()
    page.wait_for_function("document.querySelector('#run').innerText.includes('开始检测')")
    batch.set()
    page.wait_for_function("document.querySelector('#summary').innerText.includes('共 1 张')")
    assert "下载 CSV" in page.inner_text("#download") and "结论" in page.inner_text("#table")


def test_the_examples_outlive_the_files_of_visitors(visit, running, tmp_path):
    from gradio.route_utils import delete_files_created_by_app

    Image.new("RGB", (40, 30)).save(tmp_path / "mine.png")
    page = visit()
    page.set_input_files("#image input[type=file]", tmp_path / "mine.png")
    page.wait_for_selector("#verdict h2, #heat img")
    page.get_by_role("button", name="generated: FLUX.2").click()
    page.wait_for_function("document.querySelector('#verdict').innerText.includes('hedgehog.webp')")
    page.wait_for_selector("#heat img")
    delete_files_created_by_app(running, 0)
    assert not list(server.Path(os.environ["GRADIO_TEMP_DIR"]).rglob("mine.png"))
    page = visit()
    loaded = "[...document.querySelectorAll('.aidet-example img')].every(i => i.complete && i.naturalWidth > 0)"
    page.wait_for_function(loaded)
    page.get_by_role("button", name="generated: FLUX.2").click()
    page.wait_for_function("document.querySelector('#verdict').innerText.includes('hedgehog.webp')")
