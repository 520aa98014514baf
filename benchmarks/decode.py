"""The decoder of Idefics2-8B in bfloat16: tokens one by one after a context, and a prompt at once. True layer sizes.

python benchmarks/decode.py
"""

from __future__ import annotations

import argparse

import torch
import transformers
from torch import Tensor

from idefics.config import Idefics2Config
from idefics.engine.static_cache import StaticKVCache
from idefics.machine.ceilings import Ceilings, ceilings
from measure import Case, compare, report
from same_weights import both, config, difference

CONTEXT, PROMPT = 500, 600


def weights(made: Idefics2Config) -> int:
    """Matrix elements of the decoder's layers, the head not among them."""
    text = made.text_config
    inner, keys = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    layer = text.hidden_size * (2 * inner + 2 * keys + 3 * text.intermediate_size)
    return text.num_hidden_layers * layer


@torch.inference_mode()
def cases(made: Idefics2Config, reached: Ceilings, *, rounds: int, tokens: int) -> list[Case]:
    reference, model = both(made)
    text = made.text_config
    ids = torch.randint(3, text.vocab_size - 1, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    device = torch.device("cpu")

    def fresh() -> StaticKVCache:
        return StaticKVCache(
            text, rows=1, capacity=PROMPT + tokens, dtype=torch.bfloat16, devices=[device] * text.num_hidden_layers
        )

    def our_step(ids_BT: Tensor, cache: StaticKVCache) -> Tensor:
        places = torch.arange(cache.length, cache.length + ids_BT.shape[1])[None]
        return model.logits(model(ids_BT, positions_BT=places, cache=cache)[:, -1])

    def their_step(ids_BT: Tensor, cache: transformers.DynamicCache) -> Tensor:
        out = reference(input_ids=ids_BT, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1]

    our_cache, their_cache = fresh(), transformers.DynamicCache(config=reference.config)
    off = difference(our_step(ids[:, :CONTEXT], our_cache), their_step(ids[:, :CONTEXT], their_cache))
    last = ids[:, CONTEXT : CONTEXT + 1]
    off = max(off, difference(our_step(last, our_cache), their_step(last, their_cache)))
    assert off < 0.05, f"the two sides do not compute the same: they differ by {off:.1%}"

    def our_tokens() -> None:
        our_cache.truncate(CONTEXT)
        token = last
        for _ in range(tokens):
            token = our_step(token, our_cache).argmax(-1, keepdim=True)

    def their_tokens() -> None:
        their_cache.crop(CONTEXT - their_cache.get_seq_length())  # negative: so many are forgotten
        token = last
        for _ in range(tokens):
            token = their_step(token, their_cache).argmax(-1, keepdim=True)

    head = text.hidden_size * text.vocab_size
    cached = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * CONTEXT
    facts = dict(layers=text.num_hidden_layers, difference=off)
    scores = text.num_hidden_layers * text.num_attention_heads * text.head_dim * PROMPT**2  # half of them are masked
    return [
        compare(
            f"{tokens} tokens, batch 1, after {CONTEXT}",
            our_tokens,
            their_tokens,
            rounds=rounds,
            limit=tokens * reached.bound(moved=2 * (weights(made) + head + cached)),
            target=1.8,
            tokens=tokens,
            **facts,
        ),
        compare(
            f"a prompt of {PROMPT} tokens",
            lambda: our_step(ids, fresh()),
            lambda: their_step(ids, transformers.DynamicCache(config=reference.config)),
            rounds=rounds,
            limit=reached.bound(operations=2.0 * (PROMPT * weights(made) + scores + head)),
            **facts,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=4, help="of the decoder, each of its true size")
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    reached = ceilings("cpu", [torch.bfloat16])
    made = config(vision_layers=1, text_layers=options.layers)
    found = cases(made, reached, rounds=options.rounds, tokens=options.tokens)
    report("decode", found, reached=reached, save=not options.no_save)


if __name__ == "__main__":
    main()
