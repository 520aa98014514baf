"""What a processor returns: a dict whose keys are attributes too and whose tensors move together."""

from __future__ import annotations

from typing import Any

__all__ = ["BatchFeature"]


class BatchFeature(dict[str, Any]):
    """A dict of inputs with attribute access (`inputs.input_ids`) and `.to(device, dtype)`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no {name!r} among these inputs; there are {', '.join(self) or 'none'}") from None

    @property
    def data(self) -> dict[str, Any]:
        """These inputs."""
        return self

    def to(self, device: Any = None, dtype: Any = None) -> BatchFeature:
        """Moves every tensor to `device`, casting floating ones (pixels, never ids or masks) to `dtype`; in place.

        Args:
            device: a device or its name; a dtype alone is taken too, as in `inputs.to(torch.bfloat16)`.
            dtype: of floating tensors; None keeps theirs.

        Returns:
            These inputs themselves.
        """
        import torch

        if isinstance(device, torch.dtype):
            device, dtype = None, device
        for key, value in self.items():
            if isinstance(value, torch.Tensor):
                self[key] = value.to(device=device, dtype=dtype if value.is_floating_point() else None)
        return self
