"""Small things that stand for large ones: configs, tokenizers, models and whole checkpoints of a few kilobytes.

The tokenizer is of the published kind (byte-fallback BPE, `▁` before every segment, special tokens that end a segment)
with bytes and letters for a vocabulary, so that any text can be written and ids stay below 400.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import AddedToken, decoders, models, normalizers, processors
from tokenizers import Tokenizer as Backend

from idefics.config import Idefics2Config, PerceiverConfig, TextConfig, VisionConfig
from idefics.model.idefics2 import Idefics2
from idefics.model.layers.attention import Backend as Attention
from idefics.processor.tokenizer import Tokenizer
from idefics.weights.init import initialize
from idefics.weights.save import save_model

if TYPE_CHECKING:  # what handles pictures is imported where it is used: machines for tests/gpu may lack Pillow
    from idefics.api import Idefics
    from idefics.processor.idefics2 import Idefics2Processor

PATCH = 6
LATENTS = 4
WORDS = ("▁a", "▁the", "▁red", "▁blue", "▁yes", "▁no", "▁In", "▁it", "▁is", "▁image")
FAKE, IMAGE, END = "<fake_token_around_image>", "<image>", "<end_of_utterance>"


def tiny_tokenizer(*, end_of_utterance: bool = True) -> Tokenizer:
    """A tokenizer of the Mistral kind: `<unk> <s> </s>`, bytes, letters, a few words, then Idefics2's own tokens."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *(chr(code) for code in range(33, 127))]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        for end in range(2, len(word) + 1):
            pair = (word[: end - 1], word[end - 1])
            if pair not in merges:
                merges.append(pair)
                pieces.append(word[:end])
    pieces = list(dict.fromkeys(pieces))
    model = models.BPE(
        {piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    backend = Backend(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    added = ["<unk>", "<s>", "</s>", FAKE, IMAGE, *([END] if end_of_utterance else [])]
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in added])
    config = {
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>", "padding_side": "left",
        "clean_up_tokenization_spaces": False, "tokenizer_class": "PreTrainedTokenizerFast",
    }  # fmt: skip
    return Tokenizer(backend, config)


def tiny_config(*, end_of_utterance: bool = True, side: int = 12, **text: Any) -> Idefics2Config:
    """A config of some 60,000 parameters that fits `tiny_tokenizer`; grouped heads, and a window shorter than prompts.

    Args:
        end_of_utterance: as in `tiny_tokenizer`.
        side: of the table of patch positions.
        text: fields of `TextConfig` to change.
    """
    tokenizer = tiny_tokenizer(end_of_utterance=end_of_utterance)
    fields: dict[str, Any] = dict(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=512, rms_norm_eps=1e-5, sliding_window=24, pad_token_id=0,
    )  # fmt: skip
    fields.update(text)
    return Idefics2Config(
        vision_config=VisionConfig(
            hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=3, image_size=side * PATCH,
            patch_size=PATCH,
        ),
        perceiver_config=PerceiverConfig(
            resampler_n_latents=LATENTS, resampler_depth=2, resampler_n_heads=4, resampler_head_dim=8, num_key_value_heads=2,
            hidden_size=fields["hidden_size"], rms_norm_eps=1e-5,
        ),
        text_config=TextConfig(**fields),
        image_token_id=int(tokenizer.backend.token_to_id(IMAGE)),
    )  # fmt: skip


def tiny_model(
    config: Idefics2Config | None = None,
    *,
    seed: int = 0,
    std: float = 0.02,
    dtype: torch.dtype = torch.float32,
    backend: Attention = "sdpa",
) -> Idefics2:
    """A model with random weights; a larger `std` makes every part matter to the output, as training does."""
    model = Idefics2(config or tiny_config(), backend=backend)
    initialize(model, seed=seed, std=std)
    return model.to(dtype).eval()


def tiny_processor(*, end_of_utterance: bool = True, do_image_splitting: bool = False) -> Idefics2Processor:
    """The processor that belongs to `tiny_config`."""
    from idefics.processor.idefics2 import Idefics2Processor
    from idefics.processor.image import ImageProcessor

    size = {"shortest_edge": 4 * PATCH, "longest_edge": 12 * PATCH}
    return Idefics2Processor(
        ImageProcessor(size=size, do_image_splitting=do_image_splitting),
        tiny_tokenizer(end_of_utterance=end_of_utterance),
        image_seq_len=LATENTS,
    )


def generation_defaults(processor: Idefics2Processor) -> dict[str, Any]:
    """What the published `generation_config.json` holds, for this tokenizer."""
    ends = [2, *([processor.end_of_utterance_id] if processor.end_of_utterance_id is not None else [])]
    bad = [[processor.fake_image_token_id], [processor.image_token_id]]
    return {"bos_token_id": 1, "eos_token_id": ends, "pad_token_id": 0, "bad_words_ids": bad}


def tiny_idefics(
    *,
    seed: int = 0,
    std: float = 0.02,
    dtype: torch.dtype = torch.float32,
    backend: Attention = "sdpa",
    end_of_utterance: bool = True,
    **config: Any,
) -> Idefics:
    """What `idefics.load` would return for a tiny checkpoint, made without files; further options as in `tiny_config`."""
    from idefics.api import Idefics

    made = dataclasses.replace(
        tiny_config(end_of_utterance=end_of_utterance, **config), dtype=str(dtype).removeprefix("torch.")
    )
    processor = tiny_processor(end_of_utterance=end_of_utterance)
    model = tiny_model(made, seed=seed, std=std, dtype=dtype, backend=backend)
    return Idefics("tiny", model, processor, generation_defaults(processor))


def write_tiny_checkpoint(folder: Path, **options: Any) -> Path:
    """Writes such a checkpoint in the published layout; options as in `tiny_idefics`."""
    made = tiny_idefics(**options)
    save_model(made.model, folder)
    made.processor.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(made.defaults, indent=2), encoding="utf-8")
    return folder
