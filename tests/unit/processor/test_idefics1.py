from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mistral_tokenizer
from golden.make_processor_golden import picture
from idefics.config.presets import preset
from idefics.errors import ConfigError, ImageCountError, ImageError, InputError, OptionError, TemplateError
from idefics.inputs import pixels_of
from idefics.processor import fetch
from idefics.processor.families import load_processor, processor_class
from idefics.processor.idefics1 import IdeficsProcessor
from idefics.processor.image_mask import mask_of
from idefics.processor.square_image import CLIP_MEAN, SquareImageProcessor
from idefics.processor.tokenizer import Tokenizer

F, IMG, END = "<fake_token_around_image>", "<image>", "<end_of_utterance>"
A, J, K = picture(9, 9), picture(20, 12), picture(12, 20)
URL = "https://example.org/a.png"


@pytest.fixture(scope="module")
def files() -> Path:
    return mistral_tokenizer.checkpoint_of_2023()


@pytest.fixture(scope="module")
def processor(files: Path) -> IdeficsProcessor:
    return IdeficsProcessor.from_folder(files, image_size=28)


@pytest.fixture(scope="module")
def base() -> IdeficsProcessor:
    return IdeficsProcessor.from_folder(mistral_tokenizer.checkpoint_of_2023(end_of_utterance=False), image_size=28)


def same(one: Any, other: Any) -> bool:
    return list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


def spelled(processor: IdeficsProcessor, out: Any) -> list[str]:
    return [text.replace(F, "(").replace(IMG, "i") for text in processor.batch_decode(out.input_ids)]


