import concurrent.futures
import http.client
import io
import json
import pathlib
import re
import signal
import socket
import subprocess
import sys
import urllib.parse
import zipfile

import numpy as np
import pytest
from PIL import Image

from biggan_jax import api

pytestmark = [pytest.mark.multiprocess, pytest.mark.browser]

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs" / "app.md"
CURL = re.findall(r"^curl .*", DOCS.read_text(), re.M)


@pytest.fixture(scope="module")
def model(folder):
    return api.load(folder)


def test_every_form_holds_the_models_images(served, model):
    query = "/api/images?classes=emu,cat&num=5&seed=3&truncation=0.7&format="
    want = model.sample([2, 0, 2, 0, 2], truncation=0.7, seed=3)
    for number in range(5):
        _, headers, content = served.get(f"{query}image&number={number}")
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), want[number])
        assert headers["Content-Type"] == "image/png"
    with np.load(io.BytesIO(served.get(f"{query}npz")[2])) as saved:
        np.testing.assert_array_equal(saved["arr_0"], want)
        assert saved["arr_1"].tolist() == [2, 0, 2, 0, 2] and saved["arr_1"].dtype == np.int64
    with zipfile.ZipFile(io.BytesIO(served.get(f"{query}zip")[2])) as archive:
        assert archive.namelist()[1] == "000001_class0000.png"
        picture = Image.open(io.BytesIO(archive.read("000004_class0002.png")))
        np.testing.assert_array_equal(np.asarray(picture), want[4])
    found = json.loads(served.get(f"{query}json")[2])
    assert [i["caption"] for i in found["images"]] == ["emu", "cat", "emu", "cat", "emu"]
    assert found["weights"] == "averaged" and found["dtype"] == "float32"
    sheet = Image.open(io.BytesIO(served.get(f"{query}sheet")[2]))
    assert sheet.size[0] > 2 * 64 and sheet.size[1] > 3 * 64
    body = {"classes": "emu,cat", "num": 5, "seed": 3, "truncation": 0.7, "format": "npz"}
    posted = served.get("/api/images", json.dumps(body).encode())[2]
    assert posted == served.get(f"{query}npz")[2]


@pytest.mark.parametrize("number", range(len(CURL)))
def test_the_lines_of_curl_in_app_md(served, number, tmp_path):
    command = CURL[number].replace("http://127.0.0.1:7860", served.url)
    command = command.replace("curl -s", "curl -s --fail --show-error")
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    if "-o" in command:
        (written,) = tmp_path.iterdir()
        assert written.stat().st_size > 100
    else:
        assert json.loads(done.stdout)


REFUSED = {
    "/api/images?truncation=0": (422, "truncation=0: must be greater than or equal to 0.01."),
    "/api/images?truncation=-1": (422, "truncation=-1: must be greater"),
    "/api/images?truncation=nan": (422, "truncation=nan: must be a finite number."),
    "/api/images?num=1000000000": (422, "num=1000000000: must be less than or equal to 64."),
    "/api/images?classes=mouse": (422, "classes: 'mouse' is no class"),
    "/api/images?classes=" + "x" * 3000: (422, "classes="),
    "/api/images?number=20": (None, None),
    "/api/images?format=image&number=63": (422, "number=63: must be below 20."),
    "/api/images?checkpoint=../../etc": (422, "checkpoint=../../etc: must be one of other."),
    "/api/images?seed=%ED%A0%80%00": (422, "seed="),
    "/api/walk?points=1": (422, "points=1: must be greater than or equal to 2."),
    "/api/timelapse?step=3": (422, "step=3: must be one of 0, 5, 10."),
    "/api/nothing": (404, "there is no such page"),
    "/docs": (404, "there is no such page"),
    "/gradio_api/upload": (404, "there is no such page"),
    "/gradio_api/runs": (404, "there is no such page"),
}


@pytest.mark.parametrize("path", REFUSED)
def test_bad_requests_get_one_sentence(served, path):
    status, start = REFUSED[path]
    if status is None:
        assert served.get(path)[0] == 200  # `number` is of format=image alone.
        return
    got, sentence = served.refused(path)
    assert got == status and sentence.startswith(start) and sentence.endswith(".")
    assert sentence.count("\n") == 0 and len(sentence) < 300


