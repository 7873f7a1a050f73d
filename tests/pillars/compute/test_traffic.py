"""Bytes and FLOPs of operators, against counts made by hand."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from muster.pillars.compute import TrafficCounter


def test_bytes_of_a_sequence_that_can_be_counted_by_hand() -> None:
    a, b = torch.ones(10, 20), torch.ones(20, 30)
    with TrafficCounter() as traffic:
        c = a @ b  # reads 200 + 600, writes 300 numbers
        c.add_(1.0)  # reads and writes 300
        d = torch.relu(c)  # reads 300, writes 300
        d.sum()  # reads 300, writes 1
    assert traffic.read == 4 * (800 + 300 + 300 + 300)
    assert traffic.written == 4 * (300 + 300 + 300 + 1)
    assert (traffic.bytes, traffic.operators) == (traffic.read + traffic.written, 4)


def test_views_and_allocations_move_nothing() -> None:
    a = torch.ones(8, 6, dtype=torch.float64)
    with TrafficCounter() as traffic:
        a.t().reshape(6, 8)[2:].unsqueeze(0).expand(5, 4, 8)
        a.detach()
        torch.empty(1000)
    assert (traffic.bytes, traffic.operators) == (0, 0)


def test_what_is_only_overwritten_is_not_read() -> None:
    a, b, c = (torch.ones(100) for _ in range(3))
    with TrafficCounter() as traffic:
        a.copy_(b)  # 100 read, 100 written
        a.zero_()  # 100 written
        torch.add(b, c, out=a)  # 200 read, 100 written
        torch.mul(b, b)  # the same tensor twice is read once: 100 read, 100 written
    assert (traffic.read, traffic.written) == (4 * 400, 4 * 400)


def test_an_expanded_dimension_is_memory_once() -> None:
    row = torch.ones(1, 50).expand(40, 50)
    with TrafficCounter() as traffic:
        row + 1.0
    assert (traffic.read, traffic.written) == (4 * 50, 4 * 40 * 50)


def test_lists_of_tensors_are_followed() -> None:
    weights, gradients = [torch.ones(30), torch.ones(70)], [torch.ones(30), torch.ones(70)]
    with TrafficCounter() as traffic:
        torch._foreach_add_(weights, gradients, alpha=-0.1)  # w += -0.1 g: reads w and g, writes w
    assert (traffic.read, traffic.written) == (4 * 200, 4 * 100)


def test_sixteen_bits_are_two_bytes_and_casts_are_traffic() -> None:
    a = torch.ones(32, 32)
    with TrafficCounter() as traffic, torch.autocast("cpu", torch.bfloat16):
        a @ a.T
    casts = (
        2 * 1024 * (4 + 2) if traffic.operators == 3 else 1024 * (4 + 2)
    )  # a and a.T are cast, or one cast is kept
    assert traffic.bytes == casts + 2 * 3 * 1024


def test_flops_of_a_matrix_product_and_of_a_convolution_are_the_textbooks() -> None:
    m, n, k = 17, 23, 31
    with FlopCounterMode(display=False) as flops:
        torch.ones(m, k) @ torch.ones(k, n)
    assert flops.get_total_flops() == 2 * m * n * k
    images, kernels = torch.ones(2, 5, 12, 14), torch.ones(7, 5, 3, 3)
    with FlopCounterMode(display=False) as flops, TrafficCounter() as traffic:
        torch.nn.functional.conv2d(images, kernels, padding=1)
    assert flops.get_total_flops() == 2 * 9 * 5 * 7 * 12 * 14 * 2
    assert traffic.bytes == 4 * (2 * 5 * 12 * 14 + 7 * 5 * 9 + 2 * 7 * 12 * 14)


def test_both_counters_at_once_count_what_each_does_alone() -> None:
    layer, x = torch.nn.Conv2d(3, 4, 3), torch.ones(1, 3, 9, 9)
    with FlopCounterMode(display=False) as flops, TrafficCounter() as together:
        layer(x).sum().backward()
    with TrafficCounter() as alone:
        layer(x).sum().backward()
    # forward and the gradient of the weights; the input wants none. 7 by 7 positions of the kernel.
    assert flops.get_total_flops() == 2 * (2 * 9 * 3 * 4 * 7 * 7)
    # the second backward pass adds to gradients that are there: weights and biases are read twice and written once more
    assert alone.bytes >= together.bytes


def test_edsr_s_flops_are_those_of_its_convolutions() -> None:
    """2·k²·Cin·Cout·H·W for each convolution of the published baseline ×2 (Lim et al. 2017), height and width 24."""
    from muster.vision import EDSR

    model, side = EDSR("edsr-baseline", scale=2), 24
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        model(torch.rand(3, 3, side, side))
    low, high = side**2, (2 * side) ** 2
    convolutions = [(3, 64, low), *[(64, 64, low)] * 33, (64, 256, low), (64, 3, high)]
    assert flops.get_total_flops() == 3 * sum(2 * 9 * cin * cout * area for cin, cout, area in convolutions)