def test_urls_are_fetched_and_nothing_else_is(processor: IdeficsProcessor, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, png = [], io.BytesIO()
    J.save(png, "PNG")

    def download(url: str, _timeout: float | None) -> bytes:
        asked.append(url)
        return png.getvalue()

    monkeypatch.setattr(fetch, "_download", download)
    mixed = processor([f"  {URL} ", "See https://example.org/b.png here", "https://", "HTTP://example.org/c"])
    assert asked == [URL, "HTTP://example.org/c"]
    assert same(mixed, processor([J, "See https://example.org/b.png here", "https://", J]))
    asked.clear()
    processor.inputs([URL], [[]])
    processor(text=URL, images=[[]])
    processor(text=[URL, "b"], images=[A, J])
    assert not asked, "a text given apart from its images is a text"
    for fetched in (processor.image_processor.fetch_images(URL), *processor.image_processor.fetch_images([URL])):
        assert np.array_equal(np.asarray(fetched), np.asarray(J))


def test_a_url_that_fails_names_itself(processor: IdeficsProcessor, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(url: str, _timeout: float | None) -> bytes:
        raise ImageError(f"{url} could not be fetched: HTTP 404")

    monkeypatch.setattr(fetch, "_download", download)
    with pytest.raises(ImageError, match=rf"{URL} could not be fetched"):
        processor(["User:", URL, "Who?"])
    with pytest.raises(ImageError, match=r"ftp://example\.org/a\.png: ftp: URLs are not read"):
        processor(["ftp://example.org/a.png"])


def test_anything_that_is_an_image(processor: IdeficsProcessor, tmp_path: Path) -> None:
    J.save(tmp_path / "j.png")
    data = (tmp_path / "j.png").read_bytes()
    expected = processor(["a", J])
    for given in (tmp_path / "j.png", data, np.asarray(J)):
        assert same(processor(["a", given]), expected)


def test_exif_is_ignored_and_alpha_is_laid_on_white(processor: IdeficsProcessor, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    J.save(tmp_path / "turned.png", exif=exif)
    assert same(processor([tmp_path / "turned.png"]), processor([J]))
    clear = picture(9, 9, "RGBA")
    clear.putalpha(0)
    white = (1 - torch.tensor(CLIP_MEAN)) / torch.tensor(processor.image_processor.image_std)
    assert torch.allclose(processor([clear]).pixel_values, white[:, None, None].expand(1, 1, 3, 28, 28))


@pytest.mark.parametrize(
    ("text", "images", "expected"),
    [
        # with placeholders the images stand where they are written
        (f"a{IMG}b{IMG}", [A, J], ["a(i(b(i("]), (f"{IMG}{IMG} b", [A, J], ["(i(i(b"]), ([f"a{IMG}", "b"], [A], ["a(i(", "b"]),
        ([f"a{IMG}", f"{IMG}{IMG}"], [[A], [J, K]], ["a(i(", "(i(i("]), (f"{F}{IMG}{F}{IMG}{F}b", [A, J], ["(i(i(b"]),
        (f"<s>a{IMG}", A, ["a(i("]),
        # without, where transformers 5 puts them
        ("a", A, ["(i(a"]), (["a", "b"], [A, J], ["(i(a", "(i(b"]), (["a", "b"], [[A, J], [K]], ["a(i(i(", "b(i("]),
        (["a", "b"], [[A, J], None], ["a(i(i(", "b"]),
        # none at all
        ("a", [], ["a"]), (["a", "b"], [[], []], ["a", "b"]), ("a", None, ["a"]),
    ],
)  # fmt: skip
def test_images_apart(processor: IdeficsProcessor, text: Any, images: Any, expected: list[str]) -> None:
    out = processor(text=text, images=images)
    found = [row.replace("<unk>", "").replace(" ", "").removeprefix("<s>") for row in spelled(processor, out)]
    assert found == expected
    assert int((out.pixel_values.flatten(2).abs().amax(2) > 0).sum()) == "".join(expected).count("i")


def test_text_alone_is_prompts(processor: IdeficsProcessor) -> None:
    assert same(processor(text=["a", A, "b"]), processor(["a", A, "b"]))
    assert same(processor([["a", A], ["b"]]), processor((("a", A), ("b",))))


def test_shapes_and_empty_places(processor: IdeficsProcessor) -> None:
    out = processor([["one", A, J], ["two"], [K]])
    assert out.pixel_values.shape == (3, 2, 3, 28, 28)
    assert [[bool(image.any()) for image in row] for row in out.pixel_values] == [[True, True], [False, False], [True, False]]
    none = processor(["no image"])
    assert none.pixel_values.shape == (1, 1, 3, 28, 28)
    assert none.image_attention_mask.dtype == torch.bool
    assert none.image_attention_mask.shape == (1, none.input_ids.shape[1], 1)


def test_forms_of_tensors(processor: IdeficsProcessor) -> None:
    pt = processor(["a", A])
    for kind, ids in ((None, list), ("np", np.ndarray)):
        other = processor(["a", A], return_tensors=kind)
        assert isinstance(other.input_ids, ids)
        assert isinstance(other.pixel_values, np.ndarray)
        assert all(np.array_equal(other[key], pt[key]) for key in pt)


def test_inputs_are_the_calls_without_padding(processor: IdeficsProcessor) -> None:
    prompts, images = [f"a{IMG}{IMG}</s>b{IMG}c", " d ", f"{IMG}"], [[A, J, K], [], [J]]
    for side in ("left", "right"):
        batch = processor.inputs(prompts, images, padding_side=side)
        called = processor(text=prompts, images=images, padding_side=side)
        assert torch.equal(batch.input_ids_BT, called.input_ids)
        assert torch.equal(batch.attention_mask_BT, called.attention_mask)
        assert batch.images_per_row == (3, 0, 1)
        assert torch.equal(
            torch.stack([pixels_of(image) for image in batch.images_CHW]), called.pixel_values[[0, 0, 0, 2], [0, 1, 2, 0]]
        )
        assert batch.seen_BT is not None
        real = batch.attention_mask_BT == 1
        assert torch.equal(mask_of(batch.seen_BT, 3)[real], called.image_attention_mask[real])
        assert set(batch.seen_BT[~real].tolist()) == {-1}
    for i in range(3):
        alone, row = processor.inputs(prompts[i : i + 1], images[i : i + 1]), batch.row(i)
        assert torch.equal(alone.input_ids_BT[0], row.input_ids_BT[row.attention_mask_BT == 1])
        assert alone.seen_BT is not None
        assert row.seen_BT is not None
        assert torch.equal(alone.seen_BT[0], row.seen_BT[row.attention_mask_BT == 1])


def test_expansion_begins_with_one_bos_whatever_the_files_say(files: Path, tmp_path: Path) -> None:
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "add_bos_token": False}))
    for folder, lead in ((files, ""), (tmp_path, "<s>")):
        processor = IdeficsProcessor.from_folder(folder, image_size=28)
        for prompt in (f"a{IMG}{IMG}b", f"<s>a{IMG}{IMG}b", f"a{F}{IMG}{F}{IMG}{F}b"):
            assert processor.expand(prompt) == f"{lead}a{F}{IMG}{F}{IMG}{F}b"
            ids = processor.inputs([prompt], [[A, J]]).input_ids_BT
            assert torch.equal(ids, processor(["a", A, J, "b"]).input_ids)
            assert ids.tolist()[0].count(1) == 1