def test_bad_bodies_get_one_sentence(served):
    assert served.refused("/api/images", b"{") == (422, "the body is no JSON.")
    assert served.refused("/api/images", b"[]")[0] == 422
    status, sentence = served.refused("/api/images", b'{"truncation": NaN, "seed": 1}')
    assert (status, sentence) == (422, "truncation=nan: must be a finite number.")
    status, sentence = served.refused("/api/images", b'{"classes": "\\ud800"}')
    assert status == 422
    assert served.refused("/api/model", b"{}")[0] == 405
    big = served.refused("/api/images", b" " * 65537)
    assert big == (413, "the body: must be at most 65,536 bytes.")


def test_a_body_of_ten_megabytes_is_not_read(served):
    place = urllib.parse.urlsplit(served.url)
    for chunked in (False, True):
        connection = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
        part, count = b" " * 65_536, 160
        try:
            body = (part for _ in range(count)) if chunked else part * count
            header = {"Content-Type": "application/json"}
            connection.request("POST", "/api/images", body, header, encode_chunked=chunked)
            assert connection.getresponse().status in (400, 413)
        except (BrokenPipeError, ConnectionResetError):
            pass  # It was hung up on while it was still talking.
        finally:
            connection.close()
    assert served.get("/api/model")[0] == 200


def raw(served, target):
    """Asks for a path as it is: other clients tidy it up."""
    place = urllib.parse.urlsplit(served.url)
    with socket.create_connection((place.hostname, place.port), 30) as line:
        line.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while part := line.recv(65536):
            answer += part
    return int(answer.split()[1]), answer


def test_no_file_of_the_server_can_be_read(served, folder):
    secret = pathlib.Path(folder, "config.json")
    assert b'"model"' in secret.read_bytes()
    tails = [str(secret), "/etc/passwd", f"../../..{secret}", "..%2f..%2f..%2f..%2fetc%2fpasswd"]
    heads = ["/gradio_api/file=", "/file=", "/gradio_api/file/", "/static/", "/assets/", "/svelte/"]
    heads += ["/gradio_api/proxy=", "/gradio_api/proxy=http://127.0.0.1/", "/", "//"]
    heads += [
        "/custom_component/x/y/z/",
        "/gradio_api/custom_component/x/y/z/",
        "/api/",
        "/static/js/../",
    ]
    for head in heads:
        for tail in tails:
            status, answer = raw(served, head + tail)
            assert status in (400, 404), (head, tail, answer[:200])
            assert b"root:" not in answer and b'"model"' not in answer


def test_many_at_once_are_served_or_told_to_come_again(served):
    def ask(seed):
        status, headers, content = served.get(f"/api/images?num=64&format=npz&seed={seed}")
        if status == 429:
            assert headers["Retry-After"] == "1" and b"busy: too many requests" in content
        return status

    with concurrent.futures.ThreadPoolExecutor(150) as pool:
        statuses = list(pool.map(ask, range(150)))
    assert set(statuses) <= {200, 429} and statuses.count(200) >= 64
    assert served.get("/api/images?seed=1")[0] == 200


def test_a_taken_port_and_a_wrong_path_are_sentences(served, folder, tmp_path):
    port = urllib.parse.urlsplit(served.url).port
    for argv, sentence in (
        ([folder, f"--port={port}"], f"biggan app: --port={port}: cannot be had on 127.0.0.1"),
        ([folder, "--port=70000"], "biggan app: --port=70000: must be from 0 to 65535."),
        ([folder, "--host=no.such.host.invalid"], "biggan app: --host=no.such.host.invalid: is no"),
        ([str(tmp_path / "none"), "--port=0"], "biggan app: "),
    ):
        command = [sys.executable, "-m", "biggan_jax.cli", "app", *argv]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2, done.stderr
        assert done.stderr.splitlines()[-1].startswith(sentence)
        assert "Traceback" not in done.stderr


def test_an_interrupt_while_it_loads_ends_it_with_0(served, folder):
    command = [sys.executable, "-m", "biggan_jax.cli", "app", folder, "--port=0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr.readline() == "biggan app: loading\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stderr.read() == ""


@pytest.mark.slow
def test_a_fuzzer_finds_no_server_error(served, tmp_path):
    pytest.importorskip("schemathesis")
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{served.url}/openapi.json"]
    command += ["--checks=not_a_server_error", "--max-examples=5", "--seed=1"]
    command += ["--generation-database=none", "--phases=coverage,fuzzing"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert served.get("/api/model")[0] == 200
