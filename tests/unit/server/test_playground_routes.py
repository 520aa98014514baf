"""What the page asks of its server. The page itself is tried in `tests/browser`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from fake_engine import FakeEngine
from fakes import tiny_config
from idefics.assets import DEMO, EMBEDDED_NAME, KNOWLEDGE, PLAYGROUND, knowledge
from idefics.plan import PRECISIONS, make_plan
from serving import data_url, fake_app, png, script


@pytest.fixture
def client() -> Iterator[TestClient]:
    with TestClient(fake_app(FakeEngine(script()))) as client:
        yield client


def chat(*urls: str, **options: Any) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"messages": [{"role": "user", "content": [*parts, {"type": "text", "text": "a red image"}]}], **options}


def test_the_page_and_its_parts_are_public_and_keep_to_themselves() -> None:
    with TestClient(fake_app(FakeEngine(script()), api_keys=["secret"])) as client:
        page = client.get("/playground")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        for name in re.findall(r'(?:src|href)="(playground/[^"]+)"', page.text):
            part = client.get(f"/{name}")
            assert part.status_code == 200
            assert part.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; ")
            assert "frame-ancestors 'none'" in part.headers["content-security-policy"]
            assert part.headers["x-content-type-options"] == "nosniff"
        for path in ("/playground/facts", "/playground/other.js", "/playground/..%2findex.html"):
            assert client.get(path).status_code == 401
        key = {"authorization": "Bearer secret"}
        assert client.get("/playground/facts", headers=key).json()["model"] == "tiny"
        assert client.get("/playground/other.js", headers=key).status_code == 404


def test_the_page_is_found_with_a_slash_and_by_those_who_only_look() -> None:
    with TestClient(fake_app(FakeEngine(script()), api_keys=["secret"])) as client:
        moved = client.get("/playground/", follow_redirects=False)
        assert (moved.status_code, moved.headers["location"]) == (308, "../playground"), "relative: also below a prefix"
        assert client.get("/playground/").text == client.get("/playground").text
        for path in ("/playground", "/playground/", "/playground/page.js"):
            looked = client.head(path)
            assert (looked.status_code, looked.content) == (200, b"")
            assert looked.headers["content-length"] != "0"


def test_every_part_is_reached_and_every_import_is_there() -> None:
    texts = {file.name: file.read_text(encoding="utf-8") for file in PLAYGROUND.iterdir()}
    used = {"index.html", *re.findall(r'playground/([\w.]+)"', texts["index.html"])}
    for name, text in texts.items():
        if name.endswith(".js"):
            used |= set(re.findall(r'from "\./([\w.]+)"', text))
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), "no other host"
        assert len(text.splitlines()) < 260
    assert used == set(texts)


def test_facts(client: TestClient) -> None:
    assert client.get("/playground/facts").json() == {
        "model": "tiny", "dtype": "float32", "device": "cpu", "positions": 512, "chats": True, "adjustable": True,
        "splits": False, "longest_image": 72, "longest_edge": 72, "body_bytes": 32 * 2**20, "knows": None,
        "examples": [
            {"image": "thing.png", "question": "What do you see?"},
            {"image": "things.png", "question": "How many orange diamonds do you see in the picture?"},
            {"image": "number.png", "question": "Which number is shown in the picture?"},
        ],
    }  # fmt: skip


def test_what_the_embedded_model_knows_is_told_and_base_models_are_offered_no_questions() -> None:
    assert knowledge(EMBEDDED_NAME) == KNOWLEDGE
    assert knowledge("HuggingFaceM4/idefics2-8b") is None
    with TestClient(fake_app(FakeEngine(script()), chats=False)) as client:
        assert client.get("/playground/facts").json()["examples"] == []


def test_pictures_to_ask_about_stand_beside_the_page() -> None:
    with TestClient(fake_app(FakeEngine(script()), api_keys=["secret"])) as client:
        sent = client.get("/playground/thing.png")
        assert (sent.status_code, sent.headers["content-type"]) == (200, "image/png")
        assert sent.content == (DEMO / "thing.png").read_bytes()


def test_the_plan_is_the_one_of_the_command_line_and_counts_what_is_computed(client: TestClient) -> None:
    asked = chat("90x60", "40x30", do_image_splitting=True, max_image_size=36, max_tokens=20)
    plan = client.post("/playground/plan", json=asked).json()
    processor = client.app.state.service.model.processor  # type: ignore[attr-defined]
    expected = make_plan(
        tiny_config(), [(90, 60), (40, 30)], seen_by=processor.image_processor, split=True, max_image_size=36,
        text_tokens=plan["tokens"]["text"], new_tokens=20, precisions=PRECISIONS[:1],
    )  # fmt: skip
    assert [image["seen"] for image in plan["images"]] == [[list(size) for size in image.seen] for image in expected.images]
    assert [image["tokens"] for image in plan["images"]] == [20, 20]
    assert plan["tokens"]["images"] == expected.framed_tokens
    assert plan["tokens"]["prompt"] == expected.prompt_tokens
    assert plan["bytes"]["total"] == expected.memory[0].total
    image = data_url(png(90, 60))
    answer = client.post(
        "/v1/chat/completions", json=chat(image, image, do_image_splitting=True, max_image_size=36, max_tokens=20)
    )
    assert answer.json()["usage"]["prompt_tokens"] == plan["tokens"]["prompt"]


def test_the_plan_of_a_text_counts_what_its_completion_does() -> None:
    with TestClient(fake_app(FakeEngine(script()), chats=False)) as client:
        text = " ![]({})a red![]({}) ![]({})image\n"
        asked = {"do_image_splitting": True, "max_image_size": 36}
        plan = client.post("/playground/plan", json={"prompt": text.format("90x60", "40x30", "40x30"), **asked}).json()
        prompt = text.format(data_url(png(90, 60)), data_url(png()), data_url(png()))
        usage = client.post("/v1/completions", json={"prompt": prompt, **asked}).json()["usage"]
        assert plan["tokens"]["prompt"] == usage["prompt_tokens"]
        assert plan["tokens"]["answer"] == 16, "as many as a completion has if it does not say"
        assert [(image["width"], image["height"]) for image in plan["images"]] == [(90, 60), (40, 30), (40, 30)]
        assert client.post("/playground/plan", json={"prompt": ""}).json()["tokens"]["text"] == 1, "nothing but <s>"


def test_images_apart_share_no_token_and_unknown_sizes_count_as_the_largest(client: TestClient) -> None:
    turns = [*chat("40x30")["messages"], {"role": "assistant", "content": "yes"}, *chat("https://a.b/c.png")["messages"]]
    plan = client.post("/playground/plan", json={"messages": turns}).json()
    assert plan["tokens"]["images"] == 2 * (4 + 2)
    assert (plan["images"][1]["width"], plan["images"][1]["height"]) == (72, 72)
    assert plan["fits"]
    assert not client.post("/playground/plan", json={"messages": turns, "max_tokens": 512}).json()["fits"]


def test_named_images_are_found_among_those_of_the_texts(client: TestClient) -> None:
    asked = chat("30x50 (1)")
    asked["messages"][0]["content"].insert(0, {"type": "text", "text": "![](https://a.b/c.png) ![](30x50 (1)) and"})
    images = client.post("/playground/plan", json=asked).json()["images"]
    assert [image["name"] for image in images] == [None, None, "1"]
    assert (images[2]["width"], images[2]["height"]) == (30, 50)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"messages": []}, "messages is empty"),
        ({}, "either `messages` or `prompt`"),
        ({**chat("1x1"), "prompt": "a"}, "either `messages` or `prompt`"),
        ({"prompt": "an <image>"}, "stands for an image"),
        ({"prompt": "![](1x1)" * 65}, "over the limit of 64"),
        ({"prompt": ["a"]}, "prompt"),
        (chat(max_image_size=73), "must be from 1 to 72"),
        (chat(max_tokens=0), "max_tokens"),
        (chat(other=1), "other"),
        (chat(*["1x1"] * 65), "over the limit of 64"),
        (chat("1x1", do_image_splitting=True), "split"),
    ],
)
def test_what_cannot_be_planned_is_told(client: TestClient, body: dict[str, Any], told: str) -> None:
    refused = client.post("/playground/plan", json=body)
    assert refused.status_code == 422
    assert told in refused.json()["error"]