def test_truncation_drops_the_images_whose_tokens_go(processor: IdeficsProcessor) -> None:
    prompt = ["one two three", A, "four", J, "five"]
    whole = processor(prompt)
    cut = processor(prompt, truncation=True, max_length=8)
    assert cut.input_ids.shape == (1, 8)
    assert torch.equal(cut.pixel_values[0, 0], whole.pixel_values[0, 0])
    assert not cut.pixel_values[0, 1].any()
    assert int(cut.image_attention_mask.sum()) > 0
    left = IdeficsProcessor(processor.image_processor, Tokenizer(processor.tokenizer.backend, processor.tokenizer.config))
    left.tokenizer.truncation_side = "left"
    end = left(prompt, truncation=True, max_length=4)
    assert torch.equal(end.pixel_values[0, 0], whole.pixel_values[0, 1])
    assert processor(prompt, padding=False, max_length=5).input_ids.shape == (1, 5), "as 4.40: then a limit alone truncates"
    with pytest.raises(OptionError, match=r"max_length = 5 has no effect with truncation=None and padding='longest'"):
        processor(prompt, max_length=5)
    with pytest.raises(OptionError, match="truncation = 'only_first'"):
        processor(prompt, truncation="only_first", max_length=5)  # type: ignore[arg-type]


def test_transform(processor: IdeficsProcessor) -> None:
    seen = []

    def transform(image: Image.Image) -> torch.Tensor:
        seen.append(image.size)
        return torch.full((3, 5, 4), float(image.width))

    out = processor([["a", A, J], ["b"], [K]], transform=transform)
    assert seen == [(9, 9), (20, 12), (12, 20)]
    assert out.pixel_values[..., 0, 0, 0].tolist() == [[9, 20], [0, 0], [12, 0]]
    assert out.pixel_values.shape == (3, 2, 3, 5, 4)
    with pytest.raises(InputError, match=r"several shapes: \(3, 9, 1\), \(3, 20, 1\)"):
        processor(["a", A, J], transform=lambda image: torch.zeros(3, image.width, 1))
    with pytest.raises(InputError, match="several shapes"):
        processor([["a", A], [J]], transform=lambda image: torch.zeros(3, image.width, 1))
    with pytest.raises(OptionError, match="image_size: no effect beside a transform"):
        processor.image_processor(A, image_size=9, transform=transform)


