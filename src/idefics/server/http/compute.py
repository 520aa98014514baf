"""Headers that tell what an answer took, under text-generation-inference's names; its gateways charge and route by them."""

from __future__ import annotations

from collections.abc import Sequence

from idefics.server.model import ServedModel
from idefics.server.service import Conversation

__all__ = ["asked_headers", "computed_headers"]

_TIMES = ("total", "validation", "queue", "inference")


def asked_headers(model: ServedModel, characters: int) -> dict[str, str]:
    """What is known before the first token: of streams, too.

    Args:
        model: that computes.
        characters: of all prompts.
    """
    kind = "gpu" if model.device == "cuda" else model.device
    return {"x-compute-type": f"{kind}+optimized", "x-compute-characters": str(characters)}


def computed_headers(model: ServedModel, characters: int, conversations: Sequence[Conversation]) -> dict[str, str]:
    """What is known of whole answers: milliseconds, `x-compute-time` in seconds. Prompts of a request run beside each other.

    Args:
        model: that computes.
        characters: of all prompts.
        conversations: one per prompt, done.
    """
    taken = [conversation.seconds() for conversation in conversations]
    longest = {name: max(seconds[name] for seconds in taken) for name in (*_TIMES, "time_per_token")}
    return {
        **asked_headers(model, characters),
        "x-compute-time": f"{longest['total']:.6f}",
        **{f"x-{name}-time": str(int(1000 * longest[name])) for name in _TIMES},
        "x-time-per-token": str(int(1000 * longest["time_per_token"])),
        "x-prompt-tokens": str(sum(conversation.prepared.prompt_tokens for conversation in conversations)),
        "x-generated-tokens": str(sum(conversation.generated for conversation in conversations)),
    }
