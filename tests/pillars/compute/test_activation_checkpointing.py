"""Activations computed again give the same gradients, to the bit, in less memory."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from muster.pillars.compute import checkpoint_blocks, repeated_blocks
from muster.vision import EDSR


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Dropout(0.3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.blocks = nn.ModuleList([Block() for _ in range(3)])
        self.last = nn.Sequential(nn.Linear(6, 6), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


def gradients(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    torch.manual_seed(3)
    model(x).square().sum().backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("kind", ["stack with dropout", "edsr", "transformer"])
def test_gradients_in_float64_are_equal_to_the_bit(kind: str) -> None:
    torch.manual_seed(0)
    model, x = {
        "stack with dropout": lambda: (Stack(), torch.randn(4, 6)),
        "edsr": lambda: (EDSR("edsr-small", scale=2), torch.rand(1, 3, 12, 12)),
        "transformer": lambda: (
            nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3),
            torch.randn(2, 5, 8),
        ),
    }[kind]()
    model, x = model.double(), x.double()
    plain, names = copy.deepcopy(model), list(model.state_dict())
    assert checkpoint_blocks(model) == {"stack with dropout": 3, "edsr": 8, "transformer": 3}[kind]
    assert list(model.state_dict()) == names
    for ours, theirs in zip(gradients(model, x), gradients(plain, x), strict=True):
        assert torch.equal(ours, theirs)


def test_every_block_is_computed_again_and_only_its_input_is_kept() -> None:
    def cost(model: nn.Module) -> tuple[int, int]:
        kept = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.numel() * (not isinstance(tensor, nn.Parameter))
            return tensor

        with FlopCounterMode(display=False) as flops:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                loss = model(torch.rand(1, 3, 16, 16)).sum()
            loss.backward()
        return flops.get_total_flops(), kept

    plain, recomputed = EDSR("edsr-small", scale=2), EDSR("edsr-small", scale=2)
    checkpoint_blocks(recomputed)
    (flops, kept), (more, less) = cost(plain), cost(recomputed)
    # Of each of eight blocks the first convolution: torch stops as soon as the input of the second is there again
    assert more - flops == 8 * (2 * 9 * 32 * 32 * 16 * 16)
    # A block saves its input, and of its two inner activations none: at least so much is not kept any more
    assert kept - less >= 8 * 32 * 16 * 16


def test_blocks_are_the_composite_children_of_containers() -> None:
    conv = lambda: nn.Conv2d(3, 3, 1)  # noqa: E731
    stages = nn.Sequential(nn.Sequential(Block(), Block()), nn.Sequential(Block()))
    assert len(repeated_blocks(stages)) == 3  # a container in a container is descended into
    plain = nn.Sequential(nn.Sequential(conv(), nn.ReLU()), nn.Sequential(conv(), nn.ReLU()), conv())
    assert repeated_blocks(plain) == [plain[0], plain[1]]  # rows of layers
    assert repeated_blocks(nn.Sequential(conv(), nn.ReLU(), conv())) == []  # single layers are no blocks
    assert repeated_blocks(Stack().last) == []
    assert checkpoint_blocks(nn.Linear(2, 2)) == 0
    shared = Block()
    assert checkpoint_blocks(nn.Sequential(shared, shared)) == 1


def test_a_copy_of_a_checkpointed_model_is_independent() -> None:
    model = Stack()
    checkpoint_blocks(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert twin.eval()(torch.ones(1, 6)).abs().sum() > 0
