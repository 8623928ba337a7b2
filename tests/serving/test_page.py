"""The demo page in headless Chromium: what is drawn on the canvas is answered; nothing is fetched from elsewhere."""

import re
import threading

import cv2
import numpy as np
import pytest

import imgrec_jax
from imgrec_jax import serve
from imgrec_jax.data.sets import mnist, tfds
from tests import chromium

browsers = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(chromium.CHROMIUM is None, reason="there is no Chromium on this machine")]


def strokes(count, seed):
    """The digits 1, 4 and 7 as pen strokes, centred as scanned digits are: (uint8 [N, 28, 28, 1], int64 [N])."""
    rng = np.random.default_rng(seed)
    shapes = {
        1: [[(0.5, 0.1), (0.5, 0.9)]],
        4: [[(0.2, 0.1), (0.2, 0.55), (0.8, 0.55)], [(0.65, 0.1), (0.65, 0.9)]],
        7: [[(0.2, 0.12), (0.8, 0.12), (0.4, 0.9)]],
    }
    images, labels = np.zeros((count, 28, 28, 1), np.uint8), rng.choice(list(shapes), count)
    for image, label in zip(images, labels, strict=True):
        large, shear = np.zeros((280, 280), np.uint8), rng.normal(0, 0.08)
        for line in shapes[int(label)]:
            points = np.array(line) + rng.normal(0, 0.02, (len(line), 2))
            points[:, 0] += shear * (points[:, 1] - 0.5)
            cv2.polylines(large, [np.rint(40 + 200 * points).astype(np.int32)], False, 255, int(rng.integers(16, 30)))
        moments = cv2.moments(large)
        shift = [140 - moments[key] / moments["m00"] for key in ("m10", "m01")]
        large = cv2.warpAffine(large, np.array([[1, 0, shift[0]], [0, 1, shift[1]]]), (280, 280))
        image[..., 0] = cv2.resize(large, (28, 28), interpolation=cv2.INTER_AREA)
    return images, labels.astype(np.int64)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Of a server of a run that knows the digits 1, 4 and 7."""
    folder = tmp_path_factory.mktemp("page")
    for split, count, seed in (("train", 1500, 0), ("test", 300, 1)):
        image, label = strokes(count, seed)
        tfds.save_decoded({"image": image, "label": label}, mnist.CLASS_NAMES, mnist.NAME, split, folder / "data")
    config = imgrec_jax.load_config("mnist")
    config.data.data_dir, config.train.total_epochs, config.log.tensorboard = str(folder / "data"), 3.0, False
    results = imgrec_jax.train(imgrec_jax.build(config), folder / "digits", lambda line: None)
    assert results["test"]["accuracy"] > 0.98
    from imgrec_jax.serving.app import Server
    from imgrec_jax.serving.uploads import Limits
    from imgrec_jax.serving.work import Worker

    run = imgrec_jax.load(folder / "digits")
    worker = Worker(run, rows=4)
    worker.start()
    app = Server(run, worker, Limits(20_000_000, 50_000_000), 8).app(True)
    web = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    with serve.listen("127.0.0.1", 0) as place:
        thread = threading.Thread(target=web.run, kwargs={"sockets": [place]})
        thread.start()
        yield f"http://127.0.0.1:{place.getsockname()[1]}/"
        web.should_exit = True
        thread.join(20)
    worker.stop(20)


@pytest.fixture(params=chromium.WIDTHS)
def page(request, address):
    with chromium.opened(address, request.param) as page:
        yield page


def draw(page, *lines):
    """Strokes by the mouse on the canvas; points as shares of its sides."""
    box = page.locator("#canvas").bounding_box()
    for (x, y), *rest in lines:
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        page.mouse.down()
        for x, y in rest:
            page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=6)
        page.mouse.up()


def test_a_drawn_digit_is_answered_and_explained(page, tmp_path):
    for digit, lines in (
        ("4", [[(0.15, 0.05), (0.15, 0.4), (0.5, 0.4)], [(0.42, 0.05), (0.42, 0.7)]]),
        ("7", [[(0.5, 0.3), (0.9, 0.3), (0.65, 0.9)]]),
        ("1", [[(0.3, 0.2), (0.3, 0.9)]]),
    ):
        page.click("#clear")
        draw(page, *lines)
        browsers.expect(page.locator("#answer")).to_have_text(re.compile(f"^{digit} "), timeout=20_000)
    page.wait_for_selector("#explanation:not([hidden]) img", timeout=20_000)
    assert page.locator("#table tr").count() == 5 and page.locator("#picture img").is_visible()
    page.screenshot(path=tmp_path / "page.png", full_page=True)


def test_a_bad_file_is_named_on_the_page(page, tmp_path):
    (tmp_path / "text.png").write_text("hello")
    page.set_input_files("#file", tmp_path / "text.png")
    browsers.expect(page.locator("#error")).to_contain_text("text.png: 5 bytes that are no image")
    assert page.locator("#picture").is_hidden()
