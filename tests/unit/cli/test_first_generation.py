"""Every command on a checkpoint of the first generation, and what its users are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import idefics
from idefics.api import Idefics
from idefics.errors import InputError, OptionError
from idefics.inputs import ModelInputs, pixels_of
from idefics.weights.create import create_checkpoint
from idefics.weights.load import load_model
from idefics.weights.save import save_model

LARGER = 45  # three patches of 14 and a rest, where the model has two

EXIF_ORIENTATION, UPSIDE_DOWN = 0x0112, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return create_checkpoint("tiny-random-idefics", tmp_path_factory.mktemp("first") / "tiny")


@pytest.fixture(scope="module")
def model(folder: Path) -> Idefics:
    return idefics.load(folder)


def _shots(folder: Path) -> Path:
    rows = []
    for number, color in enumerate(("red", "green", "blue")):
        Image.new("RGB", (40, 40), color).save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "question": "Which color?", "answer": color})
    (folder / "shots.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "shots.jsonl"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("generate", "-m", "MODEL", "-i", "IMAGE", "--max-new-tokens", "3", "What?"), None),
        (("generate", "-m", "MODEL", "-i", "IMAGE", "--max-new-tokens", "3", "--no-stream", "What?"), None),
        (("generate", "-m", "MODEL", "-i", "IMAGE", "--max-new-tokens", "3", "--json", "What?"), '"image": 1,'),
        *(
            (
                (
                    "generate",
                    "-m",
                    "MODEL",
                    "-i",
                    "IMAGE",
                    "--max-new-tokens",
                    "2",
                    "--shots",
                    "SHOTS",
                    "--shots-by",
                    by,
                    "What?",
                ),
                "",
            )
            for by in ("order", "random", "nearest")
        ),
        (("chat", "-m", "MODEL", "--max-new-tokens", "2"), ""),
        (("info", "MODEL"), "squares of 28 pixels"),
        (("info", "MODEL", "--json"), '"resampler": "2 layers, 8 latents per image"'),
        (("generate", "-m", "MODEL", "-i", "IMAGE", "--image-size", "45", "--max-new-tokens", "3", "What?"), ""),
        (("plan", "MODEL", "--image", "640x480", "--image-size", "45"), "45x45"),
        (("plan", "MODEL", "--image", "640x480", "--gpus", "2x1"), "cuda:1"),
        (("plan", "MODEL", "--image", "640x480", "--gpus", "2x1", "--json"), '"fits": true'),
        (("init", "tiny-random-idefics", "OUT"), "new"),
    ],
    ids=lambda value: " ".join(word for word in value if word not in ("-m", "MODEL")) if isinstance(value, tuple) else "",
)
def test_every_command(
    run: Any, folder: Path, model: Idefics, picture: Path, tmp_path: Path, words: tuple[str, ...], found: str | None
) -> None:
    stands = {"MODEL": folder, "IMAGE": picture, "SHOTS": _shots(tmp_path), "OUT": tmp_path / "new"}
    ran = run(*(stands.get(word, word) for word in words), stdin=f"{picture} What?\nAnd?\n")
    assert (ran.code, ran.err) == (0, ""), ran
    answer = model.generate("What?", str(picture), max_new_tokens=3) + "\n"
    assert ran.out == answer if found is None else found in ran.out


def test_score(model: Idefics, picture: Path) -> None:
    scores = model.score("What color is it?", [" red", " blue"], str(picture))
    assert [len(score.token_logprobs) > 0 for score in scores] == [True, True]
    assert scores[0].logprob != scores[1].logprob


def test_the_command_line_shows_the_pixels_that_python_shows(run: Any, folder: Path, model: Idefics, tmp_path: Path) -> None:
    """Alpha goes on white and the orientation in EXIF is ignored, whichever way the image comes."""
    torn = Image.effect_noise((60, 40), 90).convert("RGBA")
    torn.putalpha(Image.linear_gradient("L").resize(torn.size))
    turned = Image.effect_noise((60, 40), 90).convert("RGB")
    exif = turned.getexif()
    exif[EXIF_ORIENTATION] = UPSIDE_DOWN
    torn.save(tmp_path / "torn.png")
    turned.save(tmp_path / "turned.jpg", exif=exif)
    seen: list[torch.Tensor] = []
    inputs = type(model.processor).inputs

    def spy(self: Any, *given: Any, **options: Any) -> ModelInputs:
        made = inputs(self, *given, **options)
        seen.append(torch.stack([pixels_of(image) for image in made.images_CHW]))
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model.processor), "inputs", spy)
        for name in ("torn.png", "turned.jpg"):
            model.generate("What?", str(tmp_path / name), max_new_tokens=1)
            assert run("generate", "-m", folder, "-i", tmp_path / name, "--max-new-tokens", "1", "What?").code == 0
            (tmp_path / "s.jsonl").write_text(json.dumps({"image": name, "question": "a", "answer": "b"}))
            shown = ("--shots", tmp_path / "s.jsonl", "-i", tmp_path / name)
            assert run("generate", "-m", folder, *shown, "--max-new-tokens", "1", "What?").code == 0
            python, line, shots = seen
            assert torch.equal(python, line)
            assert torch.equal(shots, torch.cat((python, python)))
            seen.clear()


def test_warnings_are_a_line_each(run: Any, folder: Path, tmp_path: Path, picture: Path) -> None:
    words = ("-i", picture, "--max-new-tokens", "1", "What?")
    asked = run("generate", "-m", folder, "--dtype", "float16", *words)
    stored = load_model(folder).half()
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    save_model(stored, tmp_path)
    kept = run("generate", "-m", tmp_path, "--json", *words)
    assert asked.code == kept.code == 0
    for ran, said in ((asked, "overflow in float16"), (kept, "loaded as bfloat16 instead")):
        assert ran.err.count("\n") == 1
        assert ran.err.startswith("warning: ")
        assert said in ran.err
    assert json.loads(kept.out)["dtype"] == "bfloat16"


@pytest.mark.parametrize("words", [("generate", "What?"), ("chat",), ("verify",), ("demo",)])
def test_processes_that_would_each_load_the_whole_model(
    run: Any, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    ran = run(*words)
    assert (ran.code, ran.out) == (1, "")
    assert "--tensor-parallel 2" in ran.err
    if words[0] == "generate":
        monkeypatch.setenv("RANK", "1")
        assert run(*words).err == ""


@pytest.mark.parametrize(
    ("gpus", "each"),
    [("4x80", 80 * 2**30), ("4x80GB", 80 * 10**9), ("4x80GiB", 80 * 2**30), ("4X80G", 80 * 2**30), ("4x0.5TB", 5 * 10**11)],
)
def test_sizes_of_gpus(run: Any, gpus: str, each: int) -> None:
    record = json.loads(run("plan", "tiny-random-idefics", "--gpus", gpus, "--json").out)
    assert record["available_bytes"] == 4 * each
    assert {share["size"] for share in record["gpus"]["bfloat16 / float16"]} == {each}


@pytest.mark.parametrize("gpus", ["80", "0x80", "x80", "4x", "4x80XB", "4x-1", "ax80"])
def test_sizes_of_gpus_that_are_none(run: Any, gpus: str) -> None:
    ran = run("plan", "idefics-9b", "--gpus", gpus)
    assert (ran.code, ran.out) == (1, "")
    assert "--gpus" in ran.err


def test_a_cut_fits_only_if_each_gpu_holds_its_share(run: Any) -> None:
    def planned(*words: str) -> tuple[Any, str]:
        return json.loads(run("plan", "idefics-9b", *words, "--json").out), run("plan", "idefics-9b", *words).out

    record, shown = planned("--gpus", "2x10GiB", "--batch", "4", "--max-new-tokens", "2000")
    full, half = record["bytes"]["float32"], record["bytes"]["bfloat16 / float16"]
    assert full["fits"] is False, "cannot even be cut"
    assert "do not fit" in record["gpus"]["float32"]
    assert half["total"] > 2 * 10 * 2**30 or half["fits"] is False
    shares = record["gpus"]["bfloat16 / float16"]
    assert any(share["free"] < 0 for share in shares)
    assert "MISSING" in shown
    record, shown = planned("--gpus", "2x24", "--image", "640x480", "--max-new-tokens", "100")
    assert record["bytes"]["bfloat16 / float16"]["fits"] is True
    assert "MISSING" not in shown


def test_images_of_another_size_are_seen_as_by_the_face(folder: Path) -> None:
    picture = Image.effect_noise((60, 50), 90).convert("RGB")
    model = idefics.load(folder, image_size=LARGER)
    processor = idefics.IdeficsProcessor.from_pretrained(folder, image_size=LARGER)
    face = idefics.IdeficsForVisionText2Text.from_pretrained(folder)
    prompt = "<image>What is this"
    inputs = processor(text=prompt, images=[picture], return_tensors="pt")
    assert inputs.pixel_values.shape[-2:] == (LARGER, LARGER)
    made = face.generate(**inputs, interpolate_pos_encoding=True, max_new_tokens=4, do_sample=False)
    options: dict[str, Any] = {"max_new_tokens": 4, "temperature": 0}
    answer = model.generate(prompt, picture, details=True, **options)
    assert list(answer.token_ids) == made[0, inputs.input_ids.shape[1] :].tolist()
    logits = face(**inputs, interpolate_pos_encoding=True).logits
    first = logits[0, -1].log_softmax(-1)[answer.token_ids[0]].item()
    assert answer.logprobs is not None
    assert answer.logprobs[0] == pytest.approx(first, abs=1e-4)
    assert "".join(model.stream(prompt, picture, **options)) == answer.text
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    assert model.chat(messages, picture, details=True, **options).image_tokens == 1
    scored = model.score(prompt, [answer.text], picture)[0]
    token = model.processor.tokenizer.encode(prompt + answer.text)[len(model.processor.tokenizer.encode(prompt))]
    assert scored.token_logprobs[0] == pytest.approx(logits[0, -1].log_softmax(-1)[token].item(), abs=1e-4)


def test_another_size_of_images_is_refused_where_it_cannot_be(folder: Path) -> None:
    with pytest.raises(OptionError, match=r"image_size = 45: this model's images keep their shapes; max_image_size bounds"):
        idefics.load(image_size=LARGER)
    for unusable in (0, True, 2.5):
        with pytest.raises(OptionError, match="must be a positive whole number of pixels"):
            idefics.load(folder, image_size=unusable)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no image smaller than a patch of 14x14"):
        idefics.load(folder, image_size=5).generate("What?", Image.new("RGB", (30, 30)))
