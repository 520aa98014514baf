"""Asks a server with the client `text-generation` and prints what came.

Run by test_text_generation.py in a process of its own, because this client needs an older huggingface_hub.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from text_generation import AsyncClient, Client
from text_generation.errors import ValidationError
from text_generation.types import Grammar, GrammarType, Message


def error_of(ask: Any) -> str:
    try:
        ask()
    except ValidationError as error:
        return f"ValidationError: {error}"
    return "no error"


async def asynchronous(address: str, prompt: str) -> dict[str, Any]:
    client = AsyncClient(address)
    whole = await client.generate(prompt, max_new_tokens=10)
    pieces = [
        response.token.text
        async for response in client.generate_stream(prompt, max_new_tokens=10)
        if not response.token.special
    ]
    chat = await client.chat(messages=[Message(role="user", content="hi")], max_tokens=10, temperature=0)
    return {"whole": whole.generated_text, "stream": "".join(pieces), "chat": chat.choices[0].message.content}


def main(address: str, prompt: str) -> None:
    client = Client(address)
    whole = client.generate(prompt, max_new_tokens=10, decoder_input_details=True, top_n_tokens=2)
    stream = list(client.generate_stream(prompt, max_new_tokens=10, top_n_tokens=2))
    best = client.generate(prompt, max_new_tokens=5, do_sample=True, best_of=2)
    guided = client.generate(prompt, max_new_tokens=20, grammar=Grammar(type=GrammarType.Regex, value="(yes|no)"))
    chat = client.chat(messages=[Message(role="user", content="hi")], max_tokens=10, temperature=0.01, seed=1)
    print(
        json.dumps(
            {
                "whole": whole.generated_text,
                "finish": whole.details.finish_reason.value,
                "generated": whole.details.generated_tokens,
                "prefill": len(whole.details.prefill),
                "tokens": [token.text for token in whole.details.tokens],
                "top": [len(top) for top in whole.details.top_tokens or []],
                "stream": "".join(response.token.text for response in stream if not response.token.special),
                "stream_text": stream[-1].generated_text,
                "stream_finish": stream[-1].details.finish_reason.value if stream[-1].details else None,
                "best": len(best.details.best_of_sequences or []),
                "sampled": client.generate(prompt, max_new_tokens=5, temperature=0.7, seed=3).details.seed,
                "stopped": client.generate(prompt, max_new_tokens=10, stop_sequences=[" brown"]).generated_text,
                "guided": guided.generated_text,
                "chat": chat.choices[0].message.content,
                "chat_finish": chat.choices[0].finish_reason,
                "invalid": error_of(lambda: client.generate(prompt, max_new_tokens=100_000)),
                "watermark": error_of(lambda: client.generate(prompt, watermark=True)),
                "invalid_stream": error_of(lambda: list(client.generate_stream(prompt, max_new_tokens=100_000))),
                "asynchronous": asyncio.run(asynchronous(address, prompt)),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.stdin.read())
