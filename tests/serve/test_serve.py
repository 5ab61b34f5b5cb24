"""The page and the API: predict's own numbers whoever asks beside, and a sentence for whatever cannot be answered."""

import asyncio
import concurrent.futures
import gc
import importlib.resources
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import httpx2
import numpy as np
import pytest
import served
from conftest import ROOT
from PIL import Image

from lae_jax.data.sources import synthetic
from lae_jax.faces import crops, detect
from lae_jax.faces.images import Decoded
from lae_jax.predict import answers as predictions
from lae_jax.predict import photographs
from lae_jax.runs import lineage
from lae_jax.runtime.errors import InputError
from lae_jax.serve import __main__ as door
from lae_jax.serve import about, ages, app, connection, guard, limits, schema
from lae_jax.serve.batching import Batcher


def face(k: int) -> Image.Image:
    return Image.fromarray(synthetic.draw_face(k, 6.0 * k + 5, 1, 160, k)[0])


def send(address: str, contents: dict[str, bytes], **headers) -> httpx2.Response:
    body, kind = served.multipart(contents)
    return httpx2.post(f"{address}/v1/predict", content=body, headers={"content-type": kind, **headers}, timeout=60)


@pytest.fixture(scope="module")
def crops_server():
    """The address of a server that takes ready-made crops, and the sizes of the batches that its model was given."""
    seen = []
    given = served.aligned(
        served.stand_in(seen), bytes=200_000, files=4, pixels=10_000, held=300_000, requests=3, upload_seconds=2.0
    )
    with served.serving(given) as address:
        yield address, seen