def test_wrong_prompts_are_named(processor: IdeficsProcessor, base: IdeficsProcessor, tmp_path: Path) -> None:
    for prompts, message in (
        ("a text", r"prompts must be a list of texts, URLs and images, or a list of such lists, not str"),
        (A, "prompts must be a list.*not Image"), ([], "prompts is empty"), ([["a"], []], r"prompts\[1\] is empty"),
        (["a", 3], r"prompts\[1\] is int"), ([["a"], ["b", None]], r"prompts\[1\]\[1\] is NoneType"),
        ([["a"], "b"], r"prompts\[1\] is str among lists"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            processor(prompts)
    for options, message in (
        ({}, "give prompts"), ({"images": A}, "give prompts"), ({"prompts": ["a"], "text": ["a"]}, "two names"),
        ({"text": ["a", A], "images": [J]}, "text must be a text or a list of texts"),
        ({"text": ["a", "b"], "images": [J]}, r"2 text\(s\) but 1 image\(s\)"),
        ({"text": "a", "images": [A, J]}, r"1 text\(s\) but 2 image\(s\)"),
        ({"text": ["a"], "images": [[A], [J]]}, r"1 text\(s\) but 2 rows of images"),
        ({"text": ["a", "b"], "images": [A, [J]]}, r"images\[0\] is a value of type Image"),
        ({"prompts": ["a"], "return_tensors": "tf"}, "return_tensors = 'tf'"),
        ({"prompts": [["a"], ["b c d"]], "padding": False}, "rows of several lengths"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            processor(**options)
    with pytest.raises(ImageError, match=r"none\.png does not exist"):
        processor(["a", tmp_path / "none.png"])
    with pytest.raises(OptionError, match="no '<end_of_utterance>'"):
        base(["a", "b"], add_end_of_utterance_token=True)
    with pytest.raises(OptionError, match=r"add_eos = True is not offered; there are .*add_eos_token, .*image_size"):
        processor(["a"], add_eos=True)


@pytest.mark.parametrize(
    ("options", "placeholders", "images", "where"),
    [
        ({"prompts": [f"a{IMG}"]}, 1, 0, "the prompt"), ({"prompts": [f"a{IMG}", A]}, 2, 1, "the prompt"),
        ({"prompts": [["a", A], [f"{IMG}{IMG}", J]]}, 3, 1, "prompt 2"),
        ({"text": f"a{IMG}", "images": [A, J]}, 1, 2, "the prompt"),
        ({"text": f"a{IMG}{IMG}", "images": [A]}, 2, 1, "the prompt"), ({"text": f"{IMG}"}, 1, 0, "the prompt"),
        ({"text": [f"a{IMG}", "b"], "images": [[A], [J]]}, 0, 1, r"text\[1\]"),
    ],
)  # fmt: skip
def test_counts_that_differ_name_both(
    processor: IdeficsProcessor, options: dict[str, Any], placeholders: int, images: int, where: str
) -> None:
    with pytest.raises(ImageCountError, match=rf"^{where} has {placeholders} image placeholder.*but {images} image"):
        processor(**options)


def test_inputs_count_too(processor: IdeficsProcessor) -> None:
    with pytest.raises(ImageCountError, match=r"text\[1\] has 1 image placeholder.*but 0 image"):
        processor.inputs(["a", IMG], [[], []])
    with pytest.raises(InputError, match="must be a list of texts"):
        processor.inputs(None, [[]])  # type: ignore[arg-type]


MESSAGES = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " What?"}]}]


def test_chats(processor: IdeficsProcessor, base: IdeficsProcessor) -> None:
    prompt = f"User:{IMG} What?{END}\nAssistant:"
    assert processor.apply_chat_template(MESSAGES, add_generation_prompt=True) == prompt
    out = processor.apply_chat_template(
        MESSAGES, add_generation_prompt=True, tokenize=True, images=A, return_dict=True, return_tensors="pt"
    )
    batch = processor.inputs([prompt], [[A]])
    assert torch.equal(out.input_ids, batch.input_ids_BT)
    ids = processor.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=True, images=A)
    assert ids == batch.input_ids_BT[0].tolist()
    text = [{"role": "user", "content": " a  "}]
    assert processor.apply_chat_template(text, chat_template="{{ bos_token }} a", tokenize=True) == [1, 28705, 264]
    with pytest.raises(TemplateError, match="no chat template"):
        base.apply_chat_template(MESSAGES)


def test_settings_of_a_config(processor: IdeficsProcessor) -> None:
    config = preset("idefics-9b")
    assert IdeficsProcessor.images_for(config) == SquareImageProcessor()
    assert IdeficsProcessor.for_config(preset("tiny-random-idefics"), processor.tokenizer).image_processor.image_size == 28
    assert (IdeficsProcessor.tokens_of(config), processor.tokens_per_sub_image) == (1, 1)
    assert processor.with_small_images(config) is processor
    for ask in (IdeficsProcessor.images_for, IdeficsProcessor.tokens_of, processor.with_small_images):
        with pytest.raises(ConfigError, match="model_type 'idefics2' is none for IdeficsProcessor"):
            ask(preset("idefics2-8b"))
    assert processor_class("idefics") is IdeficsProcessor
    with pytest.raises(ConfigError, match="'flamingo' is no model"):
        processor_class("flamingo")


def test_nothing_to_adjust(processor: IdeficsProcessor) -> None:
    assert processor.adjusted(split=False).image_processor is processor.image_processor
    with pytest.raises(OptionError, match=r"max_image_size = 448: .*always squares of 28x28"):
        processor.adjusted(max_image_size=448)
    with pytest.raises(OptionError, match="never split"):
        processor.adjusted(split=True)


