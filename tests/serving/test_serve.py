"""The demo server in this process: its answers are the run's, and what is wrong with a request is a line of JSON."""

import asyncio
import base64
import contextlib
import hashlib
import io
import json
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import imgrec_jax
from imgrec_jax import serve
from tests import small_runs

pytest.importorskip("starlette", reason="the extra [serve] is not installed")
httpx = pytest.importorskip("httpx")
import uvicorn  # noqa: E402

from imgrec_jax.serving import app, uploads, work  # noqa: E402
from imgrec_jax.serving.app import Server, is_local  # noqa: E402
from imgrec_jax.serving.uploads import Limits  # noqa: E402
from imgrec_jax.serving.work import Answer, BadImage, Worker  # noqa: E402

LIMITS = Limits(bytes=200_000, pixels=1_000_000)


def encoded(kind="PNG", mode="RGB", size=(40, 30), seed=0, **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(pixels).convert(mode) if mode != "I;16" else Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def huge_png(side=20_000):
    """A header that promises side x side pixels, and little behind it."""
    parts = {b"IHDR": struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0), b"IDAT": zlib.compress(bytes(100)), b"IEND": b""}
    coded = b"\x89PNG\r\n\x1a\n"
    for name, data in parts.items():
        coded += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return coded


@contextlib.contextmanager
def served(run, *, most=8, start=True):
    """(client, worker, server) of a server in a thread."""
    worker = Worker(run, rows=4)
    if start:
        worker.start()
    server = Server(run, worker, LIMITS, most)
    web = uvicorn.Server(uvicorn.Config(server.app(True), log_level="warning"))
    with serve.listen("127.0.0.1", 0) as place:
        thread = threading.Thread(target=web.run, kwargs={"sockets": [place]})
        thread.start()
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{place.getsockname()[1]}", timeout=60) as client:
                yield client, worker, server
        finally:
            web.should_exit = True
            thread.join(20)
            if worker.ready.is_set() or start:
                worker.stop(20)


@pytest.fixture(scope="module")
def run(finished):
    return imgrec_jax.load(finished["classification"])


@pytest.fixture(scope="module")
def client(run):
    with served(run) as (client, _, _):
        yield client


