"""U-Net and HookNet: the sizes of the papers, hooks that meet the right px, and tiles that may grow."""

# ruff: noqa: E402
from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import msdask as ms
from msdask.errors import SpecError
from msdask.models import HookNet, UNet
from msdask.models.files import load_model, save_model
from msdask.models.segmentation import center_crop


def _images(*sizes: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (1, 3, s, s), generator=generator, dtype=torch.uint8) for s in sizes]


def _warm(model: torch.nn.Module) -> torch.nn.Module:
    """In evaluation mode, with batch norms that have seen something: their constants are none."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.copy_(torch.rand(module.num_features, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
    return model.eval()


def test_every_size_on_the_way_from_284_to_70_px_is_the_papers() -> None:
    model, seen = UNet(3, filters=1).eval(), []
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda _, __, out: seen.append(out.shape[-1]))
    with torch.no_grad():
        assert model(_images(284)[0][:, None]).logits.shape == (1, 3, 70, 70)
    down = [282, 280, 138, 136, 66, 64, 30, 28, 12, 10]
    up = [18, 16, 14, 26, 24, 22, 42, 40, 38, 74, 72, 70]
    assert seen == [*down, *up, 70]
    filters = [m.out_channels for m in UNet(3, filters=7).target.down.modules() if isinstance(m, torch.nn.Conv2d)]
    assert filters == [7, 7, 14, 14, 28, 28, 56, 56, 70, 70]
    assert UNet(3, filters=7, bottleneck=16).target.n_bottleneck == 112
    assert UNet(3, filters=7, depth=3).target.n_bottleneck == 56  # 2 n (depth + 1)


def _naive_output(size: int, depth: int = 4) -> int | None:
    """What comes out of `size` px by counting, None where a size is no whole number or cannot be cropped evenly."""
    skips = []
    for _ in range(depth):
        size -= 4
        skips.append(size)
        if size % 2:
            return None
        size //= 2
    size -= 4
    for skip in reversed(skips):
        size = 2 * size - 2
        if size <= 0 or (skip - size) % 2 or skip < size:
            return None
        size -= 4
        if size <= 0:
            return None
    return size


@pytest.mark.parametrize("depth", [2, 4])
def test_sizes_are_legal_where_counting_says_so(depth: int) -> None:
    unet = UNet(2, filters=1, depth=depth)
    legal = {size: out for size in range(1, 400) if (out := _naive_output(size, depth)) is not None}
    for size in range(1, 400):
        if size in legal:
            assert unet.output_size(size) == legal[size]
        else:
            with pytest.raises(SpecError, match="UNet with valid padding takes"):
                unet.check_size(size)
        assert unet.legal_size(size) == min((s for s in legal if s >= size), default=unet.legal_size(size))
    hooked = HookNet(2, [20, 10], filters=1, depth=depth)  # the hook must be cropped evenly, too
    even = [size for size in legal if (2 * ((size + 4) // 2**depth - 8) - 6 - ((size + 4) // 2**depth - 8)) % 2 == 0]
    assert [size for size in range(1, 400) if hooked.legal_size(size) == size] == even


def test_the_specification_s_sizes_and_lattices() -> None:
    unet, hooknet = UNet(2, filters=1), HookNet(2, [20, 5], filters=1)
    assert [unet.legal_size(n) for n in (1, 221, 284)] == [220, 236, 284]
    assert [hooknet.legal_size(n) for n in (1, 221, 285)] == [220, 252, 316]
    assert (unet.lattice, hooknet.lattice, HookNet(2, [20, 1.25], filters=1).lattice) == (16, 64, 256)
    assert hooknet.output_size(348) == 134
    assert [hooknet.context_sizes(s) for s in (412, 476, 1052, 2076)] == [(284,), (284,), (444,), (700,)]
    assert (hooknet.hook_size(284, 4), hooknet.bottleneck_size(348)) == (22, 14)
    with pytest.raises(SpecError, match=r"patches of 236 px: .*takes 220, 252, \.\.\. px, every 32; take 220 or 252"):
        hooknet.check_size(236)
    same = UNet(2, filters=1, padding="same")
    assert not same.is_valid
    assert same.output_size(32) == 32
    with pytest.raises(SpecError, match="same padding takes 16, 32"):
        same.check_size(40)


@pytest.mark.parametrize(
    ("magnifications", "depths"),
    [((20, 1.25), ((0, 3),)), ((20, 5), ((2, 3),)), ((40, 20), ((3, 3),)), ((20, 5, 1.25), ((2, 3), (0, 3)))],
)
def test_the_hook_follows_from_the_ratio(
    magnifications: tuple[float, ...], depths: tuple[tuple[int, int], ...]
) -> None:
    model = HookNet(3, magnifications, filters=1).eval()
    assert model.hook_depths == depths
    for (f, t), magnification in zip(depths, magnifications[1:], strict=True):
        assert 10 / magnification * 2**f == pytest.approx(10 / magnifications[0] * 2 ** (t + 1))  # um/px of both
    with torch.no_grad():
        out = model(torch.stack(_images(*[284] * len(magnifications)), dim=1))
    assert out.logits.shape == (1, 3, 70, 70)
    assert [c.shape for c in out.context_logits] == [(1, 3, 70, 70)] * len(depths)


def test_what_cannot_be_hooked_is_refused_with_what_can() -> None:
    for magnifications, found in (([20, 8], "8x is 2.5 times"), ([40, 1.25], "1.25x is 32 times")):
        with pytest.raises(SpecError, match=rf"{found} .* it is 2 \(\d+x\), 4 .*16 "):
            HookNet(2, magnifications)
    with pytest.raises(SpecError, match="each coarser"):
        HookNet(2, [5, 20])
    with pytest.raises(SpecError, match="two or three"):
        HookNet(2, [20])
    with pytest.raises(SpecError, match="one for UNet"):
        UNet(2, [20, 5])
    with pytest.raises(SpecError, match="merge='mean'"):
        HookNet(2, merge="mean")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="context_size=300: HookNet"):
        HookNet(2, context_size=300)
    model = HookNet(2, [20, 10], filters=1).eval()
    with pytest.raises(SpecError, match="476 px with a context of 252 px: the hook needs at least 348 px"):
        model.forward_views(_images(476, 252))
    with pytest.raises(SpecError, match=r"expected \(B, 2, 3, S, S\), a patch for each of 20x, 10x"):
        model(torch.zeros(1, 3, 3, 284, 284))


@pytest.mark.parametrize("merge", ["concat", "add"])
@pytest.mark.parametrize("magnifications", [(20, 5), (20, 10, 5)])
def test_without_its_hooks_a_hooknet_is_independent_unets(merge: str, magnifications: tuple[float, ...]) -> None:
    torch.manual_seed(0)
    hooknet = _warm(HookNet(3, magnifications, filters=2, merge=merge))
    views = _images(*[284] * len(magnifications))
    with torch.no_grad():
        hooked = hooknet.forward_views(views)
    for hook in hooknet.hooks:
        hook.register_forward_hook(lambda _, __, out: torch.zeros_like(out))
    alone = [UNet(3, [m], filters=2).eval() for m in magnifications]
    for unet, branch in zip(alone, [hooknet.target, *hooknet.contexts], strict=True):
        state = branch.state_dict()
        state["up.3.0.weight"] = state["up.3.0.weight"][:, : branch.n_bottleneck]
        unet.target.load_state_dict(state)
    with torch.no_grad():
        out = hooknet.forward_views(views)
        expected = [unet.forward_views([view]).logits for unet, view in zip(alone, views, strict=True)]
    for found, logits in zip([out.logits, *out.context_logits], expected, strict=True):
        torch.testing.assert_close(found, logits)
    assert (out.logits - hooked.logits).abs().max() > 1e-3  # the hooks said something before


def test_merges_are_what_they_say() -> None:
    target, context = torch.randn(1, 20, 10, 10), torch.randn(1, 8, 22, 22)
    merged = {
        "add": lambda t, c: t + c,
        "subtract": lambda t, c: c - t,
        "multiply": lambda t, c: t * c,
    }
    for merge, expected in merged.items():
        model = HookNet(2, filters=2, merge=merge)
        hook = model.hooks[0]
        layer = hook.project[0]
        projected = torch.einsum("oi,bihw->bohw", layer.weight[..., 0, 0], context[..., 6:16, 6:16])
        projected = (projected + layer.bias[:, None, None]).clamp(min=0)
        torch.testing.assert_close(model._merged(target, hook(context, 10)), expected(target, projected))
    assert torch.equal(HookNet(2, filters=2).hooks[0](context, 10), context[..., 6:16, 6:16])


@pytest.mark.parametrize("merge", ["concat", "multiply"])
def test_tiles_grow_without_a_change(merge: str) -> None:
    torch.manual_seed(1)
    model = _warm(HookNet(3, [20, 5], filters=2, depth=3, merge=merge)).double()
    target, context = (view.double() / 255 for view in _images(204, 204, seed=5))
    assert (model.context_sizes(204), model.lattice) == ((140,), 32)
    with torch.no_grad():
        large = model.forward_views([target, center_crop(context, 140)]).logits
        wide = model.forward_views([target, context]).logits  # the context is more than what the hook crops
        tiles = torch.zeros(1, 3, 96, 96, dtype=torch.float32)
        for row, column in ((r, c) for r in range(3) for c in range(3)):
            (y, x), (v, u) = (32 * row, 32 * column), (32 + 8 * (row - 1), 32 + 8 * (column - 1))
            views = [target[..., y : y + 140, x : x + 140], context[..., v : v + 140, u : u + 140]]
            tiles[..., y : y + 32, x : x + 32] = center_crop(model.forward_views(views).logits, 32)
        off = model.forward_views([target[..., 16:156, :140], context[..., 28:168, 24:164]]).logits
    assert torch.equal(wide, large)
    torch.testing.assert_close(tiles, center_crop(large, 96), rtol=1e-6, atol=1e-6)
    # half a step of the lattice is too little: the contexts' px are pooled otherwise
    assert (center_crop(off, 32) - center_crop(large, 96)[..., 16:48, :32]).abs().max() > 1e-4


@pytest.mark.parametrize("magnifications", [(20, 5), (20, 2.5)])
def test_what_reaches_the_target_from_the_context_is_around_the_same_place(
    magnifications: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(2)
    model = _warm(HookNet(2, magnifications, filters=1, depth=3))
    for layer in model.modules():  # everything reaches the output, not only what is largest and above 0
        for name, child in list(layer.named_children()):
            if isinstance(child, torch.nn.ReLU):
                setattr(layer, name, torch.nn.Identity())
    monkeypatch.setattr(torch.nn.functional, "max_pool2d", torch.nn.functional.avg_pool2d)
    views = [(view.float() / 255).requires_grad_() for view in _images(140, 140)]
    out = model.forward_views(views).logits  # 38 px
    for row in (3, 14):
        ends = []
        for one in (row, 37 - row):  # two px that mirror each other about the middle
            (gradient,) = torch.autograd.grad(out[0, 0, one, 18], views[1], retain_graph=True)
            rows = torch.nonzero(gradient.abs().sum((0, 1, 3)))[:, 0]
            ends.append((int(rows.min()), int(rows.max())))
        assert ends[0][0] + ends[1][1] == ends[0][1] + ends[1][0] == 139  # so are their reaches
        middle = (sum(ends[0]) + 1) / 2 - 70  # px of the context
        assert abs(middle * model.ratios[0] - (row + 0.5 - 19)) <= 2**3 * model.ratios[0] / 2


def test_a_stored_context_larger_than_needed_is_cropped_in_the_middle() -> None:
    images = torch.stack(_images(348, 348), dim=1)
    torch.manual_seed(0)
    model = HookNet(2, filters=1, context_size=284).eval()
    with torch.no_grad():
        found = model(images)
        expected = model.forward_views([images[:, 0], images[:, 1, :, 32:316, 32:316]])
        bare = model(images, contexts=False)
    assert found.logits.shape == (1, 2, 134, 134)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.logits, bare.logits)
    assert bare.context_logits == ()
    with torch.no_grad():
        torch.testing.assert_close(model(images.float() / 255).logits, found.logits)


def test_a_unet_of_11_filters_has_about_the_parameters_of_a_hooknet_of_8() -> None:
    pairs = [(HookNet(2, filters=a), UNet(2, filters=b)) for a, b in ((8, 11), (16, 23))]
    counts = [[sum(p.numel() for p in model.parameters()) for model in pair] for pair in pairs]
    assert all(abs(unet / hooknet - 1) < 0.08 for hooknet, unet in counts), counts


def test_same_padding_keeps_the_size_and_hooks_the_middle() -> None:
    model = HookNet(2, [20, 5], filters=1, padding="same").eval()
    with torch.no_grad():
        out = model(torch.stack(_images(64, 64), dim=1))
        small = model.forward_views(_images(64, 32))
    assert out.logits.shape == out.context_logits[0].shape == (1, 2, 64, 64)
    assert small.logits.shape == (1, 2, 64, 64)
    assert model.context_sizes(128) == (32,)


def test_weights_begin_as_he_et_al_and_models_are_files(tmp_path: Path) -> None:
    model = HookNet(3, [20, 5], filters=8, merge="add", context_size=284)
    weight = model.target.down[3][0].weight.detach()
    assert float(weight.std()) == pytest.approx((2 / (9 * weight.shape[1])) ** 0.5, rel=0.05)
    save_model(model, tmp_path / "m.safetensors")
    loaded, _ = load_model(tmp_path / "m.safetensors")
    assert isinstance(loaded, HookNet)
    assert loaded.config == model.config
    assert {"HookNet", "UNet"} <= set(ms.models.list())
    assert torch.equal(loaded.hooks[0].project[0].weight, model.hooks[0].project[0].weight)
