"""The application as people use it: the page in headless Chromium, the interface with gradio_client and plain HTTP.

Screenshots of every step are kept in out/screenshots.
"""

import base64
import csv
import io
import json
import shutil
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from app_tools import Server, make_onnx
from localize_tools import make_localizer, scene
from PIL import Image, PngImagePlugin

from aidet import Detector
from aidet.app import cards

pytest.importorskip("gradio", reason="Gradio 6 needs Python 3.10")
ROOT = Path(__file__).resolve().parents[2]
SHOTS = ROOT / "out" / "screenshots"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")
BAD_NAME = "<img src=x onerror=alert(1)>.png"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The tiny detector and a localizer; images of several kinds; a zip archive of a folder; a broken file."""
    folder = tmp_path_factory.mktemp("app")
    make_onnx(folder)
    make_localizer(folder / "local.onnx")
    scene((320, 200), (32, 48, 128, 112)).save(folder / "edited.png")
    return folder


@pytest.fixture(scope="module")
def pictures(files):
    import numpy as np

    made = []
    for i in range(6):
        rng = np.random.default_rng(i)
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        made.append(files / f"{i}.{'png' if i % 2 else 'jpg'}")
        small.resize((120, 90), Image.Resampling.BICUBIC).save(made[-1])
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "<b>a cat</b> Steps: 20, Sampler: Euler a, Seed: 1")
    Image.open(made[0]).save(files / "prompted.png", pnginfo=info)
    (files / "broken.jpg").write_bytes(b"this is no image")
    with zipfile.ZipFile(files / "folder.zip", "w") as archive:
        for path in made[:3]:
            archive.write(path, f"holiday/{path.name}")
        archive.write(files / "broken.jpg", "holiday/broken.jpg")
        archive.writestr("holiday/notes.txt", "no image")
    return made


@pytest.fixture(scope="module")
def detector(files):
    return Detector(files / "tiny.onnx", votes=5, unsure=(0.45, 0.55), stability=True)


@pytest.fixture(scope="module")
def server(files, pictures):
    flags = [
        "--ckpt",
        files / "tiny.onnx",
        "--votes",
        5,
        "--unsure",
        "0.45,0.55",
        "--max-images",
        8,
        "--max-megabytes",
        1,
        "--localizer",
        files / "local.onnx",
    ]
    running = Server(files, *flags)
    yield running
    running.stop()


def test_it_reaches_no_other_host_and_leaves_nothing_behind(files, pictures, tmp_path):
    """Start, one verdict over HTTP, stop: no outside connection, exit code 0, no upload left on disk."""
    running = Server(tmp_path, "--ckpt", files / "tiny.onnx", "--localizer", "none")
    try:
        _, body, _ = status_of(f"{running.url}gradio_api/info")
        assert sorted(json.loads(body)["named_endpoints"]) == ["/about", "/batch", "/heat", "/verdict"]
        assert b"where-switch" not in status_of(running.url)[1]
        answer = verdict(running.url, upload(running.url, pictures[0]))
        assert answer["status"] == "ok"
        assert list(running.temporary.glob("aidet-app-*/**/*.jpg"))
    finally:
        code = running.stop()
    assert code == 0 and running.outside.read_text() == "" and list(running.temporary.glob("aidet-app-*")) == []


# --- plain HTTP ------------------------------------------------------------------------------------------------------
def upload(url, path, name=None):
    """What curl does: send the file to /upload, then make a FileData from the returned path."""
    import uuid

    mark = uuid.uuid4().hex
    head = f'--{mark}\r\nContent-Disposition: form-data; name="files"; filename="{name or path.name}"\r\n\r\n'
    body = head.encode() + path.read_bytes() + f"\r\n--{mark}--\r\n".encode()
    kind = {"Content-Type": f"multipart/form-data; boundary={mark}"}
    with urllib.request.urlopen(urllib.request.Request(f"{url}gradio_api/upload", body, kind), timeout=60) as answer:
        where = json.load(answer)[0]
    return {"path": where, "orig_name": name or path.name, "meta": {"_type": "gradio.FileData"}}


def post(url, name, data):
    """Make a call and return its result, or the error's text if it fails."""
    request = urllib.request.Request(
        f"{url}gradio_api/call/{name}", json.dumps({"data": data}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{url}gradio_api/call/{name}/{event}", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    kind = [line[7:] for line in lines if line.startswith("event: ")][-1]
    value = json.loads([line[6:] for line in lines if line.startswith("data: ")][-1])
    return value[0] if kind == "complete" else {"error": value}


def verdict(url, sent):
    """Plain HTTP has no defaults: every argument must be in the list."""
    return post(url, "verdict", [sent, None, None, None, True])


def status_of(url):
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


def test_no_file_outside_the_upload_folder_can_be_read(server, files):
    secrets = ["/etc/passwd", str(ROOT / "README.md"), str(files / "0.jpg"), f"{ROOT}/tests/../README.md"]
    for path in secrets:
        for form in (f"gradio_api/file={urllib.parse.quote(path)}", f"file={urllib.parse.quote(path, safe='')}"):
            code, body, _ = status_of(server.url + form)
            assert code in (403, 404), (form, code)
            assert b"root:" not in body and b"AIDet" not in body
        stolen = {"path": path, "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}
        for answer in (verdict(server.url, stolen), post(server.url, "batch", [[stolen], None, None, None])):
            assert list(answer) == ["error"] and "root:" not in json.dumps(answer)
    for path in ("file=http://127.0.0.1:1/x", "file=http%3A%2F%2F127.0.0.1:1/x", "proxy=http://127.0.0.1:1/x"):
        assert status_of(f"{server.url}gradio_api/{path}")[0] == 403


def test_a_name_cannot_leave_the_upload_folder(server, pictures):
    sent = upload(server.url, pictures[0], "../../../escaped.png")
    assert ".." not in sent["path"] and Path(sent["path"]).is_relative_to(server.temporary)
    assert not list(server.temporary.parent.glob("escaped*"))
    assert verdict(server.url, sent)["file"] == "escaped.png"


def test_headers(server):
    code, body, headers = status_of(server.url)
    assert code == 200 and "connect-src 'self'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"


def test_a_file_over_the_limit_is_refused(server, files):
    (files / "heavy.bmp").write_bytes(b"BM" + bytes(1 << 20))
    answer = verdict(server.url, upload(server.url, files / "heavy.bmp"))
    assert answer["status"] == "error: 1.0 MB, more than the limit of 1 MB"


def test_wrong_arguments_are_refused_in_one_line(server, pictures):
    """Also those that Gradio checks itself; none leaves a traceback in the server's log."""
    sent = upload(server.url, pictures[0])
    shape = 'a file is given as {"path": what /upload answered, '
    for name, data, text in (
        ("verdict", [sent], "verdict takes 5 values (image, threshold, unsure_low, unsure_high, stability), got 1; "),
        ("verdict", ["a.jpg", None, None, None, False], shape),
        ("verdict", [{"path": sent["path"]}, None, None, None, False], shape),
        ("verdict", [{**sent, "orig_name": 5}, None, None, None, False], shape),
        ("verdict", [{**sent, "path": "a.jpg"}, None, None, None, False], "the file is not one that was uploaded; "),
        ("verdict", [sent, None, True, True, False], "unsure_low (=True) must be between 0 and 1"),
        ("verdict", [sent, None, None, None, "false"], "stability (='false') must be true or false"),
        ("batch", [sent, None, None, None], shape),
        ("batch", [[sent, None], None, None, None], shape),
        ("batch", [], "batch takes 4 values (files, threshold, unsure_low, unsure_high), got 0; "),
    ):
        said = post(server.url, name, data)["error"]["error"]
        assert said.startswith(text) and "\n" not in said, said
    assert "Traceback" not in server.log.read_text()


def test_null_is_the_default_of_every_argument(server, pictures):
    sent = upload(server.url, pictures[0])
    answers = [post(server.url, "verdict", [sent, None, None, None, stability]) for stability in (True, None, False)]
    assert answers[0] == answers[1] and answers[0]["stability"] and not answers[2]["stability"]


def test_an_answer_is_fetched_once(server):
    """Gradio lets a second request wait for ever, and breaks the connection if there never was such an event."""
    request = urllib.request.Request(
        f"{server.url}gradio_api/call/about", b'{"data": []}', {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        place = f"{server.url}gradio_api/call/about/{json.load(answer)['event_id']}"
    with urllib.request.urlopen(place, timeout=60) as answer:
        assert answer.read().startswith(b"event: complete")
    for again in (place, f"{server.url}gradio_api/call/about/0123"):
        with pytest.raises(urllib.error.HTTPError, match="404") as refused:
            urllib.request.urlopen(again, timeout=60).close()
        assert refused.value.read() == b"no such event, or its answer was fetched already; make the call again"


# --- gradio_client ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def client(server):
    from gradio_client import Client

    return Client(server.url, verbose=False)


def test_the_documented_calls(client, pictures, detector, files):
    from gradio_client import handle_file

    expected = detector.score([pictures[0]], root=files)[0]
    answer = client.predict(handle_file(pictures[0]), api_name="/verdict")
    assert answer["file"] == "0.jpg" and answer["status"] == "ok"
    assert answer["score"] == pytest.approx(expected.score, abs=1e-9)
    assert answer["decision"] == expected.decision and answer["unsure"] == [0.45, 0.55]
    assert answer["stability"] == pytest.approx(expected.stability)
    assert len(answer["models"]["tiny"]["views"]) == 5 and "not proof" in answer["note"]
    moved = client.predict(
        image=handle_file(pictures[0]), threshold=1.0, unsure_low=0.0, unsure_high=0.0, api_name="/verdict"
    )
    assert moved["decision"] == "real" and moved["score"] == answer["score"]
    prompted = client.predict(handle_file(files / "prompted.png"), api_name="/verdict")
    assert prompted["metadata"][0]["kind"] == "generator" and "Steps: 20" in prompted["metadata"][0]["text"]
    about = client.predict(api_name="/about")
    assert about["models"][0]["name"] == "tiny" and about["limits"]["images"] == 8


def test_a_batch_over_http(client, pictures, detector, files):
    from gradio_client import handle_file

    sent = [handle_file(p) for p in (files / "folder.zip", pictures[5], files / "broken.jpg")]
    rows = client.predict(sent, api_name="/batch")["images"]
    names = ["holiday/0.jpg", "holiday/1.png", "holiday/2.jpg", "holiday/broken.jpg", "5.png", "broken.jpg"]
    assert [r["file"] for r in rows] == names
    assert [r["status"] == "ok" for r in rows] == [True, True, True, False, True, False]
    (files / "holiday").mkdir()
    for path in pictures[:3]:
        shutil.copy(path, files / "holiday")
    same = [files / n for n in names if "broken" not in n]
    scores = [r["score"] for r in rows if r["status"] == "ok"]
    assert scores == pytest.approx([r.score for r in detector.score(same, root=files)], abs=1e-9)
    with pytest.raises(Exception, match="9 images, more than the limit of 8"):
        client.predict([handle_file(pictures[0])] * 9, api_name="/batch")
    with pytest.raises(Exception, match="give both unsure_low and unsure_high"):
        client.predict(handle_file(pictures[0]), unsure_low=0.3, api_name="/verdict")


def test_concurrent_requests_give_what_single_ones_give(server, pictures, detector, files):
    from gradio_client import Client, handle_file

    # One client per thread: Gradio's client closes its stream once its own answers have arrived, even if another
    # thread is still waiting for its answers.
    work = [[pictures[(i + j) % 6] for j in range(3)] for i in range(8)]

    def ask(paths):
        client = Client(server.url, verbose=False)
        return [client.predict(handle_file(p), api_name="/verdict") for p in paths]

    with ThreadPoolExecutor(8) as pool:
        answers = [a for part in pool.map(ask, work) for a in part]
    asked = [p.name for paths in work for p in paths]
    expected = {r.path: r.score for r in detector.score(pictures, root=files)}
    assert [a["file"] for a in answers] == asked
    assert [a["score"] for a in answers] == pytest.approx([expected[n] for n in asked], abs=1e-9)


def test_heat_map_over_http(client, pictures):
    from gradio_client import handle_file
    from PIL import Image

    with Image.open(client.predict(handle_file(pictures[0]), api_name="/heat")) as made:
        assert made.size == (120, 90)


def test_where_over_http(client, server, files):
    """The map has one pixel a cell; an unusable file is an answer with its reason."""
    import numpy as np
    from gradio_client import handle_file

    answer = client.predict(handle_file(files / "edited.png"), api_name="/localize")
    assert (answer["found"], answer["where"], answer["size"]) == ("partly", [32, 48, 128, 112], [320, 200])
    assert answer["area"] == pytest.approx(96 * 64 / (320 * 200)) and 0 <= answer["probability"] <= 1
    with Image.open(io.BytesIO(base64.b64decode(answer["map"]))) as image:
        cells = np.asarray(image) / 65535
    assert cells.shape == (13, 20) and answer["grid"] == 16
    assert cells[3:7, 2:8].min() > 0.9 and (cells > 0.5).sum() == 4 * 6
    broken = post(server.url, "localize", [upload(server.url, files / "broken.jpg")])
    assert broken == {"file": "broken.jpg", "status": "error: not an image that Pillow can read"}
    assert client.predict(api_name="/about")["localizer"]["name"] == "local"


# --- the page in a browser -------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def chromium():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright needs Python 3.10 here")
    SHOTS.mkdir(parents=True, exist_ok=True)
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, server):
    """Open the page; at the end, check that no request has left the host and no script has failed."""
    hosts, faults, opened = set(), [], []

    def go(locale="en-US", width=1280, height=900, color_scheme="light"):
        context = chromium.new_context(
            viewport={"width": width, "height": height},
            locale=locale,
            accept_downloads=True,
            color_scheme=color_scheme,
        )
        page = context.new_page()
        page.on("request", lambda r: hosts.add(urllib.parse.urlparse(r.url).netloc))
        page.on("pageerror", lambda e: faults.append(str(e)))
        page.on("dialog", lambda d: faults.append(f"dialog: {d.message}"))
        page.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
        page.goto(server.url)
        page.wait_for_selector("#verdict .aidet-card")
        opened.append(context)
        return page

    yield go
    for context in opened:
        context.close()
    assert hosts <= {urllib.parse.urlparse(server.url).netloc, ""}
    # Chromium prints failed loads as errors; the one for the broken image is expected.
    assert [f for f in faults if "broken" not in f] == []


def put(page, path):
    page.set_input_files("#image input[type=file]", path)
    page.wait_for_selector("#verdict h2")


def bottom(page, selector):
    """Lowest visible pixel row of an element, in the window."""
    box = page.locator(selector).bounding_box()
    return box["y"] + box["height"]


def tab(page, name):
    page.get_by_role("tab", name=name, exact=True).click()


@needs_browser
def test_one_image(visit, pictures, detector, files):
    page = visit()
    page.screenshot(path=SHOTS / "1_start.png")
    shutil.copy(files / "prompted.png", files / BAD_NAME)
    expected = detector.score([files / BAD_NAME], root=files)[0]
    put(page, files / BAD_NAME)
    card = page.inner_text("#verdict")
    assert expected.decision in page.inner_text("#verdict h2").lower()
    assert cards.percent(expected.prob) in card and "not proof" in card and BAD_NAME in card
    assert "5 views say generated" in page.inner_text("#votes")
    page.screenshot(path=SHOTS / "2_verdict.png", full_page=True)
    page.wait_for_function("document.querySelector('#verdict').innerText.includes('re-saved')")
    tab(page, "Re-saving")
    shown = page.inner_text("#stability")
    assert "JPEG quality 50" in shown and "resized to 125%" in shown
    page.screenshot(path=SHOTS / "3_stability.png", full_page=True)
    page.wait_for_selector("#heat img")
    assert "speaks for generated" in page.inner_text("#heat") and page.get_attribute("#heat img", "alt")
    page.screenshot(path=SHOTS / "4_heat.png", full_page=True)
    tab(page, "Spectrum and noise")
    assert page.locator("#traces img").count() == 2
    page.screenshot(path=SHOTS / "5_spectrum.png", full_page=True)
    tab(page, "Metadata")
    assert "<b>a cat</b> Steps: 20" in page.inner_text("#metadata")
    page.screenshot(path=SHOTS / "6_metadata.png", full_page=True)


@needs_browser
def test_sliders_move_the_word_and_not_the_score(visit, pictures):
    page = visit()
    put(page, pictures[0])
    page.wait_for_selector("#heat img")  # nothing more comes after it
    before = page.inner_text("#verdict b")
    page.get_by_text("Threshold and unsure zone").click()

    def move(slider, value, text):
        box = page.locator(f"#{slider} input[type=number]")
        box.wait_for(state="visible")
        for _ in range(10):
            box.fill(value)
            box.press("Tab")
            page.wait_for_timeout(200)
            # Gradio mounts the content of an accordion when it is opened, and overwrites a value typed too early.
            if float(box.input_value()) == float(value):
                break
        page.wait_for_function("text => document.querySelector('#verdict').innerText.includes(text)", arg=text)

    move("low", "0", "unsure from 0% to 55%")
    move("high", "1", "unsure from 0% to 100%")
    page.wait_for_selector("[data-decision=unsure]")
    move("high", "0", "unsure from 0% to 0%")
    move("threshold", "1", "Threshold 100%")
    page.wait_for_selector("[data-decision=real]")
    page.screenshot(path=SHOTS / "7_sliders.png", full_page=True)
    assert page.inner_text("#verdict b") == before
    page.get_by_text("Back to the detector's own values").click()
    page.wait_for_function("document.querySelector('#verdict').innerText.includes('Threshold 50%')")


@needs_browser
def test_examples_and_a_broken_file(visit, files):
    page = visit()
    page.get_by_role("button", name="generated: FLUX.2").click()
    page.wait_for_selector("#verdict h2")
    assert "hedgehog.webp" in page.inner_text("#verdict")
    page.wait_for_selector("#heat img")  # a reload would break off what is still being made
    loaded = "[...document.querySelectorAll('.aidet-example img')].every(i => i.naturalWidth > 0)"
    assert page.locator(".aidet-example img").count() >= 2 and page.evaluate(loaded)
    page.get_by_label("Clear").first.click() if page.get_by_label("Clear").count() else page.reload()
    page.wait_for_selector("#verdict .aidet-card:not(:has(h2))")
    put(page, files / "broken.jpg")
    shown = page.inner_text("#verdict")
    assert "could not be used" in shown and "not an image that Pillow can read" in shown
    page.screenshot(path=SHOTS / "8_broken.png", full_page=True)


def rows_of(link):
    """The CSV inside a download link."""
    data = base64.b64decode(link.split("base64,")[1]).decode("utf-8-sig")
    return list(csv.DictReader(io.StringIO(data)))


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_the_switch_shows_where(visit, files, pictures, width):
    page = visit(width=width, height=844)
    page.get_by_label("Where?").check()
    page.wait_for_selector("#where .aidet-blank")
    put(page, files / "edited.png")
    page.wait_for_selector("#where [data-found=partly]")
    assert "Partly generated: 9.6% of the picture" in page.inner_text("#where") and not page.is_visible("#heat")
    loaded = "[...document.querySelectorAll('#where img')].every(i => i.naturalWidth == 320 && i.naturalHeight == 200)"
    page.wait_for_function(loaded)
    # the map lies on the picture; both places are read at once, because the page may still be moving
    boxes = page.evaluate("[...document.querySelectorAll('#where img')].map(i => i.getBoundingClientRect().toJSON())")
    assert len(boxes) == 2 and boxes[0] == pytest.approx(boxes[1])
    slider = page.locator("#where input[type=range]")
    slider.fill("20")
    assert page.evaluate("document.querySelector('.aidet-layer').style.opacity") == "0.2"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    slider.fill("70")
    page.locator("#where").scroll_into_view_if_needed()
    page.screenshot(path=SHOTS / f"14_where_{width}.png")
    page.get_by_label("中文").check()
    page.wait_for_function("document.querySelector('#where').innerText.includes('部分生成：占图片的 9.6%')")
    page.get_by_label("English").check()
    put(page, pictures[0])  # the map of the picture before goes with it
    page.wait_for_selector("#where [data-found=none], #where [data-found=mostly], #where .aidet-blank")
    page.wait_for_selector("#where [data-found]:not([data-found=partly])")
    page.get_by_label("Where?").uncheck()
    page.wait_for_selector("#heat img")
    assert not page.is_visible("#where")


@needs_browser
def test_many_images_history_and_downloads(visit, pictures, files, detector):
    page = visit()
    put(page, pictures[4])
    tab(page, "Batch")
    page.click("#run")
    page.wait_for_function("document.querySelector('#summary').innerText.includes('Choose some files first')")
    page.set_input_files("#files input[type=file]", [files / "folder.zip", pictures[5], files / "broken.jpg"])
    page.wait_for_function("document.querySelectorAll('#files tr').length >= 3 || "
                           "document.querySelector('#files').innerText.includes('broken')")  # fmt: skip
    page.click("#run")
    page.wait_for_selector("#download a")
    assert "6 images" in page.inner_text("#summary") and "2 could not be used" in page.inner_text("#summary")
    assert "Left out of the archives (1): holiday/notes.txt (not an image)." in page.inner_text("#summary")
    assert page.locator("#table td img").count() == 4
    lines = page.evaluate("[...document.querySelectorAll('#table th')].map(e => e.clientHeight)")
    assert len(lines) == 5 and max(lines) < 45  # no header is broken into two lines
    assert "holiday/1.png" in page.inner_text("#table") and "not an image that Pillow can read" in page.inner_text(
        "#table"
    )
    page.screenshot(path=SHOTS / "9_batch.png", full_page=True)
    with page.expect_download() as started:
        page.click("#download a")
    assert started.value.suggested_filename == "scores.csv"
    text = Path(started.value.path()).read_text(encoding="utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [r["path"] for r in rows][-2:] == ["5.png", "broken.jpg"] and rows[-1]["status"].startswith("error: ")
    assert float(rows[-2]["score"]) == pytest.approx(detector.score([pictures[5]], root=files)[0].score, rel=1e-8)
    tab(page, "History")
    page.wait_for_selector("#history-download a")
    past = rows_of(page.get_attribute("#history-download a", "href"))
    assert len(past) == 7 and past[-1]["file"] == "4.jpg" and past[0]["file"] == "holiday/0.jpg"
    page.screenshot(path=SHOTS / "10_history.png", full_page=True)
    page.get_by_text("Clear the history").click()
    page.wait_for_function("document.querySelector('#history-download').innerText.includes('Nothing scored yet')")


@needs_browser
def test_names_in_sentences_are_shown_as_they_are_and_every_call_is_named(visit, files):
    page, name = visit(), "it's *no* <b>zip.zip"
    (files / name).write_bytes(b"PK no archive")
    tab(page, "Batch")
    page.set_input_files("#files input[type=file]", files / name)
    page.wait_for_function("document.querySelector('#files').innerText.includes('zip')")
    page.click("#run")
    page.wait_for_function("document.querySelector('#summary').innerText.includes('is not a zip archive')")
    assert name in page.inner_text("#summary")
    with zipfile.ZipFile(files / "odd.zip", "w") as archive:
        archive.write(files / "0.jpg", "0.jpg")
        archive.writestr("it's *no* <b>picture.txt", "x")
    page = visit()
    tab(page, "Batch")
    page.set_input_files("#files input[type=file]", files / "odd.zip")
    page.wait_for_function("document.querySelector('#files').innerText.includes('odd')")
    page.click("#run")
    page.wait_for_selector("#download a")
    assert "it's *no* <b>picture.txt (not an image)" in page.inner_text("#summary")
    tab(page, "About")
    assert "/verdict /batch /heat /localize /about" in page.inner_text("body")


@needs_browser
def test_both_languages(visit, pictures, detector, files):
    page = visit()
    put(page, pictures[0])
    page.wait_for_selector("#heat img")
    page.get_by_label("中文").check()
    word = {"real": "真实", "generated": "AI 生成", "unsure": "不确定"}
    expected = word[detector.score([pictures[0]], root=files)[0].decision]
    page.wait_for_function(f"document.querySelector('#verdict h2').innerText === '{expected}'")
    page.wait_for_function("!document.body.innerText.includes('Metadata')")
    shown = page.inner_text("body")
    for text in (
        "照片还是 AI 生成",
        "单张图片",
        "批量",
        "支持“生成”",
        "元数据",
        "不是证据",
        "阈值与不确定区间",
        "示例",
    ):
        assert text in shown, text
    for text in ("Batch", "speaks for", "not proof", "Examples", "photograph", "Metadata"):
        assert text not in shown, text
    page.screenshot(path=SHOTS / "11_chinese.png", full_page=True)
    page.get_by_label("English").check()
    page.wait_for_function("document.body.innerText.includes('Metadata')")
    assert "not proof" in page.inner_text("#verdict")
    chinese = visit(locale="zh-CN")
    chinese.wait_for_function("document.body.innerText.includes('单张图片')")


@needs_browser
def test_a_phone(visit, pictures):
    page = visit(width=390, height=844)
    assert page.locator("#verdict").bounding_box()["y"] > 400
    put(page, pictures[0])
    # The page moves to the verdict; the heat map comes below it later.
    page.wait_for_function("Math.abs(document.querySelector('#verdict h2').getBoundingClientRect().top) < 200")
    page.wait_for_selector("#heat img")
    for name in ("Image", "Batch", "History", "About"):
        tab(page, name)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
        page.screenshot(path=SHOTS / f"12_phone_{name.lower()}.png", full_page=True)
    tab(page, "Image")
    box = page.locator("#verdict h2").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 390


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_verdict_and_map_are_in_view(visit, pictures, scheme):
    """At 1280 x 800, without scrolling, in the colours of the system; a screen reader is told of the verdict."""
    page = visit(height=800, color_scheme=scheme)
    put(page, pictures[0])
    page.wait_for_selector("#heat img")
    assert page.evaluate("scrollY") == 0
    assert bottom(page, "#verdict h2") < bottom(page, "#verdict .aidet-note") <= 800
    assert bottom(page, "#heat figcaption") <= 800
    card = page.evaluate("getComputedStyle(document.querySelector('#verdict .aidet-card')).backgroundColor")
    assert card == {"light": "rgb(255, 255, 255)", "dark": "rgb(30, 41, 59)"}[scheme]
    assert page.get_attribute("#verdict", "aria-live") == "polite"
    page.screenshot(path=SHOTS / f"13_{scheme}.png")


@needs_browser
def test_the_keyboard_reaches_everything_in_the_order_of_the_page(visit):
    page = visit()
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.append(
            page.evaluate("(e => (e.ariaLabel || e.innerText || e.value || '').trim())(document.activeElement)")
        )
    wanted = ["en", "Image", "Batch", "About", "Upload file", "generated: FLUX.2", "Threshold and unsure zone", "Votes"]
    places = [next(i for i, text in enumerate(seen) if text.startswith(name)) for name in wanted]
    assert places == sorted(places)
    names = page.locator("button:visible").evaluate_all("all => all.map(e => (e.ariaLabel || e.innerText).trim())")
    assert names and all(names), "a button without a name"


def test_nothing_of_all_this_reached_another_host(server):
    assert server.outside.read_text() == ""
