"""One model in several processes, every layer divided between them (arXiv 1909.08053), by torch's own DTensor plans.

What is divided is what blocks declare (`Linears.split`), so a plan knows no family:

- attention of the decoder and of gated cross-attention: by heads (queries, keys and values by columns, output by rows);
- every gated MLP, those of the connector and resampler included: by inner channels (gate and up by columns, down by rows);
- the head: by vocabulary. Its logits are gathered, so that all processes hold the same bits and choose the same token.

The rest is whole everywhere: norms and gates are small; an embedding is looked up, not multiplied, so dividing it would cost
a reduction per pass and save little; a tied head is the embedding; vision towers and the attention of resamplers are 5 % of
the second generation and 1 % of the 80B, have head counts that divide by little, and run once per image.

A module that is divided takes and returns plain tensors: those of a column-wise one are local, those of a row-wise one are
summed. So the model's code, which reads head counts off the tensors, runs as it is.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from idefics.errors import OptionError
from idefics.linears.sites import sites
from idefics.model.base import VisionLanguageModel
from idefics.model.layers.decoupled import DecoupledLinear
from idefics.model.layers.linear import Split
from idefics.parallel.launch import Divided

__all__ = ["DecoupledHead", "Shares", "parallelize", "plan_of"]


class DecoupledHead(ParallelStyle):
    """Divides the vocabulary of a text model by columns; the few added ids stay whole. Logits are gathered."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def divide(_: str, part: nn.Module, mesh: DeviceMesh) -> None:
            placement = Shard(0) if part is module else Replicate()
            weight = distribute_tensor(part.get_parameter("weight"), mesh, [placement], src_data_rank=None)
            part.register_parameter("weight", nn.Parameter(weight))

        def enter(_: nn.Module, inputs: tuple[Tensor, ...], mesh: DeviceMesh) -> Any:
            return DTensor.from_local(inputs[0], mesh, [Replicate()], run_check=False)

        def gather(_: nn.Module, logits: DTensor, mesh: DeviceMesh) -> Tensor:
            return logits.redistribute(mesh, [Replicate()]).to_local()

        return distribute_module(module, device_mesh, divide, enter, gather)  # type: ignore[arg-type]  # its hooks may return


def plan_of(model: VisionLanguageModel) -> dict[str, ParallelStyle]:
    """How each module is divided, by its name; what is not named stays whole."""
    plan: dict[str, ParallelStyle] = {}
    for site in sites(model):
        if not site.tied and site.linears.split is not None:
            plan |= {path: _style(layer, site.linears.split) for path, layer in zip(site.paths, site.layers, strict=True)}
    return plan


def _style(layer: nn.Module, split: Split) -> ParallelStyle:
    match split:
        case "heads" | "columns":
            return ColwiseParallel()
        case "rows":
            return RowwiseParallel()
        case "vocabulary":
            return DecoupledHead() if isinstance(layer, DecoupledLinear) else ColwiseParallel(output_layouts=Replicate())


def parallelize(model: VisionLanguageModel, mesh: DeviceMesh) -> VisionLanguageModel:
    """Divides a model in place; each process keeps its part of what `plan_of` names. Nothing is sent.

    Args:
        model: the same in all processes, or on the meta device, to be filled later.
        mesh: from `init`.

    Raises:
        OptionError: heads or inner channels cannot be dealt out evenly, or the model is arranged so that it cannot be divided.
    """
    refusal = model.refusal("divided")
    stand_in = next((stand_in for site in sites(model) for _, stand_in in site.stand_ins()), None)
    if refusal is None and stand_in is not None:  # torch's plans divide plain layers; see `StandIn.cuts`
        refusal = stand_in.arrangement.refusal("divided")
    if refusal is not None:
        raise OptionError(refusal)
    n = mesh.size()
    _check_even(model, n)
    parallelize_module(model, mesh, plan_of(model), src_data_rank=None)
    model.arrangements = (*model.arrangements, Divided.over(mesh))
    return model


def _check_even(model: VisionLanguageModel, n: int) -> None:
    text = model.config.text_config
    counts = {"attention heads": text.num_attention_heads, "key-value heads": text.num_key_value_heads}
    for site in sites(model):
        if site.linears.split == "columns":
            counts[f"inner channels of {site.path}"] = len(site.layers[0].get_parameter("weight"))
    for what, count in counts.items():
        if count % n:
            fits = [str(k) for k in range(1, n) if not any(c % k for c in counts.values())]
            raise OptionError(f"tensor_parallel = {n} does not divide this model's {count} {what}; {', '.join(fits)} would")


class Shares:
    """Loads only what this process keeps (see `Division` in `weights/division.py`).

    Args:
        mesh: from `init`.
    """

    def __init__(self, mesh: DeviceMesh) -> None:
        self._mesh = mesh

    def divide(self, model: VisionLanguageModel) -> None:
        """Divides a model that has no storage yet."""
        parallelize(model, self._mesh)

    def share(self, held: Tensor, stored: Tensor) -> Tensor:
        """The rows or columns of a stored tensor that stay here: a view."""
        placement = held.placements[0] if isinstance(held, DTensor) else Replicate()
        if not isinstance(placement, Shard):
            return stored
        # As torch.chunk: what does not divide evenly leaves the last ones less, or nothing.
        size = stored.shape[placement.dim]
        each = -(-size // self._mesh.size())
        first = min(size, each * self._mesh.get_local_rank())
        return stored.narrow(placement.dim, first, min(each, size - first))

    def filled(self, held: Tensor, share: Tensor) -> Tensor:
        """The parameter or buffer of which this process holds that share."""
        if not isinstance(held, DTensor):
            return nn.Parameter(share) if isinstance(held, nn.Parameter) else share
        assert share.shape == held.to_local().shape, "torch cuts a tensor otherwise than we do"
        whole = DTensor.from_local(share, self._mesh, held.placements, run_check=False, shape=held.shape, stride=held.stride())
        return nn.Parameter(whole)
