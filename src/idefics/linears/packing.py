"""A model's linear layers arranged for inference on the device where it is.

On a CPU each weight is arranged once (`packed.py`), layers that share their input are joined, and products apply the
activation that follows. On a GPU layers are joined only (`joined.py`).

`pack` makes a model ready for that. The arranging itself is done a portion of the model at a time, when a layer of it is first
used or `finish_packing` asks for it (`waiting.py`); each weight is dropped as soon as it is done, so there is no second copy
(but see `folded.py`, which is small).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TypeVar

import torch
from torch import nn

from idefics.errors import OptionError
from idefics.linears.borrowed import LetGo, keep, owned
from idefics.linears.folded import Folded
from idefics.linears.joined import PACKED, JoinedLinear
from idefics.linears.packed import FUSED, PackedLinear, can_pack
from idefics.linears.sites import Site, restore, sites
from idefics.linears.stand_in import assign
from idefics.linears.waiting import Portion
from idefics.model.base import VisionLanguageModel
from idefics.model.layers.linear import ScaledInput

__all__ = ["finish_packing", "is_packed", "pack", "packing_pays", "stays_in_caches", "unpack"]

_Model = TypeVar("_Model", bound=nn.Module)

ENOUGH_PARAMETERS = 100_000_000
"""Below this the weights of a model that is not packed stay in the processor's caches (docs/log/cpu.md)."""


def stays_in_caches(model: nn.Module) -> bool:
    """Whether a plain model is so small that no product waits for its weights."""
    return sum(parameter.numel() for parameter in model.parameters()) < ENOUGH_PARAMETERS


def packing_pays(model: nn.Module) -> bool:
    """Whether `pack` can be applied where the model is, and should: but for small models in float32 on a CPU.

    There a plain product of one row is faster; in 16 bits a packed one always is.
    """
    on_cpu = _devices(model) == {"cpu"}
    small = on_cpu and torch.float32 in _dtypes(model) and stays_in_caches(model)
    return not small and _obstacle(model, reorder=on_cpu) is None


def is_packed(model: VisionLanguageModel) -> bool:
    """Whether `pack` has been applied."""
    return PACKED in model.arrangements


def pack(model: _Model, *, reorder: bool | None = None, let_go: LetGo = keep) -> _Model:
    """Packs the linear layers of a model in place, for inference where it is; layer by layer, without a second copy.

    What is to be reordered waits until a layer of the same portion, which is a child of the model, is first used; see
    `finish_packing`. Up to then it stays where it is: files that it lies in must stay as they are, too.

    Tensors that stay plain but are views of mapped files (norms, embeddings) are copied, so that the files can be let go.
    A head that is tied to the embedding stays plain: it would be a second copy. Nothing that is left requires gradients.

    Args:
        model: to be packed; a whole one, or any block.
        reorder: bring every weight into oneDNN's order, too, which takes a CPU; None does so on one. Otherwise layers that
            share their input are joined, and the rest stays plain.
        let_go: told each weight that will not be read again.

    Raises:
        OptionError: the model is divided, not whole on one kind of device, or, to be reordered, of a dtype that cannot be,
            or torch lacks the operations.
    """
    reorder = _devices(model) == {"cpu"} if reorder is None else reorder
    obstacle = _obstacle(model, reorder=reorder)
    if obstacle is not None:
        raise OptionError(obstacle)
    portions: defaultdict[str, Portion] = defaultdict(Portion)
    owners = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    by_owner: defaultdict[nn.Module, list[Site]] = defaultdict(list)
    for site in sites(model):
        by_owner[site.owner].append(site)
    # In the order of the files, so that each of these is let go soon after its first tensor is packed.
    for module in [module for module in model.modules() if not isinstance(module, nn.Linear)]:
        for site in by_owner[module]:
            if site.is_plain and not site.tied:
                _pack_site(site, portions[site.paths[0].partition(".")[0]] if reorder else None, let_go)
        for name, parameter in list(module.named_parameters(recurse=False)):
            if owners[id(parameter)] == 1:
                assign(module, name, owned(parameter.detach()))
                let_go(parameter)
    for module in model.modules():
        if isinstance(module, ScaledInput):
            _fold(module)
    if isinstance(model, VisionLanguageModel) and not is_packed(model):
        model.arrangements = (*model.arrangements, PACKED)
    return model.eval().requires_grad_(False)


def _pack_site(site: Site, portion: Portion | None, let_go: LetGo) -> None:
    """Packs the layers of one site, in oneDNN's order where there is a portion to do it with."""
    if portion is None:
        if len(site.layers) > 1:
            site.replace(JoinedLinear(site.layers, let_go=let_go))
    elif site.linears.slot is not None and (site.activation is None or site.activation in FUSED):
        site.replace(PackedLinear(site.layers, activation=site.activation, portion=portion, let_go=let_go))
    else:
        site.replace_each(lambda layer: PackedLinear([layer], portion=portion, let_go=let_go))


def _fold(module: ScaledInput) -> None:
    """Makes one product of blocks that map one input, if the layers of each have been joined."""
    joined = [block.joined for block, _ in module.scaled() if isinstance(block.joined, JoinedLinear)]
    if joined and len(joined) == len(module.scaled()):
        module.contexts = Folded(joined, [scale_D for _, scale_D in module.scaled()])


def finish_packing(model: _Model) -> _Model:
    """Arranges all weights of a packed model that still wait for their first use; nothing is left to do for a plain one.

    For a server that is to be ready when it says so, for measurements, and before a process divides (`os.fork`), so that
    the weights are shared. Threads that use the model meanwhile wait for the portion that they need.

    Raises:
        RuntimeError: the memory ends, as torch says it (`machine.memory.explain_out_of_memory` tells it better).
    """
    for module in model.modules():
        if isinstance(module, PackedLinear):
            module.finish()
    return model


def unpack(model: _Model) -> _Model:
    """Undoes `pack` in place, layer by layer: the same layers with the same weights, to the bit."""
    restore(model)
    for module in model.modules():
        if isinstance(module, ScaledInput):
            module.contexts = None
    if isinstance(model, VisionLanguageModel):
        model.arrangements = tuple(done for done in model.arrangements if done != PACKED)
    return model.requires_grad_(True)


def _obstacle(model: nn.Module, *, reorder: bool) -> str | None:
    """Why a model cannot be packed, in one sentence, or None."""
    refusal = model.refusal("packed") if isinstance(model, VisionLanguageModel) else None
    if refusal is not None:
        return refusal
    devices, why = _devices(model), None
    if "meta" in devices or len(devices) > 1:
        why = f"it is on {', '.join(sorted(devices))}, not whole on one kind of device"
    elif reorder and devices != {"cpu"}:
        why = f"weights are reordered on the CPU only, and it is on {devices.pop()}"
    elif reorder:
        unfit = sorted(str(dtype) for dtype in _dtypes(model) if not can_pack(dtype))
        why = f"torch packs no {', '.join(unfit)} here" if unfit else None
    return why and f"this model cannot be packed: {why}; load it with packed=False"


def _devices(model: nn.Module) -> set[str]:
    return {parameter.device.type for parameter in model.parameters()}


def _dtypes(model: nn.Module) -> set[torch.dtype]:
    return {parameter.dtype for parameter in model.parameters()}
