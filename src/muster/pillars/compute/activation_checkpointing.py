"""Activation checkpointing: a block's activations are thrown away after the forward pass and computed again in the backward.

Chen, Xu, Zhang, Guestrin: Training Deep Nets with Sublinear Memory Cost (arXiv:1604.06174), done by
`torch.utils.checkpoint`. Only a block's input stays in memory, for one more forward pass of compute; the gradients are the
same to the bit, random layers included, since the generator's state is put back for the second pass.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks that a network is a stack of, in order of registration: what `checkpoint_blocks` works on.

    A block is a child of an `nn.Sequential`, `nn.ModuleList` or `nn.ModuleDict` that has parameters and is itself made of
    several layers: a residual block, an encoder layer. A container in a container is descended into if it holds such
    blocks; otherwise an `nn.Sequential` of layers counts as a block. Blocks do not nest: the outermost is taken.
    """
    return list(_blocks_in(model))


def _blocks_in(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, _CONTAINERS):
            inner = list(_blocks_in(child))
            if inner:
                yield from inner
            elif isinstance(module, _CONTAINERS) and isinstance(child, nn.Sequential) and _composite(child):
                yield child
        elif isinstance(module, _CONTAINERS):
            if _composite(child):
                yield child
        else:
            yield from _blocks_in(child)


def _composite(module: nn.Module) -> bool:
    has_parameters = next(module.parameters(), None) is not None
    return has_parameters and next(module.children(), None) is not None


def checkpoint_blocks(model: nn.Module) -> int:
    """Lets every block of ``model`` recompute its activations in the backward pass, in place.

    Names of modules, parameters and the state are unchanged. Evaluation is unchanged too: without gradients nothing is
    kept anyway. A module that appears twice is treated once.

    Returns:
        How many blocks there are; 0 means that the model has none and nothing has changed.
    """
    blocks = list(dict.fromkeys(repeated_blocks(model)))
    for block in blocks:
        block.forward = _recomputed(block.forward)  # type: ignore[method-assign]
    return len(blocks)


def _recomputed(forward: object) -> functools.partial[torch.Tensor]:
    return functools.partial(checkpoint, forward, use_reentrant=False)
