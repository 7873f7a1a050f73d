"""EDSR is the network of the paper, and edsr-small starts as bicubic enlargement."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from muster.apps.vision.bicubic import bicubic_skip
from muster.apps.vision.edsr import ARCHITECTURES, EDSR, Architecture
from muster.apps.vision.inference import self_ensemble
from muster.apps.vision.quality import psnr_y
from muster.apps.vision.resize import bicubic_upscale


def parameters_by_arithmetic(blocks: int, features: int, factors: tuple[int, ...]) -> int:
    def conv(channels_in: int, channels_out: int) -> int:
        return 9 * channels_in * channels_out + channels_out

    body = (2 * blocks + 1) * conv(features, features)
    tail = sum(conv(features, factor**2 * features) for factor in factors) + conv(features, 3)
    return conv(3, features) + body + tail


@pytest.mark.parametrize(
    ("arch", "scale", "factors", "published_millions"),
    [
        # Counts of the authors' single-scale models, as later papers tabulate them (CARN, arXiv:1803.08664).
        ("edsr-baseline", 2, (2,), 1.37),
        ("edsr-baseline", 3, (3,), 1.55),
        ("edsr-baseline", 4, (2, 2), 1.52),
        ("edsr-full", 2, (2,), 40.7),
        ("edsr-full", 3, (3,), 43.7),
        ("edsr-full", 4, (2, 2), 43.1),
    ],
)
def test_parameters_count_as_published(arch, scale, factors, published_millions):
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in EDSR(arch, scale).parameters())
    size = ARCHITECTURES[arch]
    assert count == parameters_by_arithmetic(size.blocks, size.features, factors)
    assert count / 1e6 == pytest.approx(published_millions, rel=0.005)


def test_the_exact_counts_of_the_two_published_sizes():
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in EDSR(arch, 2).parameters()) for arch in ("edsr-baseline", "edsr-full")
        ]
    assert counts == [1_369_859, 40_729_603]


def test_there_is_no_normalisation_and_only_weights_are_state():
    model = EDSR("edsr-baseline", 2)
    assert not any("Norm" in type(module).__name__ for module in model.modules())
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("bicubic", [False, True])
def test_the_output_is_scale_times_larger(scale, bicubic):
    model = EDSR(Architecture(blocks=1, features=4, bicubic_skip=bicubic), scale)
    assert model(torch.rand(2, 3, 7, 9)).shape == (2, 3, 7 * scale, 9 * scale)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_untrained_edsr_small_is_bicubic_to_the_bit(scale, dtype):
    x = torch.rand(2, 3, 11, 13, dtype=dtype)
    assert torch.equal(EDSR("edsr-small", scale).to(dtype)(x), bicubic_skip(x, scale))


def test_untrained_edsr_small_is_bicubic_to_the_bit_under_bf16_autocast():
    x = torch.rand(1, 3, 12, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(EDSR("edsr-small", 2)(x), bicubic_skip(x, 2))


def test_bf16_autocast_stays_close_to_float32_and_trains():
    torch.manual_seed(0)
    model = EDSR(Architecture(blocks=2, features=8), 2)
    x = torch.rand(2, 3, 12, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model(x)
    low.float().sum().backward()
    assert torch.allclose(low.float(), model(x), atol=0.02)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_the_scaled_residual_is_that_of_the_paper():
    torch.manual_seed(0)
    model = EDSR(Architecture(blocks=1, features=4, residual_scale=0.1), 2).double()
    block = model.body[0]
    x = torch.rand(1, 4, 5, 5, dtype=torch.float64)
    assert torch.allclose(block(x), x + 0.1 * block.second(block.first(x).clamp(min=0)), atol=1e-15)


def test_the_mean_shift_cancels_when_the_network_is_silent():
    model = EDSR(Architecture(blocks=1, features=4), 2)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    mean = model(torch.rand(1, 3, 4, 4))[0, :, 0, 0]
    assert mean.tolist() == pytest.approx([0.4488, 0.4371, 0.4040])


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("blocks", [0, 2])
@pytest.mark.parametrize("bicubic", [False, True])
def test_the_receptive_radius_covers_what_an_output_pixel_sees(scale, blocks, bicubic):
    """Brute force: the gradient of the output pixels of one input pixel, with respect to the input."""
    model = EDSR(Architecture(blocks=blocks, features=2, bicubic_skip=bicubic), scale).double()
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 0.1)  # no path is ever switched off
    side, middle = 25, 12
    x = torch.rand(1, 3, side, side, dtype=torch.float64, requires_grad=True)
    block = slice(scale * middle, scale * (middle + 1))
    model(x)[..., block, block].sum().backward()
    assert x.grad is not None
    seen = x.grad[0].abs().sum(0).sum(0).nonzero().flatten()
    reach = int((seen - middle).abs().max())
    assert reach <= model.receptive_radius <= reach + 1


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_skip_is_the_bicubic_of_resize_where_nothing_is_clipped(scale, scene):
    image = (scene(20, 22) // 2 + 60).astype(np.uint8)
    x = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float64))[None]
    ours = bicubic_skip(x, scale)[0].numpy().transpose(1, 2, 0)
    assert (
        np.abs(ours - bicubic_upscale(image, scale)).max() <= 0.5 + 0.5 * 1.25
    )  # two roundings, one filtered


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_skip_scores_as_bicubic_is_published(set5, scale):
    scores = []
    for _, high, low in set5(scale):
        x = torch.from_numpy(low.transpose(2, 0, 1).astype(np.float32))[None] / 255
        enlarged = (bicubic_skip(x, scale)[0] * 255).round().clamp(0, 255).byte().numpy().transpose(1, 2, 0)
        scores.append(psnr_y(high, enlarged, scale))
    assert np.mean(scores) == pytest.approx({2: 33.64, 3: 30.39, 4: 28.42}[scale], abs=0.03)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_inside_the_skip_equals_torchs_bicubic_with_the_same_kernel(scale):
    """torch uses a = -0.5 when asked for antialiasing (as Pillow does), and other borders."""
    x = torch.rand(2, 3, 16, 18, dtype=torch.float64)
    theirs = torch.nn.functional.interpolate(x, scale_factor=scale, mode="bicubic", antialias=True)
    inside = (..., slice(2 * scale, -2 * scale), slice(2 * scale, -2 * scale))
    assert torch.allclose(bicubic_skip(x, scale)[inside], theirs[inside], atol=1e-6)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_at_the_border_the_skip_repeats_the_border(scale):
    x = torch.rand(1, 3, 6, 7, dtype=torch.float64)
    wider = torch.nn.functional.pad(x, (3, 3, 3, 3), mode="replicate")
    cut = slice(3 * scale, -3 * scale)
    assert torch.allclose(bicubic_skip(x, scale), bicubic_skip(wider, scale)[..., cut, cut], atol=1e-15)


def test_self_ensemble_is_invariant_to_turning_the_input():
    torch.manual_seed(0)
    model = EDSR(Architecture(blocks=1, features=4), 2).double()
    x = torch.rand(1, 3, 6, 9, dtype=torch.float64)
    with torch.no_grad():
        straight = self_ensemble(model, x)
        turned = self_ensemble(model, torch.rot90(x, 1, (2, 3)).flip(3))
        assert torch.allclose(torch.rot90(straight, 1, (2, 3)).flip(3), turned, atol=1e-12)
        assert not torch.allclose(straight, model(x), atol=1e-6)


@pytest.mark.parametrize(("arch", "scale"), [("edsr-large", 2), ("edsr-small", 5)])
def test_unknown_sizes_are_refused(arch, scale):
    with pytest.raises(ValueError, match=r"edsr-large|5"):
        EDSR(arch, scale)
