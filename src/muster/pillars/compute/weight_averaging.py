"""The exponential moving average (EMA) of the weights, whose quality is often above that of the last weights.

Polyak and Juditsky (SIAM J. Control Optim. 30, 1992) average iterates; the exponential form is that of Tarvainen and Valpola
(arXiv:1703.01780), done by `torch.optim.swa_utils`.
"""

from __future__ import annotations

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def averaged_model(model: torch.nn.Module, decay: float) -> AveragedModel:
    """A copy of ``model`` that follows it: call ``update_parameters(model)`` after each step.

    After the first update it holds the weights w₁; after the *k*-th, m_k = decay · m_{k-1} + (1 - decay) · w_k. Buffers such
    as running means are the model's last ones. Its ``module`` is evaluated and exported; its ``state_dict()`` holds
    everything that a checkpoint needs.

    Arguments:
        model: before it is compiled or its blocks are checkpointed; on its device and in its dtype.
        decay: above 0 and below 1; 0.999 averages over about the last thousand steps.
    """
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    averaged.requires_grad_(False)
    return averaged
