"""What `/info` tells: the model, and the limits under text-generation-inference's names."""

from __future__ import annotations

from typing import Any

from idefics import __version__
from idefics.server.service import Service

__all__ = ["info"]


def info(service: Service) -> dict[str, Any]:
    """The served model and its limits."""
    model, limits, state = service.model, service.limits, service.bridge.state
    return {
        "model_id": model.name,
        "model_sha": None,
        "model_dtype": f"torch.{model.dtype}",
        "model_device_type": model.device,
        "model_pipeline_tag": "image-text-to-text",
        "max_concurrent_requests": limits.requests,
        "max_best_of": limits.answers,
        "max_stop_sequences": limits.stops,
        "max_top_n_tokens": limits.top_tokens,
        "max_input_length": model.positions - 1,
        "max_input_tokens": model.positions - 1,
        "max_total_tokens": model.positions,
        # The cache is made with the first request; from then on it holds at least as much as one.
        "max_batch_total_tokens": state.blocks * state.block_tokens or model.positions,
        "max_batch_size": None,
        "waiting_served_ratio": 0.0,  # who waits joins at the next token, whoever runs
        "max_waiting_tokens": 1,
        "validation_workers": limits.workers,
        "max_client_batch_size": 1,
        "speculate": model.defaults.get("prompt_lookup_num_tokens") or 0,
        "router": "idefics",
        "version": __version__,
        "sha": None,
        "docker_label": None,
        "max_images": limits.images,
        "max_image_bytes": limits.image_bytes,
        "max_image_pixels": limits.image_pixels,
        "max_image_size": model.longest_image,
        "max_body_bytes": limits.body_bytes,
        "deadline_seconds": limits.deadline,
    }