def picture_of(uri):
    assert uri.startswith("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


@pytest.mark.parametrize(
    "task", ["classification", *(pytest.param(task, marks=pytest.mark.slow) for task in ("detection", "segmentation"))]
)
def test_the_answer_is_that_of_predict_as_a_form_and_as_base64(finished, task, tmp_path):
    run, data = imgrec_jax.load(finished[task]), encoded(size=(32, 32))
    (tmp_path / "a b.png").write_bytes(data)
    want = json.loads(json.dumps({**run.predict(tmp_path / "a b.png")[0].to_json(), "file": "a b.png"}))
    text = base64.b64encode(data).decode()
    bodies: list[dict] = [{"files": {"image": ("a b.png", data)}, "data": {"picture": "true"}}]
    bodies += [
        {"json": {"image": text, "name": "a b.png", "picture": True}} for text in (text, f"data:image/png;base64,{text}")
    ]
    with served(run) as (client, _, _):
        answers = [client.post("/predict", **body) for body in bodies]
    for answer in answers:
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert picture_of(found.pop("picture")).shape[1] >= 320
        assert found.keys() == want.keys() and found["file"] == "a b.png"
        if task == "classification":
            assert found["probability"] == pytest.approx(want["probability"], abs=1e-6) and found["label"] == want["label"]
        else:
            assert found == want
    assert len(run.compiled) <= 2  # one row, and a batch


def test_an_explanation_comes_with_the_answer_and_compiles_once(client, run):
    from imgrec_jax.attribution import methods

    before = methods._gradient._cache_size()
    for seed in range(4):
        data = {"explain": "gradients"}
        found = client.post("/predict", files={"image": ("x.png", encoded(seed=seed))}, data=data).json()
        assert picture_of(found["explanation"]).ndim == 3 and found["explained"] == ""
    assert methods._gradient._cache_size() - before == 1
    without = client.post("/predict", files={"image": ("x.png", PNG)}, data={"explain": "gradcam"}).json()
    assert without["explanation"] is None and "this model has no map" in without["explained"] and without["label"]


@pytest.mark.parametrize("kind, mode", [("JPEG", "CMYK"), ("PNG", "I;16"), ("GIF", "P"), ("PNG", "LA"), ("TIFF", "RGB")])
def test_images_of_every_mode_are_answered(client, kind, mode):
    assert client.post("/predict", files={"image": ("ü x.img", encoded(kind, mode))}).status_code == 200


PNG = encoded()
BAD = {
    "cut.png": (PNG[:-40], 400, "damaged PNG"),
    "cut.jpg": (encoded("JPEG")[:300], 400, "damaged header"),
    "text.jpg": (b"hello " * 20, 400, "no image"),
    "empty.png": (b"", 400, "empty file"),
    "huge.png": (huge_png(), 413, "20000 x 20000 pixels"),
    "large.bin": (b"x" * 300_000, 413, "200,000 bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_upload_is_named(client, name):
    data, status, reason = BAD[name]
    answers = [client.post("/predict", files={"image": (name, data)})]
    answers.append(client.post("/predict", json={"image": base64.b64encode(data).decode(), "name": name}))
    for answer in answers:
        assert answer.status_code == status and reason in answer.json()["error"]
        assert status == 413 or name in answer.json()["error"]


@pytest.mark.parametrize(
    "request_, status, reason",
    [
        ({"content": b"x"}, 415, "of type 'nothing'"),
        ({"content": b"x", "headers": {"content-type": "text/plain"}}, 415, "expected a form"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "JSON that cannot be read"),
        ({"json": ["x"]}, 400, 'without the text "image"'),
        ({"json": {"image": "§§"}}, 400, "no base64"),
        ({"files": {"other": ("x.png", PNG)}}, 400, 'field "image"'),
        ({"content": b"--x", "headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
        ({"content": b"--y", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400, "cannot be read"),
        ({"files": {"image": ("x.png", PNG)}, "data": {"explain": "magic"}}, 400, "choose of gradcam"),
        ({"files": {"image": ("x.png", PNG)}, "data": {"picture": "perhaps"}}, 400, "true or false"),
    ],
)
def test_a_request_that_is_none_is_told_what_is_expected(client, request_, status, reason):
    answer = client.post("/predict", **request_)
    assert answer.status_code == status and reason in answer.json()["error"], answer.text


def test_other_addresses_methods_and_hosts_are_refused(client):
    for answer, status in ((client.get("/nowhere"), 404), (client.get("/predict"), 405)):
        assert answer.status_code == status and "/predict" in answer.json()["error"]
    assert client.get("/health", headers={"host": "evil.example"}).status_code == 400


def test_health_tells_of_the_run(client, run):
    assert client.post("/predict", files={"image": ("x.png", PNG)}).status_code == 200
    found = client.get("/health").json()
    assert found["status"] == "ok" and found["task"] == "classification" and found["step"] == run.step
    assert found["class_names"] == list(run.class_names) and found["inside"] == 0 and found["answered"] > 0


def test_what_waits_is_answered_in_one_batch_and_a_bad_image_alone_fails(run, monkeypatch):
    worker = Worker(run, rows=4)
    images = [encoded(seed=seed) for seed in range(3)]
    futures = [worker.submit(f"{n}.png", data) for n, data in enumerate([images[0], b"no image", *images[1:]])]
    sizes = []
    stream = run.stream
    monkeypatch.setattr(run, "stream", lambda all_, **options: sizes.append(len(all_)) or stream(all_, **options))
    monkeypatch.setattr(worker, "_warm_up", lambda: None)
    worker.start()
    with pytest.raises(BadImage, match="1.png"):
        futures.pop(1).result(30)
    probs = [future.result(30).result.probs for future in futures]
    worker.stop(5)
    monkeypatch.undo()
    alone = [run.predict(Image.open(io.BytesIO(data)))[0].probs for data in images]
    np.testing.assert_allclose(probs, alone, atol=1e-6)
    assert sizes == [4]


def test_past_the_queue_it_says_429_and_goes_on(run):
    waiting = []
    with served(run, most=1, start=False) as (client, worker, server):
        first = threading.Thread(target=lambda: waiting.append(client.post("/predict", files={"image": ("x.png", PNG)})))
        first.start()
        while not server.inside:
            time.sleep(0.01)
        second = client.post("/predict", files={"image": ("x.png", PNG)})
        assert second.status_code == 429 and second.headers["retry-after"] == "1" and "waiting" in second.json()["error"]
        worker.start()
        first.join(60)
    assert waiting[0].status_code == 200 and server.inside == 0


def test_a_fault_of_the_program_is_one_line(run, monkeypatch, capsys):
    with served(run) as (client, worker, _):
        assert worker.ready.wait(60)
        with monkeypatch.context() as broken:
            broken.setattr(run, "stream", lambda *_, **__: 1 / 0)
            answer = client.post("/predict", files={"image": ("x.png", PNG)})
        assert answer.status_code == 500 and "ZeroDivisionError" in answer.json()["error"]
        assert "Traceback" not in answer.text + capsys.readouterr().err
        assert client.post("/predict", files={"image": ("x.png", PNG)}).status_code == 200


def test_the_page_fetches_nothing_from_elsewhere_and_runs_its_own_script_alone(client):
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    script = re.findall(r"<script>(.*?)</script>", answer.text, re.S)
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert len(script) == 1 and f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert "://" not in answer.text and "{{" not in answer.text
    described = re.findall(r'id="run">(.*?)</script>', answer.text)[0]
    assert json.loads(described)["image_shape"] == [28, 28, 1]


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node on this machine")
def test_the_headline_leaves_out_the_background_and_no_class():
    page = (Path(app.__file__).parent / "page.html").read_text()
    function = re.search(r"function headline.*?\n}\n", page, re.S)[0]
    program = f"""const run = {{class_names: ["ground", "cat", "dog"]}}; {function}
      const said = (...labels) => headline({{areas: labels.map((label) => ({{label}}))}});
      console.log(JSON.stringify([said("cat", "dog"), said("ground", "dog"), said("ground"), said("cat")]))"""
    found = subprocess.run(["node", "-e", program], capture_output=True, text=True, timeout=30)
    assert json.loads(found.stdout) == ["cat, dog", "dog", "ground", "cat"], found.stderr


def test_the_command_ends_in_one_line_and_names_what_is_wrong(finished, tmp_path):
    workdir = shutil.copytree(finished["classification"], tmp_path / "run")
    command = [sys.executable, "-m", "imgrec_jax.serve", f"--workdir={workdir}", "--port=0"]
    process = small_runs.launch(command)
    line = process.stdout.readline()
    place = re.search(r"http://(127\.0\.0\.1):(\d+)", line)
    assert place, (line, process.stderr.read())
    taken = serve.parser().parse([f"--workdir={workdir}", f"--port={place[2]}"])
    with pytest.raises(ValueError, match=r"Address already in use\); give another --port"):
        serve.run(taken)
    with socket.create_connection((place[1], int(place[2])), timeout=10):
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0 and out == "stopped; 0 images were answered\n" and "Traceback" not in err
    for flags, reason in (
        ([f"--workdir={tmp_path / 'nowhere'}", "--port=0"], "there is no run"),
        ([f"--workdir={workdir}", "--port=70000"], "expected 0 to 65535"),
        ([f"--workdir={workdir}", "--queue=0"], "--queue=0; expected 1 or more"),
        ([f"--workdir={workdir}", "--max_mb=inf"], "--max_mb=inf; expected 0.001 or more"),
        ([f"--workdir={workdir}", "--max_mb=nan"], "--max_mb=nan; expected 0.001 or more"),
        ([f"--workdir={workdir}", "--host=no such host"], "--host=no such host is no address"),
        ([f"--workdir={workdir}", "--host=203.0.113.7"], "--host=203.0.113.7 is none of this machine; give 127.0.0.1"),
    ):
        with pytest.raises(SystemExit, match=reason):
            serve.main(flags)


@pytest.mark.parametrize(
    "headers, status",
    [
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:1"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 400),
        ({"origin": "http://127.0.0.2:8000", "host": "127.0.0.2:8000", "sec-fetch-site": "same-origin"}, 200),
        ({"origin": "http://[::1]:8000", "host": "[::1]:8000"}, 200),
    ],
)
def test_pages_of_other_sites_are_refused(client, headers, status):
    answer = client.post("/predict", files={"image": ("x.png", PNG)}, headers=headers)
    assert answer.status_code == status and (status == 200 or answer.json()["error"])


def test_answers_of_classes_whose_names_are_no_utf8():
    assert json.loads(app._Json({"label": "caf\udce9"}).body) == {"label": "caf\udce9"}


def test_what_is_local():
    for host in ("localhost:8000", "127.0.0.1", "127.8.9.1:80", "[::1]:8000", "LOCALHOST"):
        assert is_local(host)
    for host in ("", "0.0.0.0", "localhost.evil.example", "[::1", "[fe80::1]", "example"):
        assert not is_local(host)


def test_names_are_bounded_and_of_letters(client):
    name = "x" * 1000 + "a\ud800\x1b[31m\n.png"
    body = json.dumps({"image": base64.b64encode(PNG).decode(), "name": name})
    answer = client.post("/predict", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200 and answer.json()["file"] == "x" * (200 - 12) + "a??[31m?.png"


@pytest.mark.parametrize("field", ["explain", "picture"])
@pytest.mark.parametrize("value", ["[" * 900 + "]" * 900, json.dumps("y" * 5000), '"\\ud800"'])
def test_values_are_echoed_within_bounds(client, field, value):
    body = f'{{"image": "{base64.b64encode(PNG).decode()}", "{field}": {value}}}'
    answer = client.post("/predict", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and len(answer.json()["error"]) < 300


def test_dicom_is_refused_before_it_is_inflated(client):
    answer = client.post("/predict", files={"image": ("x.DCM", PNG)})
    assert answer.status_code == 415 and "imgrec predict reads it" in answer.json()["error"]


def test_an_upload_that_is_not_sent_is_answered_408(client, monkeypatch):
    monkeypatch.setattr(uploads, "SECONDS", 0.2)
    place = client.base_url
    with socket.create_connection((place.host, place.port), timeout=10) as slow:
        lines = (
            "POST /predict HTTP/1.1",
            f"Host: localhost:{place.port}",
            "Content-Type: application/json",
            "Content-Length: 99",
        )
        head = "".join(f"{line}\r\n" for line in lines) + "\r\n"
        slow.sendall(head.encode())
        assert b" 408 " in slow.recv(100)


def test_requests_are_bounded_in_bytes(run, monkeypatch):
    monkeypatch.setattr(app, "HELD", 2 * len(PNG))
    with served(run, start=False) as (client, worker, server):
        first = threading.Thread(target=lambda: client.post("/predict", files={"image": ("x.png", PNG)}))
        first.start()
        while not server.inside:
            time.sleep(0.01)
        assert client.post("/predict", files={"image": ("x.png", PNG)}).status_code == 429
        worker.start()
        first.join(60)
        assert client.post("/predict", files={"image": ("x.png", PNG)}).status_code == 200


def test_explanations_come_last_and_only_where_they_are_waited_for(run, monkeypatch):
    worker, order = Worker(run, rows=2), []
    monkeypatch.setattr(worker, "_warm_up", lambda: None)
    monkeypatch.setattr(worker, "_explained", lambda job, picture, result: order.append(job.name) or Answer(result))
    futures = [worker.submit(name, PNG, method) for name, method in (("a", "ig"), ("gone", "ig"), ("b", None), ("c", None))]
    for future in futures[2:]:
        future.add_done_callback(lambda _: order.append("answer"))
    stream = run.stream
    monkeypatch.setattr(run, "stream", lambda *all_, **options: futures[1].cancel() and stream(*all_, **options))
    worker.start()
    for future in (futures[0], *futures[2:]):
        future.result(30)
    worker.stop(5)
    assert order == ["answer", "answer", "a"]


def test_an_explanation_lets_answers_pass_and_ends_when_its_client_leaves(run, monkeypatch):
    worker, started, order = Worker(run, rows=2), threading.Event(), []

    def explained(at, method, options):
        assert options.steps <= 50 and options.pace.pixels <= 2**20
        for _ in range(3000):
            started.set()
            time.sleep(0.01)
            options.pace.between()
        order.append("explained")

    monkeypatch.setattr(worker, "_warm_up", lambda: None)
    monkeypatch.setattr(work.explain, "explain", explained)
    worker.start()
    explanation = worker.submit("a", PNG, "ig")
    assert started.wait(30)
    assert worker.submit("b", PNG).result(20).result.label and not order  # meanwhile
    assert explanation.cancel()
    started.clear()
    last = worker.submit("c", PNG, "gradients")
    assert started.wait(20) and not order  # the next one has begun, the first was never ended
    worker.stop(5)
    assert last.result(5).said == "no explanation: the server was stopped" and worker.state == "ended"


def test_answers_come_while_the_program_of_an_explanation_is_compiled(run, monkeypatch):
    worker, compiling, answered = Worker(run, rows=2), threading.Event(), threading.Event()

    def prepare(*_):
        compiling.set()
        assert answered.wait(30)
        raise ValueError("enough")

    monkeypatch.setattr(worker, "_warm_up", lambda: None)
    monkeypatch.setattr(work.explain, "prepare", prepare)
    worker.start()
    explanation = worker.submit("a", PNG, "gradcam")
    assert compiling.wait(30)
    assert worker.submit("b", PNG).result(20).result.label
    answered.set()
    assert explanation.result(20).said == "no explanation: enough"
    assert worker.stop(5)


def test_requests_that_a_stop_cuts_off_are_answered_503(run):
    worker = Worker(run, rows=2)  # which is not started

    async def cut_off():
        transport = httpx.ASGITransport(app=Server(run, worker, LIMITS, 8).app(True))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            request = asyncio.create_task(client.post("/predict", files={"image": ("x.png", PNG)}))
            while worker._jobs.empty():
                await asyncio.sleep(0.01)
            request.cancel()
            return await request

    answer = asyncio.run(cut_off())
    assert answer.status_code == 503 and answer.json() == {"error": "the server was stopped"}
    assert worker._jobs.get().future.cancelled()


def test_an_image_that_breaks_the_program_breaks_no_others_answer(run, monkeypatch):
    worker, stream = Worker(run, rows=4), run.stream

    def broken(pictures, **options):
        if any(picture.name == "bad" for picture in pictures):
            raise RuntimeError("RESOURCE_EXHAUSTED")
        return stream(pictures, **options)

    monkeypatch.setattr(worker, "_warm_up", lambda: None)
    monkeypatch.setattr(run, "stream", broken)
    futures = [worker.submit(name, PNG) for name in ("a", "bad", "b")]
    worker.start()
    assert futures[0].result(30).result.label == futures[2].result(30).result.label
    with pytest.raises(RuntimeError, match="RESOURCE"):
        futures[1].result(30)
    worker.stop(5)


def test_an_error_that_nobody_reads_ends_no_worker(run, monkeypatch):
    class Gone:
        def write(self, text):
            raise BrokenPipeError(32, "Broken pipe")

    def broken(pictures, **options):
        raise RuntimeError("RESOURCE_EXHAUSTED")

    worker, stream = Worker(run, rows=4), run.stream
    monkeypatch.setattr(worker, "_warm_up", lambda: None)
    monkeypatch.setattr(run, "stream", broken)
    monkeypatch.setattr(sys, "stderr", Gone())
    worker.start()
    with pytest.raises(RuntimeError, match="RESOURCE"):
        worker.submit("a", PNG).result(30)
    monkeypatch.setattr(run, "stream", stream)
    assert worker.submit("b", PNG).result(30).result is not None and worker.state == "ok"
    worker.stop(5)
    assert worker.state == "ended"


def test_a_stop_ends_what_waits_and_passes_over_who_is_gone(run, monkeypatch):
    worker = Worker(run, rows=4)
    monkeypatch.setattr(worker, "_warm_up", lambda: None)
    futures = [worker.submit("x", PNG) for _ in range(2)]
    futures[0].cancel()
    worker._stopping = True
    worker.start()
    assert worker.stop(5)
    with pytest.raises(RuntimeError, match="the server was stopped"):
        futures[1].result(5)


def test_explanations_are_bounded_in_shapes_and_pixels(run, monkeypatch):
    worker = Worker(run, rows=1)
    monkeypatch.setattr(work, "EXPLAINED_SHAPES", 1)
    worker._admit((28, 28, 1))
    worker._admit((28, 28, 1))
    for shape, reason in (((30, 28, 1), "another size than the 1"), ((9000, 9000, 3), "this server explains 4,000,000")):
        with pytest.raises(ValueError, match=reason):
            worker._admit(shape)


def test_images_are_decoded_within_the_servers_limit(run):
    with pytest.raises(ValueError, match="30 x 40 pixels"):
        Worker(run, rows=1, max_pixels=1000)._decode(PNG, "x.png")