def test_overrides(files: Path) -> None:
    mean = (0.1, 0.2, 0.3)
    changed = IdeficsProcessor.from_folder(files, image_size=42, image_mean=mean, padding_side="right", chat_template="x")
    assert changed.image_processor == SquareImageProcessor(image_size=42, image_mean=mean)
    assert (changed.tokenizer.padding_side, changed.chat_template) == ("right", "x")
    for name, value in (("image_seq_len", 3), ("do_image_splitting", False), ("size", {})):
        with pytest.raises(OptionError, match=f"unknown processor option.*: {name}; there are chat_template"):
            IdeficsProcessor.from_folder(files, **{name: value})
    with pytest.raises(OptionError, match="image_size = 0"):
        IdeficsProcessor.from_folder(files, image_size=0)
    with pytest.raises(OptionError, match="image_std"):
        IdeficsProcessor.from_folder(files, image_std=(0.0, 1.0, 1.0))


def test_a_folder_of_the_other_family_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"processor_class = 'Idefics2Processor', not 'IdeficsProcessor'") as caught:
        IdeficsProcessor.from_folder(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"processor_class": "ViltProcessor"}, "processor_class = 'ViltProcessor', not 'IdeficsProcessor'"),
        ({"image_processor_type": "Idefics2ImageProcessor"}, "image_processor_type = 'Idefics2ImageProcessor', not"),
        ({"do_image_splitting": True}, "does not know and so cannot honour: do_image_splitting = True"),
        ({"do_resize": False}, "do_resize = False; this family"), ({"image_num_channels": 1}, "image_num_channels = 1"),
        ({"size": {"height": 9, "width": 8}, "image_size": None}, "size = .* is not the square of image_size = 9"),
        ({"size": {"shortest_edge": 9}, "image_size": None}, "size = .* is not the square"),
        ({"image_size": "224"}, "image_size = '224'"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_honoured(files: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ConfigError, match=message):
        IdeficsProcessor.from_folder(tmp_path)


def test_means_that_a_file_leaves_out_are_clips(files: Path, tmp_path: Path) -> None:
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    (tmp_path / "preprocessor_config.json").write_text('{"image_size": 224, "image_mean": null}')
    assert IdeficsProcessor.from_folder(tmp_path).image_processor == SquareImageProcessor()


def test_tokens_that_only_the_files_of_2023_add(files: Path, tmp_path: Path) -> None:
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < 32000]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    processor = IdeficsProcessor.from_folder(tmp_path, image_size=28)
    ids = processor(["a", A, "b", "c"]).input_ids[0]
    assert torch.equal(ids, IdeficsProcessor.from_folder(files, image_size=28)(["a", A, "b", "c"]).input_ids[0])
    assert processor.decode(ids, skip_special_tokens=True) == "a b c"
    assert processor.tokenizer.pad_token == "<unk>", "null in tokenizer_config.json, named in special_tokens_map.json"


def test_saving(processor: IdeficsProcessor, tmp_path: Path) -> None:
    (tmp_path / "processor_config.json").write_text('{"image_processor": {"image_size": 9}}')
    processor.save_pretrained(str(tmp_path))
    again = IdeficsProcessor.from_folder(tmp_path)
    assert again.image_processor == processor.image_processor
    assert again.chat_template == processor.chat_template
    assert same(again(["a", A, "b"]), processor(["a", A, "b"]))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "chat_template.jinja", "preprocessor_config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    (tmp_path / "config.json").write_text('{"model_type": "idefics"}')
    assert isinstance(load_processor(tmp_path), IdeficsProcessor)


def test_the_image_processor_alone(processor: IdeficsProcessor) -> None:
    images = processor.image_processor
    assert images([A, J]).shape == (2, 3, 28, 28)
    assert torch.equal(images(A), images.preprocess([A]))
    assert len(images([])) == 0
    assert images(A, image_size=14).shape == (1, 3, 14, 14)
    assert torch.allclose(images(A, image_mean=(0.0,) * 3, image_std=(1.0,) * 3).amax(), torch.tensor(1.0), atol=0.1)
    with pytest.raises(ImageError, match="no pixels"):
        images.processed_sizes(0, 3)


def test_a_tokenizer_without_a_beginning_is_refused() -> None:
    backend = mistral_tokenizer.backend()
    with pytest.raises(ConfigError, match="no bos_token"):
        IdeficsProcessor(SquareImageProcessor(), Tokenizer(backend))
    tokens = Tokenizer(type(backend).from_str(backend.to_str().replace(F, "<other>")))
    with pytest.raises(ConfigError, match=f"no '{F}'"):
        IdeficsProcessor(SquareImageProcessor(), tokens)
