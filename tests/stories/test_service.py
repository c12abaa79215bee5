"""The service as a line meets it: a real uvicorn on loopback, real images, and everything that goes wrong at night."""

from __future__ import annotations

import io
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image
from pycocotools import mask as rle

from sam_inspect.datasets import test_samples as read_samples
from sam_inspect.serve.outputs import signature


@pytest.fixture(scope="module")
def service(export: Path, serving: Serving, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving("--recipe", export, "--data", tmp_path_factory.mktemp("station")) as found:
        yield found


Service = Any
Serving = Callable[..., Any]


def defective(good: Path) -> Path:
    return next(path for path in sorted(good.iterdir()) if not path.name.startswith("good"))


def passing(good: Path) -> Path:
    return next(path for path in sorted(good.iterdir()) if path.name.startswith("good"))


def problem(answer: requests.Response, status: int) -> str:
    """Its detail, after checking that it is RFC 9457's."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    content = answer.json()
    assert content.keys() == {"type", "title", "status", "detail", "request_id"}
    assert content["status"] == status
    assert content["request_id"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text
    return str(content["detail"])


def test_a_camera_gets_what_the_command_line_says(
    service: Service,
    good: Path,
    export: Path,
    tmp_path: Path,
    sam_inspect: Callable[..., Any],
    results: Callable[[Path], Any],
) -> None:
    assert sam_inspect("inspect", good, "--recipe", export, "--out", tmp_path / "out").status == 0
    for name, own in results(tmp_path / "out").items():
        answer = service.send(good / name, headers={"Content-Type": "image/png"})
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert found.keys() == own.keys()
        assert {key: found[key] for key in ("verdict", "threshold", "defects", "size", "error")} == {
            key: own[key] for key in ("verdict", "threshold", "defects", "size", "error")
        }
        assert answer.headers["x-verdict"] == own["verdict"]


def test_a_form_brings_fields_and_a_repeat_its_stored_answer(service: Service, good: Path) -> None:
    image, url = defective(good), f"{service.url}/v1/recipes/export/inspect"
    form = {"part": "flange", "serial": "A-1", "triggered_at": "2026-11-26T06:00:00+01:00"}
    key = {"Idempotency-Key": "shot 1"}
    first = requests.post(f"{url}?camera=top", files={"image": image.open("rb")}, data=form, headers=key, timeout=60)
    again = requests.post(url, files={"image": image.open("rb")}, data=form, headers=key, timeout=60)
    assert first.json()["image"] == image.name
    assert (first.json(), first.headers["x-inspection-id"]) == (again.json(), again.headers["x-inspection-id"])
    with ThreadPoolExecutor(6) as pool:
        same = list(pool.map(lambda _: service.send(image, headers={"Idempotency-Key": "shot 2"}), range(6)))
    assert len({answer.headers["x-inspection-id"] for answer in same}) == 1
    other = requests.post(url, files={"image": passing(good).open("rb")}, data=form, headers=key, timeout=60)
    assert "was used for another image" in problem(other, 409)

    stored = service.get(first.headers["location"]).json()
    assert (stored["part"], stored["serial"], stored["camera"]) == ("flange", "A-1", "top")
    assert stored["triggered_at"] == "2026-11-26T05:00:00Z"
    assert stored["inspection"] == first.json()
    picture = service.get(first.headers["location"] + "/image")
    assert picture.content == image.read_bytes()
    for kind in ("overlay", "heatmap", "image?as_png=true"):
        drawn = service.get(f"{first.headers['location']}/{kind}")
        assert drawn.headers["content-type"] == "image/png"
        assert Image.open(io.BytesIO(drawn.content)).size == Image.open(image).size
    overlay = service.send(image, headers={"Accept": "image/png"})
    assert overlay.headers["content-type"] == "image/png"
    assert overlay.headers["x-verdict"] == "fail"


def test_given_boxes_are_outlined_instead(service: Service, good: Path) -> None:
    image = passing(good)
    found = service.send(image, params={"boxes": "[[40, 40, 120, 120]]"}).json()
    assert found["threshold"] is None
    assert [defect["source"] for defect in found["defects"]] in ([], ["sam"])
    assert "expected x0 < x1" in problem(service.send(image, params={"boxes": "[[40, 40, 10, 120]]"}), 422)
    assert "boxes: is not JSON" in problem(service.send(image, params={"boxes": "[[["}), 422)


def test_history_is_filtered_and_paged(service: Service, good: Path) -> None:
    for serial in range(5):
        service.send(passing(good), params={"part": "paged", "serial": str(serial)})
    seen, before = [], None
    while True:
        page = service.get("/v1/inspections", params={"part": "paged", "limit": 2, "before": before}).json()
        seen += [row["serial"] for row in page["inspections"]]
        before = page["next"]
        if before is None:
            break
    assert seen == ["4", "3", "2", "1", "0"]
    for which in ({"verdict": "fail"}, {"reviewed": True}, {"until": "2020-01-01T00:00:00Z"}, {"recipe": "other"}):
        assert service.get("/v1/inspections", params={"part": "paged"} | which).json()["inspections"] == []
    (recipe,) = service.get("/v1/recipes").json()
    assert recipe["name"] == "export"
    assert "is not in the store" in problem(service.get("/v1/inspections/" + 28 * "0"), 404)


def test_a_reviewer_corrects_a_mask_by_clicks_and_the_label_can_be_learned_from(
    service: Service, good: Path, tmp_path: Path
) -> None:
    answer = service.send(defective(good))
    place, found = answer.headers["location"], answer.json()
    truth = rle.decode(found["defects"][0]["mask"])
    y, x = (int(side.mean()) for side in np.nonzero(truth))
    if not truth[y, x]:
        y, x = (int(side[0]) for side in np.nonzero(truth))
    click = {"inspection": answer.headers["x-inspection-id"], "on": [[x + 0.5, y + 0.5]], "off": [[2, 2]]}
    clicked = requests.post(f"{service.url}/v1/recipes/export/segment", json=click, timeout=60)
    assert clicked.status_code == 200, clicked.text
    mask = clicked.json()
    assert rle.decode(mask["mask"]).sum() == mask["area_px"] > 0
    boxed = requests.post(
        f"{service.url}/v1/recipes/export/segment",
        json={"inspection": click["inspection"], "box": found["defects"][0]["box"]},
        timeout=60,
    ).json()
    overlap = rle.decode(boxed["mask"])
    assert (overlap & truth).sum() > 0.5 * (overlap | truth).sum()

    sent = {
        "files": {"image": defective(good).open("rb")},
        "data": {"clicks": json.dumps({"box": found["defects"][0]["box"]})},
    }
    same = requests.post(f"{service.url}/v1/recipes/export/segment", timeout=60, **sent)
    assert same.json()["mask"] == boxed["mask"]
    outside = requests.post(f"{service.url}/v1/recipes/export/segment", json=click | {"on": [[9000, 1]]}, timeout=60)
    assert "a point lies outside the image" in problem(outside, 400)

    said = {"decision": "confirm", "by": "Ada", "masks": [{"mask": boxed["mask"], "defect_type": "scratch / deep"}]}
    kept = requests.put(f"{service.url}{place}/review", json=said, timeout=60)
    assert kept.status_code == 200, kept.text
    assert kept.json()["review"]["masks"][0]["defect_type"] == "scratch / deep"
    assert service.get(place).json()["review"]["by"] == "Ada"
    fine = service.send(passing(good))
    requests.put(f"{service.url}{fine.headers['location']}/review", json={"decision": "confirm"}, timeout=60)
    wrong = {"size": [5, 5], "counts": [25]}
    refused = requests.put(
        f"{service.url}{place}/review",
        json=said | {"masks": [{"mask": wrong, "defect_type": "x"}]},
        timeout=60,
    )
    assert "the mask is 5 x 5, the image" in problem(refused, 422)

    labels = service.get("/v1/labels")
    zipfile.ZipFile(io.BytesIO(labels.content)).extractall(tmp_path)
    samples = read_samples(tmp_path)
    assert sorted({sample.defect_type for sample in samples}) == ["good", "scratch_deep"]
    (labelled,) = [sample for sample in samples if sample.defect_type != "good"]
    assert labelled.mask_path is not None
    drawn = np.array(Image.open(labelled.mask_path)) > 0
    np.testing.assert_array_equal(drawn, overlap.astype(bool))


def test_listeners_miss_nothing_over_a_break(service: Service, good: Path) -> None:
    first = service.send(passing(good)).headers["x-inspection-id"]
    missed = [service.send(passing(good)).headers["x-inspection-id"] for _ in range(3)]
    heard = []
    with service.get("/v1/events", headers={"Last-Event-ID": first}, stream=True) as stream:
        sent = None
        for line in stream.iter_lines(decode_unicode=True):
            if line.startswith("id: "):
                heard.append(line[4:])
            if heard == missed and sent is None:
                sent = service.send(defective(good)).headers["x-inspection-id"]
            if sent is not None and heard == [*missed, sent]:
                break


def test_listeners_hear_of_reviews(service: Service, good: Path) -> None:
    earlier, answer = (service.send(passing(good)) for _ in range(2))
    since = {"Last-Event-ID": earlier.headers["x-inspection-id"]}
    with service.get("/v1/events", headers=since, stream=True) as stream:
        lines = stream.iter_lines(decode_unicode=True)
        assert f"id: {answer.headers['x-inspection-id']}" in lines
        said = {"decision": "overrule", "by": "Ada"}
        requests.put(f"{service.url}{answer.headers['location']}/review", json=said, timeout=60)
        assert "event: review" in lines
        told = json.loads(next(line for line in lines if line.startswith("data: "))[6:])
    assert (told["id"], told["review"]["decision"]) == (answer.headers["x-inspection-id"], "overrule")


def test_what_cannot_be_used_is_refused_in_one_line(service: Service, good: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("no picture")
    assert "is not a picture" in problem(service.send(text), 422)
    cut = tmp_path / "cut.png"
    cut.write_bytes(defective(good).read_bytes()[:2000])
    assert problem(service.send(cut), 422).startswith("image: is cut")
    bomb = tmp_path / "bomb.png"
    Image.new("1", (30_000, 30_000)).save(bomb)
    assert "900 million pixels where 100 million are allowed" in problem(service.send(bomb), 422)
    small = tmp_path / "small.png"
    Image.new("RGB", (40, 40)).save(small)
    assert "the export is for" in problem(service.send(small), 422)
    assert problem(service.send(text, recipe="../../etc"), 404) == "Not Found"
    assert "is not loaded; loaded are export" in problem(service.send(text, recipe="nothing"), 404)
    image = passing(good)
    assert "part" in problem(service.send(image, params={"part": "a\x00b"}), 422)
    assert "colour" in problem(service.send(image, params={"colour": "red"}), 422)
    assert "deadline" in problem(service.send(image, headers={"X-Deadline-Ms": "0"}), 422)
    assert "no file `image`" in problem(
        requests.post(f"{service.url}/v1/recipes/export/inspect", files={"other": b"x"}, timeout=60), 400
    )
    huge = requests.post(
        f"{service.url}/v1/recipes/export/inspect", b"", headers={"Content-Length": str(1 << 40)}, timeout=60
    )
    assert "send at most" in problem(huge, 413)
    elsewhere = service.get("/v1/recipes", headers={"Origin": "https://elsewhere.example"})
    assert "pages of other sites" in problem(elsewhere, 403)
    assert "answers to no other name" in problem(service.get("/v1/recipes", headers={"Host": "rebound.example"}), 403)
    assert problem(service.get("/v1/nothing"), 404)
    assert service.send(image).status_code == 200


def test_figures_for_prometheus(service: Service, good: Path) -> None:
    service.send(defective(good))
    page = service.get("/metrics").text
    assert 'sam_inspect_verdicts_total{recipe="export",verdict="fail"}' in page
    assert 'sam_inspect_stage_seconds_bucket{le="0.5",recipe="export",stage="localize"}' in page
    assert "sam_inspect_queue_depth 0.0" in page
    assert service.get("/healthz").json() == {"status": "ok"}


def test_a_full_queue_says_so_at_once_and_late_work_is_not_done(
    export: Path, serving: Serving, good: Path, tmp_path: Path
) -> None:
    with serving("--recipe", export, "--data", tmp_path, "--queue", "2") as service:
        image = defective(good)
        with ThreadPoolExecutor(24) as pool:
            start = time.monotonic()
            answers = list(pool.map(lambda _: service.send(image), range(24)))
        statuses = [answer.status_code for answer in answers]
        assert set(statuses) == {200, 429}
        full = next(answer for answer in answers if answer.status_code == 429)
        assert int(full.headers["retry-after"]) >= 1
        assert "images are waiting" in problem(full, 429)
        assert full.elapsed.total_seconds() < time.monotonic() - start
        stored = service.get("/v1/inspections", params={"limit": 100}).json()["inspections"]
        assert len(stored) == statuses.count(200)
        with ThreadPoolExecutor(4) as pool:
            late = list(pool.map(lambda _: service.send(image, headers={"X-Deadline-Ms": "1"}), range(4)))
        assert any("deadline" in problem(answer, 504) for answer in late if answer.status_code == 504)
        assert 504 in {answer.status_code for answer in late}


def test_told_to_stop_it_finishes_what_it_accepted(export: Path, serving: Serving, good: Path, tmp_path: Path) -> None:
    with serving("--recipe", export, "--data", tmp_path) as service:
        image = defective(good)
        with ThreadPoolExecutor(6) as pool:
            answers = [pool.submit(service.send, image) for _ in range(6)]
            while service.get("/metrics").text.count("sam_inspect_queue_depth 0.0"):
                time.sleep(0.02)
            service.process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            refused = None
            try:
                refused = service.send(image).status_code
            except requests.ConnectionError:
                refused = "closed"
            statuses = [answer.result().status_code for answer in answers if answer.exception() is None]
        assert refused in (503, "closed")
        assert statuses.count(200) >= 1
        assert set(statuses) <= {200, 503}
        assert service.process.wait(60) == 0, "".join(service.said)
    with sqlite3.connect(tmp_path / "inspections.db") as database:
        assert database.execute("select count(*) from inspections").fetchone() == (statuses.count(200),)


def test_after_kill_9_every_answer_is_in_the_store_with_its_image(
    export: Path, serving: Serving, good: Path, tmp_path: Path
) -> None:
    answered: list[str] = []
    with serving("--recipe", export, "--data", tmp_path) as service:
        images = sorted(good.iterdir())

        def shoot(number: int) -> None:
            try:
                answer = service.send(images[number % len(images)], headers={"Idempotency-Key": str(number)})
            except requests.RequestException:
                return
            if answer.status_code == 200:
                answered.append(answer.headers["x-inspection-id"])

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(shoot, range(4)))
            shots = [pool.submit(shoot, number) for number in range(4, 40)]
            time.sleep(1.5)
            service.process.kill()
            for shot in shots:
                shot.result()
    assert 4 <= len(answered) < 40
    (tmp_path / time.strftime("%Y/%m/%d", time.gmtime()) / ".part-x.png").write_bytes(b"half")
    with serving("--recipe", export, "--data", tmp_path) as service:
        for row_id in answered:
            assert service.get(f"/v1/inspections/{row_id}").status_code == 200
            assert Image.open(io.BytesIO(service.get(f"/v1/inspections/{row_id}/image").content)).size
        rows = service.get("/v1/inspections", params={"limit": 500}).json()["inspections"]
        files = {path.name.partition(".")[0] for path in tmp_path.glob("2*/*/*/*")}
        assert files == {row["id"] for row in rows}
        again = service.send(images[0], headers={"Idempotency-Key": "0"})
        assert again.headers["x-inspection-id"] in answered


def test_a_locked_store_is_a_503_and_nothing_is_lost(
    export: Path, serving: Serving, good: Path, tmp_path: Path
) -> None:
    with serving("--recipe", export, "--data", tmp_path) as service:
        lock = sqlite3.connect(tmp_path / "inspections.db", isolation_level=None)
        lock.execute("begin immediate")
        refused = service.send(passing(good), headers={"Idempotency-Key": "one"})
        assert "the store does not answer" in problem(refused, 503)
        lock.execute("rollback")
        lock.close()
        assert service.send(passing(good), headers={"Idempotency-Key": "one"}).status_code == 200
        assert len(service.get("/v1/inspections").json()["inspections"]) == 1
        assert len(list(tmp_path.glob("2*/*/*/*.png"))) == 1


class _Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.heard.append((dict(self.headers), body))  # type: ignore[attr-defined]
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        return


def test_results_reach_a_webhook_that_was_away(export: Path, serving: Serving, good: Path, tmp_path: Path) -> None:
    receiver = HTTPServer(("127.0.0.1", 0), _Receiver)
    receiver.heard = []  # type: ignore[attr-defined]
    port = receiver.server_port
    receiver.server_close()
    lines = tmp_path / "results.jsonl"
    (tmp_path / "outputs.yaml").write_text(
        f"outputs:\n  - name: webhook\n    args: {{url: 'http://127.0.0.1:{port}/hook', secret: hush}}\n"
        f"  - name: jsonl\n    args: {{file: '{lines}'}}\n"
    )
    words = ("--recipe", export, "--data", tmp_path / "station", "--outputs", tmp_path / "outputs.yaml")
    with serving(*words) as service:
        ids = [
            service.send(image, params={"serial": image.stem}).headers["x-inspection-id"] for image in good.iterdir()
        ]
        time.sleep(0.5)
        service.process.kill()
    receiver = HTTPServer(("127.0.0.1", port), _Receiver)
    receiver.heard = heard = []  # type: ignore[attr-defined]
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    with serving(*words) as service:
        until = time.monotonic() + 30
        while len(heard) < len(ids) and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(0.5)
        assert 'sam_inspect_deliveries_waiting{output="webhook"} 0.0' in service.get("/metrics").text
    receiver.shutdown()
    assert [json.loads(body)["id"] for _, body in heard] == ids
    headers, body = heard[0]
    seconds = int(headers["X-Signature"].partition(",")[0].removeprefix("t="))
    assert headers["X-Signature"] == signature("hush", body, seconds)
    record = json.loads(body)
    assert record["recipe"]["name"] == "export"
    assert record["verdict"] in ("pass", "fail")
    assert {"trigger", "captured", "done"} == record["times"].keys()
    assert [json.loads(line)["id"] for line in lines.read_text().splitlines()] == ids


def test_others_need_a_key(export: Path, serving: Serving, tmp_path: Path, sam_inspect: Callable[..., Any]) -> None:
    words = ("--recipe", export, "--data", tmp_path)
    open_door = sam_inspect("serve", *words, "--host", "0.0.0.0", "--port", "0")
    assert open_door.status == 2
    assert "holds no API key, and 0.0.0.0 can be reached from elsewhere" in open_door.error()
    ring = tmp_path / "keys.json"
    secret = sam_inspect("keys", "add", "line 3", "--keys", ring).out.strip()
    assert secret not in ring.read_text()
    assert ring.stat().st_mode & 0o77 == 0
    assert "has a key" in sam_inspect("keys", "add", "line 3", "--keys", ring).error()
    with serving(*words, "--host", "0.0.0.0", ready=False) as service:
        service.url = service.url.replace("0.0.0.0", "127.0.0.1")
        refused = service.get("/v1/recipes")
        assert problem(refused, 401).startswith("no key")
        assert refused.headers["www-authenticate"] == "Bearer"
        assert service.get("/v1/recipes", headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert service.get("/metrics").status_code == 401
        assert service.get("/healthz").status_code == 200
        for headers in ({"Authorization": f"Bearer {secret}"}, {"X-API-Key": secret}):
            assert service.get("/v1/recipes", headers=headers).status_code == 200
        assert "line 3" in sam_inspect("keys", "list", "--keys", ring).out
        assert sam_inspect("keys", "remove", "line 3", "--keys", ring).status == 0
        assert service.get("/v1/recipes", headers=headers).status_code == 401


def test_a_recipe_is_swapped_and_rolled_back_without_dropping_a_request(
    export: Path, serving: Serving, good: Path, tmp_path: Path
) -> None:
    recipes = tmp_path / "recipes"
    shutil.copytree(export, recipes / "part")
    with serving("--recipe", recipes, "--data", tmp_path / "station") as service:
        before = service.get("/v1/recipes").json()[0]
        statuses: list[int] = []
        stop = threading.Event()

        def line() -> None:
            while not stop.wait(0.2):
                statuses.append(service.send(passing(good), recipe="part").status_code)

        thread = threading.Thread(target=line)
        thread.start()
        facts = json.loads((recipes / "part" / "recipe.json").read_text())
        (recipes / "part" / "recipe.json").write_text(json.dumps(facts | {"threshold": facts["threshold"] + 9}))
        loaded = requests.post(f"{service.url}/v1/recipes/part/load", timeout=60).json()
        assert loaded["version"] != before["version"]
        assert loaded["threshold"] == pytest.approx(before["threshold"] + 9)
        assert service.send(defective(good), recipe="part").json()["verdict"] == "pass"
        assert (
            requests.post(f"{service.url}/v1/recipes/part/rollback", timeout=60).json()["version"] == before["version"]
        )
        assert service.send(defective(good), recipe="part").json()["verdict"] == "fail"
        shutil.copytree(export, recipes / "second")
        assert requests.post(f"{service.url}/v1/recipes/second/load", timeout=60).status_code == 200
        assert service.send(passing(good), recipe="second").status_code == 200
        (recipes / "part" / "encoder.onnx").write_bytes(b"cut")
        assert "is cut or was changed" in problem(requests.post(f"{service.url}/v1/recipes/part/load", timeout=60), 422)
        stop.set()
        thread.join()
    assert len(statuses) >= 3
    assert set(statuses) == {200}


def test_what_serve_cannot_begin_with(export: Path, tmp_path: Path, sam_inspect: Callable[..., Any]) -> None:
    nothing = sam_inspect("serve", "--recipe", tmp_path, "--data", tmp_path / "station")
    assert (nothing.status, "holds no recipe" in nothing.error()) == (2, True)
    (tmp_path / "outputs.yaml").write_text("outputs: [{name: webhok}]")
    wrong = sam_inspect("serve", "--recipe", export, "--data", tmp_path / "s", "--outputs", tmp_path / "outputs.yaml")
    assert "did you mean webhook?" in wrong.error()
    cut = Path(shutil.copytree(export, tmp_path / "cut"))
    (cut / "decoder.onnx").write_bytes(b"cut")
    broken = sam_inspect("serve", "--recipe", cut, "--data", tmp_path / "station", "--port", "0")
    assert broken.status == 2
    assert "decoder.onnx: is cut or was changed" in broken.error()
    store = sam_inspect("serve", "--recipe", export, "--data", tmp_path / "s", "--store", "nosuch://x")
    assert store.status == 1
    assert "--store: cannot be used" in store.error()


@pytest.mark.slow
def test_nothing_that_a_client_can_send_is_a_500(service: Service, good: Path, tmp_path: Path) -> None:
    service.send(defective(good))
    (tmp_path / "schemathesis.toml").write_text(
        '[checks.not_a_server_error]\nexpected-statuses = ["2xx", "3xx", "4xx", 504]\n'  # 504: its own deadline passed
    )
    words = ["--checks", "not_a_server_error", "--max-examples", "15", "--exclude-path", "/v1/events", "--no-color"]
    tool = Path(sys.executable).with_name("schemathesis")
    line = [str(tool), "run", f"{service.url}/openapi.json", *words]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout
    assert "13 / 14" in done.stdout.replace("13/14", "13 / 14")
    assert not [said for said in service.said if " 500 " in said]


@pytest.mark.slow
def test_the_decoder_is_tuned_on_what_was_reviewed(
    plant: Any, serving: Serving, tmp_path: Path, sam_inspect: Callable[..., Any]
) -> None:
    recipe = Path(shutil.copytree(plant.recipe, tmp_path / "recipe"))
    with serving("--recipe", recipe, "--data", tmp_path / "station") as service:
        for image in sorted(plant.product.glob("test/*/*.png")):
            answer = service.send(image, recipe="recipe")
            review = {"decision": "confirm"}
            requests.put(f"{service.url}{answer.headers['location']}/review", json=review, timeout=60)
        zipfile.ZipFile(io.BytesIO(service.get("/v1/labels").content)).extractall(tmp_path / "labels")
        tuned = sam_inspect("finetune", tmp_path / "labels", "--recipe", recipe, "--minutes", "1", "--folds", "2")
        assert tuned.status == 0, tuned.err
        assert (recipe / "finetune" / "compare.html").is_file()
        assert requests.post(f"{service.url}/v1/recipes/recipe/load", timeout=120).status_code == 200
        assert service.send(image, recipe="recipe").status_code == 200
