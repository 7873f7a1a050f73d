"""Gives a DistributedDataParallel other buckets, or another communication hook, in place.

DistributedDataParallel decides on its buckets when it is made and once more after its first backward pass, and takes one
communication hook in its life. Both belong to its `Reducer`, which is an attribute of the model: a new one, over the same
parameters, process group and options, takes the old one's place between two steps, and the user's object stays what it is.
The model's parameters, buffers, gradients, hooks of its modules and the optimizer's state are not touched.

torch has no public way to do this; what is used here (`Reducer`, `Logger`, `_build_params_for_reducer`,
`_rebuild_buckets`, `_push_all_rebuilt_params`) is the same in torch 2.11 to 2.15.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from muster.errors import RefusedInput

Hook = Callable[[Any, dist.GradBucket], "torch.futures.Future[torch.Tensor]"]


def why_not_rebuilt(model: DistributedDataParallel) -> str:
    """Why this model's buckets cannot be laid out anew, in a few words; empty if they can."""
    if getattr(model, "_use_python_reducer", False):
        return "it uses the Python reducer (torch._dynamo.config.optimize_ddp)"
    if getattr(model, "mixed_precision", None) is not None:
        return "it was made with mixed_precision, whose hook is bound to its reducer"
    if model.static_graph:
        return "it was made with static_graph=True"
    if getattr(model, "_delay_all_reduce_params", None):
        return "it was made with delay_all_reduce_named_params"
    parameters, sparse = model._build_params_for_reducer()
    if any(sparse):
        return "it has sparse gradients"
    if len({(parameter.dtype, parameter.device) for parameter in parameters}) > 1:
        return "its parameters are of several types or on several devices"
    return ""


def reduced_parameters(model: DistributedDataParallel) -> tuple[list[torch.nn.Parameter], list[str]]:
    """The parameters whose gradients the model reduces, in its order, and their names within the user's module."""
    parameters, _ = model._build_params_for_reducer()
    names = {id(parameter): name for name, parameter in model.module.named_parameters()}
    return parameters, [names[id(parameter)] for parameter in parameters]


def size_limits(model: DistributedDataParallel) -> list[int]:
    """The limits in bytes that the model was made with: of its first bucket, its second and so on, of all further ones."""
    listed = list(model.bucket_bytes_cap_list)
    first = dist._DEFAULT_FIRST_BUCKET_BYTES if model.bucket_bytes_cap_default else model.bucket_bytes_cap
    return listed or [first, model.bucket_bytes_cap]


def rebuild_reducer(
    model: DistributedDataParallel,
    *,
    order: Sequence[int] | None = None,
    ends: Sequence[int] | None = None,
    caps_bytes: Sequence[int] | None = None,
    hook: Hook | None = None,
    state: Any = None,
) -> None:
    """Replaces the model's reducer. All ranks must call it between the same two steps; it communicates.

    Arguments:
        model: between the end of a backward pass and the next forward pass.
        order: positions in `reduced_parameters`, in the order in which gradients become ready.
        ends: where buckets end in ``order``. The layout is final: torch does not rebuild it after the next backward pass.
        caps_bytes: instead of ``order`` and ``ends``: size limits of the first bucket, the second and so on; the last one is
            that of all further buckets. torch rebuilds the buckets after the next backward pass in the order it saw.
            By default the limits the model was made with.
        hook, state: the communication hook; None for the all-reduce that is built in.

    Raises:
        RefusedInput: this model cannot be given other buckets.
    """
    if reason := why_not_rebuilt(model):
        raise RefusedInput(
            f"buckets: this DistributedDataParallel keeps its buckets, since {reason}; use buckets='keep'"
        )
    parameters, sparse = model._build_params_for_reducer()
    if order is not None and ends is not None:
        parameters = [parameters[position] for position in order]
        sizes = [parameter.numel() * parameter.element_size() for parameter in parameters]
        starts = [0, *ends[:-1]]
        buckets = [list(range(first, stop)) for first, stop in zip(starts, ends, strict=True)]
        caps = [sum(sizes[first:stop]) for first, stop in zip(starts, ends, strict=True)]
        limits = list(caps)
    else:
        caps = list(caps_bytes or size_limits(model))
        assigned, bounds = dist._compute_bucket_assignment_by_size(parameters, caps, sparse)
        buckets, limits = [list(bucket) for bucket in reversed(assigned)], list(reversed(bounds))
    arguments: list[Any] = [
        parameters,
        buckets,
        limits,
        model.process_group,
        sparse,
        max(caps),
        model.find_unused_parameters,
        model.gradient_as_bucket_view,
        model._build_debug_param_to_name_mapping(parameters),
        caps[0],
        model.skip_all_reduce_unused_params,
        False,  # the Python reducer
        caps,
    ]
    # Options of newer releases, in the order in which they came: 2.13 and 2.15.
    newer = [name for name in ("batched_grad_copy", "lazy_bucket_allocation") if hasattr(model, name)]
    arguments += [getattr(model, name) for name in newer]
    model.reducer._remove_autograd_hooks()
    model.reducer = dist.Reducer(*arguments)
    model.logger = dist.Logger(model.reducer)
    model.reducer.set_logger(model.logger)
    model.logger.set_construction_data_and_log(
        type(model.module).__name__,
        list(model.device_ids or []),
        -1 if model.output_device is None else model.output_device,
        _synchronises_buffers(model),
        any(isinstance(module, torch.nn.SyncBatchNorm) for module in model.module.modules()),
        False,
    )
    if order is not None:
        # torch lays the buckets out once more, after the first backward pass. Having it done at once, with the limits set to
        # the very sizes and in our order, makes the layout final.
        model.reducer._push_all_rebuilt_params()
        model.reducer._rebuild_buckets()
    model._comm_hooks = []
    if hook is not None:
        model.register_comm_hook(state, hook)


def _synchronises_buffers(model: DistributedDataParallel) -> bool:
    """Its flag has another name since torch 2.13, which deprecates the older one."""
    flags = vars(model)
    return bool(flags.get("forward_sync_buffers", flags.get("broadcast_buffers", True)))