def test_the_server_gives_the_ages_of_predict_in_any_batch(tmp_path):
    estimator, recipe = (
        served.stand_in([], temperature=0.8, conformal=served.fitted()),
        crops.Recipe("landmarks", size=64),
    )
    scene = Image.new("RGB", (420, 200), (120, 130, 140))
    scene.paste(face(3), (10, 20))
    scene.paste(face(5), (230, 20))
    pictures = {"two.png": scene, "nobody.png": Image.new("RGB", (80, 60)), **{f"{k}.png": face(k) for k in (2, 4, 7)}}
    contents = {name: served.encoded(picture) for name, picture in pictures.items()} | {"text.png": b"no picture"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    recipe = crops.Recipe("landmarks", size=64, faces="all")
    items = (photographs.Named(name, str(tmp_path)) for name in contents)
    found = photographs.found(items, recipe, estimator.input.pixels, threads=1)
    expected = {
        one.image.name: rows
        for one, rows in predictions.predicted(estimator, found, predictions.Fields.of(estimator, 0.8, None, True))
    }
    assert len(expected["two.png"]) == 2 and sum(row.age is not None for rows in expected.values() for row in rows) >= 4

    def same(image: dict) -> None:
        rows = expected[image["name"]]
        assert len(image["faces"]) == sum(bool(row.face) for row in rows)
        assert image.get("reason", "") == rows[0].reason
        for answer, row in zip(image["faces"], rows, strict=False):
            # To the tolerances of docs/results.md.
            assert answer["age"] == pytest.approx(row.age, abs=0.01)
            assert answer["box"] == pytest.approx(row.box, abs=0.01)
            assert answer["distribution"] == pytest.approx(row.distribution, abs=1e-4)
            interval = answer["interval"]
            assert [interval["lower"], interval["upper"]] == pytest.approx([row.lower, row.upper], abs=0.05)
            assert interval["level"] == 0.8
            sure = answer["conformal"]
            assert [sure["lower"], sure["upper"]] == pytest.approx([row.conformal_lower, row.conformal_upper], abs=0.05)
            assert sure["level"] == 0.8 and sure["lower"] < interval["lower"]
            assert np.shape(answer["landmarks"]) == (5, 2) and answer["cut_by"] == "mtcnn"

    with served.serving(ages.Ages(estimator, recipe, interval=0.8)) as address:
        together = send(address, contents)
        assert together.status_code == 200 and [image["name"] for image in together.json()["images"]] == [*contents]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            alone = [*pool.map(lambda name: send(address, {name: contents[name]}).json(), [*contents] * 2)]
        for image in together.json()["images"] + [image for reply in alone for image in reply["images"]]:
            same(image)


def test_a_photograph_of_a_crowd_has_the_ages_of_its_largest_faces_and_says_how_many_are_left_out(monkeypatch):
    places = [np.float32([x, y]) for y in range(0, 380, 20) for x in range(0, 400, 20)][:286]
    eyes = np.float32([[5, 6], [13, 6], [9, 10], [6, 14], [12, 14]])
    crowd = [detect.Face(np.concatenate([place, place + 18]), place + eyes, 1.0) for place in places]
    monkeypatch.setattr(detect, "detect", lambda some, *_: [crowd if one.width == 400 else [] for one in some])
    content = served.encoded(Image.new("RGB", (400, 400)))
    estimator = served.stand_in([])
    with served.serving(ages.Ages(estimator, crops.Recipe("landmarks", size=64, faces="all"))) as address:
        answer = send(address, {"crowd": content, "again": content})
    images = schema.Prediction.model_validate(answer.json()).images
    assert [(len(image.faces), image.left_out) for image in images] == [(photographs.MAX_FACES, 30)] * 2
    assert images[0].faces[255].box == crowd[255].box.tolist()
    items = [(photographs.Named("crowd"), Decoded(Image.new("RGB", (400, 400)), 1, (400, 400), 1))]
    every, one = (crops.Recipe("landmarks", size=64, faces=which) for which in ("all", "largest"))
    (found,) = photographs.of_decoded(items, every, estimator.input.pixels)
    ((_, rows),) = predictions.predicted(estimator, iter([found]), predictions.Fields())
    assert len(rows) == 257 and rows[256].reason == "30 more faces without an age: only the 256 largest have one"
    (found,) = photographs.of_decoded(items, one, estimator.input.pixels)
    assert (len(found.inputs), found.left_out) == (1, 0)


@pytest.mark.parametrize(("contents", "headers", "status", "words"), [
    ({"a": b"x" * 250_000}, {}, 413, "more than 200,000 bytes"),
    (dict.fromkeys("abcde", b"x"), {}, 413, "more than 4 files"),
    ({}, {}, 422, "no file"),
    ({"a.txt": b"no picture"}, {}, 422, "a.txt: not an image that can be read"),
    ({"a.png": served.crop(0, 101)}, {}, 422, "101 x 101 pixels are more than 10,000"),
    ({"a.png": served.crop(0)[:-50]}, {}, 422, "does not decode"),
    ({"..\\b/ ": b"", "../c": b""}, {}, 422, "image 1: empty file; c: empty file"),
    ({"a.png": served.crop(0)}, {"content-type": "image/png"}, 415, "multipart/form-data"),
    ({"a.png": served.crop(0)}, {"content-type": "multipart/form-data"}, 400, "not multipart/form-data"),
    ({"a.png": served.crop(0)}, {"content-type": "multipart/form-data; boundary=x"}, 400, "not multipart/form-data"),
    ({"a.png": served.crop(0)}, {"host": "elsewhere.example"}, 403, "not called 'elsewhere.example'"),
    ({"a.png": served.crop(0)}, {"host": "[:"}, 403, "not called"),
    ({"a.png": served.crop(0)}, {"origin": "http://elsewhere.example"}, 403, "may not use this server"),
])  # fmt: skip
def test_what_cannot_be_answered_has_a_status_and_a_sentence(crops_server, contents, headers, status, words):
    reply = send(crops_server[0], contents, **headers)
    assert (reply.status_code, words in reply.json()["error"]) == (status, True), reply.text
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert send(crops_server[0], {"good.png": served.crop(1)}).status_code == 200


def test_a_tolerant_answer_has_reasons_in_place_of_an_error(crops_server):
    address = crops_server[0]
    body, kind = served.multipart({"a.txt": b"no picture"})
    ask = {"content": body, "headers": {"content-type": kind}}
    reply = httpx2.post(f"{address}/v1/predict?tolerant=true", **ask)
    (image,) = reply.json()["images"]
    assert reply.status_code == 200 and (image["faces"], image["reason"]) == ([], "not an image that can be read")
    reply = httpx2.post(f"{address}/v1/predict?tolerant=perhaps", **ask)
    assert reply.status_code == 400 and reply.json()["error"].startswith("query.tolerant: Input should be a valid bool")


def test_a_body_of_unknown_length_is_counted_as_it_comes(crops_server):
    body, kind = served.multipart({"a": b"x" * 250_000})
    pieces = (body[i : i + 9000] for i in range(0, len(body), 9000))
    reply = httpx2.post(f"{crops_server[0]}/v1/predict", content=pieces, headers={"content-type": kind})
    assert reply.status_code == 413 and "more than 200,000 bytes" in reply.json()["error"]


def test_the_shape_of_a_photograph_and_how_it_was_turned_are_told(crops_server):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = io.BytesIO()
    Image.new("RGB", (40, 30)).save(turned, "WEBP", exif=exif)
    first, second = send(crops_server[0], {"a.webp": turned.getvalue(), "b.png": served.crop(0)}).json()["images"]
    assert (first["size"], first["orientation"]) == ([30, 40], 6)
    assert second["size"] == [24, 24] and "orientation" not in second


def test_a_field_that_nobody_reads_is_refused(crops_server):
    files = {"images": ("a.png", served.crop(0))}
    reply = httpx2.post(f"{crops_server[0]}/v1/predict", files=files, data={"threshold": "18"})
    assert reply.status_code == 400 and "a field that is not a file" in reply.json()["error"]


def test_a_large_upload_touches_no_disk(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("an upload goes onto a disk")

    for name in ("TemporaryFile", "NamedTemporaryFile", "SpooledTemporaryFile", "mkstemp"):
        monkeypatch.setattr(f"tempfile.{name}", refuse)
    given = served.aligned(served.stand_in([]))
    picture = np.random.default_rng(0).integers(0, 255, (900, 900, 3)).astype(np.uint8)
    content = served.encoded(Image.fromarray(picture), "BMP")
    assert len(content) > 2_000_000
    with served.serving(given) as address:
        assert send(address, {"large.bmp": content}).status_code == 200


def answer(ask, statuses) -> httpx2.Response:
    """The first answer with one of the statuses."""
    return served.until(lambda: (reply := ask()).status_code in statuses and reply)


def test_a_server_that_is_full_says_so_and_goes_on_afterwards():
    free, estimator = threading.Event(), served.stand_in([])
    forward = estimator.forward
    object.__setattr__(estimator, "forward", lambda batch: free.wait(30) and forward(batch))
    given = served.aligned(estimator, requests=2, held=100_000)
    with served.serving(given) as address, concurrent.futures.ThreadPoolExecutor(2) as pool:
        # One of them may come while a request of the poll below is worked on, and then comes again.
        asked = [lambda k=k: answer(lambda: send(address, {"a.png": served.crop(k)}), {200}) for k in range(2)]
        running = [pool.submit(each) for each in asked]
        refused = answer(lambda: send(address, {"b.png": b""}), {429})
        assert "busy with 2 requests" in refused.json()["error"] and refused.headers["retry-after"] == "1"
        assert httpx2.get(f"{address}/healthz").json()["status"] == "ok"
        assert httpx2.get(f"{address}/readyz").status_code == 503
        free.set()
        assert [future.result().status_code for future in running] == [200, 200]
        assert send(address, {"b.png": served.crop(3)}).status_code == 200
        assert httpx2.get(f"{address}/readyz").status_code == 200
        assert "holds too many bytes" in send(address, {"large": b"x" * 120_000}).json()["error"]


def test_slow_clients_stop_nobody_and_are_sent_away(monkeypatch):
    monkeypatch.setattr(connection, "HEADER_SECONDS", 2.0)
    body, kind = served.multipart({"a.png": served.crop(0)})
    with served.serving(served.aligned(served.stand_in([]), requests=3, upload_seconds=6.0)) as address:
        silent = [served.begun(address, b"GET / HT") for _ in range(20)]
        slow = [served.begun(address, served.post(body[:40], kind, len(body))) for _ in range(20)]
        assert send(address, {"good.png": served.crop(1)}).status_code == 200  # while the slow ones are still there
        assert [served.reply(client) for client in silent] == [b""] * 20
        answers = [served.reply(client) for client in slow[:3]]
        assert all(b" 408 " in answer and b"longer than 6 seconds" in answer for answer in answers)
        for client in slow:
            client.close()
        assert send(address, {"good.png": served.crop(1)}).status_code == 200


def test_closed_connections_leave_nothing_in_memory(monkeypatch):
    monkeypatch.setattr(connection, "HEADER_SECONDS", 600)

    def alive():
        gc.collect()
        return sum(isinstance(one, connection.Connection) for one in gc.get_objects())

    with served.serving(served.aligned(served.stand_in([]))) as address:
        for _ in range(40):
            assert httpx2.get(f"{address}/healthz").status_code == 200
        served.until(lambda: alive() < 10)


def test_a_server_with_many_open_requests_refuses_more_and_still_says_that_it_lives(monkeypatch):
    monkeypatch.setattr(guard, "MOST_OPEN", 5)
    body, kind = served.multipart({"a.png": served.crop(0)})
    with served.serving(served.aligned(served.stand_in([]))) as address:
        slow = [served.begun(address, served.post(body[:40], kind, len(body))) for _ in range(5)]
        refused = answer(lambda: httpx2.get(f"{address}/v1/model"), {503})
        assert "5 requests are open already" in refused.json()["error"] and refused.headers["retry-after"] == "1"
        assert "default-src 'none'" in refused.headers["content-security-policy"]
        assert httpx2.get(f"{address}/healthz").json()["status"] == "ok"
        for connection in slow:
            connection.close()
        answer(lambda: httpx2.get(f"{address}/v1/model"), {200})


def test_a_server_that_stops_waits_a_little_for_half_an_upload():
    body, kind = served.multipart({"a.png": served.crop(0)})
    told = []
    with served.serving(served.aligned(served.stand_in([]), upload_seconds=600.0), seconds=1.0, told=told) as address:
        half = served.begun(address, served.post(body[:60], kind, len(body)))
        assert httpx2.get(f"{address}/healthz").status_code == 200  # behind it in the queue of connections
    reply = served.reply(half)
    assert b" 503 " in reply and b"stopped before the upload was complete: send it again" in reply
    assert told == ["of 1 requests in progress 0 were answered, 1 refused with status 503"]


def test_a_server_can_stop_in_the_moment_in_which_an_upload_has_run_out_of_time():
    async def main():
        loop, gate = asyncio.get_running_loop(), limits.Gate(limits.Limits(upload_seconds=0.05))

        async def upload():
            async with gate.uploading():
                await asyncio.Event().wait()

        task, stopped = asyncio.ensure_future(upload()), loop.create_future()
        await asyncio.sleep(0)
        loop.call_later(0.06, lambda: stopped.set_result(gate.stop(8.0)))
        time.sleep(0.1)  # so that both are due at once
        await asyncio.wait_for(stopped, 10)
        with pytest.raises(limits.Refused):
            await task

    asyncio.run(main())


def test_bytes_that_are_no_request_end_their_connection_alone(crops_server):
    address, _ = crops_server
    random = np.random.default_rng(0)
    body, kind = served.multipart({"a.png": served.crop(0), "b.png": served.crop(1)})
    for _ in range(40):
        broken = bytearray(body)
        for place in random.integers(0, len(body), 30):
            broken[place] = random.integers(256)
        reply = httpx2.post(f"{address}/v1/predict", content=bytes(broken), headers={"content-type": kind})
        assert reply.status_code in (200, 400, 413, 422), reply.text
        assert reply.status_code == 200 or len(reply.json()["error"]) > 10
    assert b" 400 " in served.reply(served.begun(address, b"\x16\x03\x01\x02\x00\x01\r\n\r\n"))
    assert httpx2.get(f"{address}/nothing").json()["error"] == "GET /nothing: not found; see /docs for the API"
    assert send(address, {"good.png": served.crop(1)}).status_code == 200


def test_items_of_many_callers_share_batches_and_failures_stay_with_theirs():
    seen = []

    def work(items: list[int]) -> list[int]:
        seen.append(items)
        if 13 in items:
            raise RuntimeError("thirteen")
        return [10 * item for item in items]

    async def main():
        batcher = Batcher(work, size=4, wait=0.01)
        left = asyncio.ensure_future(batcher([99]))
        await asyncio.sleep(0)
        left.cancel()
        callers = [batcher([k, k + 100]) for k in range(5)]
        pending = [asyncio.ensure_future(caller) for caller in callers]
        await asyncio.sleep(0)
        batcher.start()
        assert await asyncio.gather(*pending) == [[10 * k, 10 * k + 1000] for k in range(5)]
        with pytest.raises(RuntimeError, match="thirteen"):
            await batcher([13])
        assert await batcher([1]) == [10] and await batcher([]) == []
        await batcher.close()

    asyncio.run(main())
    assert [len(items) for items in seen] == [4, 4, 2, 1, 1] and 99 not in sum(seen, [])


def test_what_a_models_evaluations_warn_of_is_told(monkeypatch):
    constant = {"age": 40.0, "mae": 8.0}
    reports = [
        {"split": "test", "data": "d", "mae": 9.0, "constant": {**constant, "difference": [0.5, 1.5]}},
        {"split": "validation", "data": "d", "mae": 5.0, "constant": {**constant, "difference": [-4.0, -2.0]}},
    ]
    monkeypatch.setattr(lineage, "run_card", lambda *_: ("# Card", reports))
    card, (doubt,) = about.described("runs/none", None, False)
    assert card == "# Card" and doubt.startswith("On test of d: the model is worse than a constant: answering 40")


def test_the_page_asks_no_other_host_for_anything(crops_server):
    shared = importlib.resources.files(app.SHARED[0]) / app.SHARED[1]
    own = [*app.STATIC.iterdir(), *shared.iterdir()]
    assert {"index.html", "page.css", "page.js", "cards.js", "docs.html"} <= {path.name for path in own}
    for path in own:
        hosts = set(re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]+", path.read_text())) - {"http://www.w3.org"}
        assert not hosts, path
        assert httpx2.get(f"{crops_server[0]}/static/{path.name}").status_code == 200
    for path in ("", "docs"):
        page = httpx2.get(f"{crops_server[0]}/{path}")
        policy = page.headers["content-security-policy"]
        assert "unsafe" not in policy and "http" not in policy and "script-src 'self';" in policy
        for asked in re.findall(r'(?:src|href)="([^"]+)"', page.text):
            assert httpx2.get(f"{crops_server[0]}/{asked}").status_code == 200, asked
    described = httpx2.get(f"{crops_server[0]}/openapi.json").json()
    assert {"/v1/predict", "/v1/model", "/healthz", "/readyz"} == set(described["paths"])
    assert {"200", "413", "422", "429"} <= set(described["paths"]["/v1/predict"]["post"]["responses"])


def test_sigterm_answers_what_was_accepted_and_ends_with_0(trained):
    run = str(trained("represent"))
    with pytest.raises(InputError, match="how they were cut is unknown. Give crops"):
        door.main(["--run", run, "--port", "0"])
    words = ["-m", "lae_jax.serve", "--run", run, "--port", "0", "--aligned", "--max-batch", "1"]
    process = subprocess.Popen([sys.executable, *words], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        address = next(found[0] for line in process.stderr if (found := re.search(r"http://[0-9.:]+", line)))
        about = httpx2.get(f"{address}/v1/model", timeout=60).json()
        assert about["card"].startswith("# Model card: efficientnet_v2_pico") and about["crop"] == crops.UNKNOWN
        card = httpx2.get(f"{address}/card", timeout=60)
        assert card.text.startswith("<h3>Model card: efficientnet_v2_pico") and "<h4>Use and misuse</h4>" in card.text
        assert about["versions"]["jax"] and about["limits"]["files"] == 32 and "interval" not in about
        assert about["model"] == "represent step 3" and "`drawn`" in about["card"]
        body, kind = served.multipart({"a.png": served.crop(0)})
        accepted = served.begun(address, served.post(body[:60], kind, len(body)))
        assert httpx2.get(f"{address}/healthz", timeout=60).status_code == 200  # behind it in the queue of connections
        process.send_signal(signal.SIGTERM)
        served.until(lambda: served.refuses(address))
        accepted.sendall(body[60:])
        head, _, content = served.reply(accepted).partition(b"\r\n\r\n")
        assert os.path.dirname(run) not in json.dumps(about) + card.text + content.decode()
        assert b" 200 " in head and 0 < json.loads(content)["images"][0]["faces"][0]["age"] < 100
        assert process.wait(120) == 0 and "of 1 requests in progress 1 were answered" in process.stderr.read()
    finally:
        process.kill()
        process.stderr.close()
