"""Whether a loaded model is packed (`linears/packing.py`), and whether there is the memory for it."""

from __future__ import annotations

import torch

from idefics.linears.borrowed import borrows_memory
from idefics.linears.packing import pack, packing_pays
from idefics.machine.byte_sizes import readable_bytes
from idefics.machine.memory import explain_out_of_memory, free_bytes, let_go, require_free_bytes
from idefics.model.base import VisionLanguageModel

__all__ = ["pack_loaded"]


def pack_loaded(model: VisionLanguageModel, packed: bool | None) -> None:
    """Packs a model in place if that is asked for, or if nothing is said, it pays and there is the memory.

    Weights that lie in mapped files take their own size of memory once they are arranged, at the first use of each part of
    the model; the files are let go one by one then. Whether there is the memory is asked here, before anybody waits.

    Args:
        model: just loaded.
        packed: None decides.

    Raises:
        OptionError: the model cannot be packed.
        OutOfMemory: packing was asked for and does not fit.
    """
    if packed is False or (packed is None and not packing_pays(model)):
        return
    needed = sum(weight.nbytes for weight in model.parameters() if borrows_memory(weight))
    free = free_bytes(torch.device("cpu"))
    if packed is None and free is not None and needed > free:
        return
    doing, reduce = f"packing {readable_bytes(needed)} of weights for this CPU", "packed=False reads them from the files"
    require_free_bytes(needed, doing, reduce=reduce)
    with explain_out_of_memory(doing, reduce=reduce):
        pack(model, let_go=lambda weight: let_go(weight) if borrows_memory(weight) else None)
