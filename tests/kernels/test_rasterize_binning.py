"""Lists of Gaussians per tile against a plain loop over all pairs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from videomv_kernels.rasterize import RasterConfig, binning, splats
from videomv_kernels.rasterize.config import make_plan

HEIGHT, WIDTH = 37, 50


def rows(views, n, seed=0, size=2.0):
    """Random Gaussians in image space: the table, and half widths of their reach."""
    rng = np.random.default_rng(seed)
    mean = rng.uniform(-10, [WIDTH + 10, HEIGHT + 10], size=(views, n, 2))
    axes = size * rng.normal(size=(views, n, 2, 2))
    covariance = axes @ axes.swapaxes(-1, -2) + 0.3 * np.eye(2)
    conic = np.linalg.inv(covariance)
    opacity = rng.uniform(0.01, 1, size=(views, n))
    # Many ties in depth, to see the order kept.
    depth = rng.integers(1, n // 2 + 2, size=(views, n)) / 7
    reach = np.sqrt(2 * np.log(255 * opacity))[..., None] * np.sqrt(
        np.diagonal(covariance, axis1=-2, axis2=-1)
    )
    columns = [mean, conic[..., 0, :], conic[..., 1, 1:], np.log(opacity)[..., None]]
    columns += [depth[..., None], np.zeros((views, n, 3))]
    return np.concatenate(columns, -1).astype(np.float32), reach


def boxes_of(table, reach, plan):
    """First tile and tile after the last, by the pixel centres within reach."""
    side = np.array(plan.tile[::-1])
    first = np.ceil(table[..., :2] - reach - 0.5).clip(0)
    last = np.floor(table[..., :2] + reach - 0.5)
    limit = np.array(plan.grid[::-1])
    boxes = [(first // side).clip(0, limit), (last // side + 1).clip(0, limit)]
    return np.concatenate(boxes, -1).astype(np.int32)


def touching(row, plan):
    """Tiles in which some pixel's alpha reaches 1/255."""
    y, x = np.mgrid[: plan.grid[0] * plan.tile[0], : plan.grid[1] * plan.tile[1]] + 0.5
    dx, dy = x - row[0], y - row[1]
    form = row[2] * dx * dx + 2 * row[3] * dx * dy + row[4] * dy * dy
    seen = np.exp(row[5] - form / 2) >= 1 / 255
    seen = seen.reshape(plan.grid[0], plan.tile[0], plan.grid[1], plan.tile[1])
    return np.flatnonzero(seen.any((1, 3)))


def lists(bins, plan, view):
    ids, edges = np.asarray(bins.ids[view]), np.asarray(bins.edges[view])
    return [ids[a:b].tolist() for a, b in zip(edges[:-1], edges[1:], strict=True)]


@pytest.mark.parametrize("tile", [(8, 8), (16, 16), (8, 4)])
@pytest.mark.parametrize("size", [0.3, 2.0, 12.0])
def test_lists(tile, size):
    table, reach = rows(2, 60, size=size)
    plan = make_plan(
        RasterConfig(tile=tile), 2, 60, HEIGHT, WIDTH, tile=(8, 8), chunk=4
    )
    boxes = boxes_of(table, reach, plan)
    bins = jax.jit(functools.partial(binning.bin_pairs, plan=plan))(table, boxes)
    np.testing.assert_array_equal(bins.overflow, 0)
    pairs = spare = 0
    for view in range(2):
        found = lists(bins, plan, view)
        depth = table[view, :, 6]
        for ids in found:
            assert ids == sorted(ids, key=lambda i: (depth[i], i))
        wanted = [set() for _ in found]
        for i, row in enumerate(table[view].astype(np.float64)):
            for number in touching(row, plan):
                wanted[number].add(i)
        for ids, needed in zip(found, wanted, strict=True):
            assert needed <= set(ids)
            pairs, spare = pairs + len(needed), spare + len(set(ids) - needed)
    # The test of an ellipse against a tile's rectangle is nearly tight.
    assert spare <= 0.03 * pairs + 2


def test_capacity():
    """Dropped are the farthest; counts are exact, view by view."""
    table, reach = rows(3, 40, size=6.0)
    boxes = boxes_of(table, reach, make_plan_for(None))
    extent = (boxes[..., 2:] - boxes[..., :2]).clip(0)
    count = extent.prod(-1)
    capacity = int(np.sort(count.sum(1))[1])  # enough for two of the three
    plan = make_plan_for(capacity)
    bins = jax.jit(functools.partial(binning.bin_pairs, plan=plan))(table, boxes)
    np.testing.assert_array_equal(bins.overflow, (count.sum(1) - capacity).clip(0))
    assert np.count_nonzero(bins.overflow) == 1
    full = binning.bin_pairs(table, boxes, make_plan_for(None))
    for view in range(3):
        order = np.argsort(table[view, :, 6], kind="stable")
        room = np.cumsum(count[view][order])
        fits = set(order[room <= capacity])
        dropped = set(order[room - count[view][order] >= capacity])
        for ids, whole in zip(
            lists(bins, plan, view), lists(full, plan, view), strict=True
        ):
            assert [i for i in ids if i in fits] == [i for i in whole if i in fits]
            assert not dropped & set(ids) and set(ids) <= set(whole)


def make_plan_for(capacity):
    config = RasterConfig(pairs_per_view=capacity)
    return make_plan(config, 3, 40, HEIGHT, WIDTH, tile=(8, 8), chunk=4)


def test_shares_of_the_capacity_agree(monkeypatch):
    """How much room is filled makes no difference, and each share is taken."""
    table, reach = rows(2, 40, size=0.5)
    plan = make_plan_for(None)
    boxes = boxes_of(table, reach, plan)
    wanted = binning.bin_pairs(table, boxes, plan)
    monkeypatch.setattr(binning, "_LARGE", 0)
    taken = []
    fill = binning._fill_view

    def spy(*args, capacity, plan):
        jax.debug.callback(lambda: taken.append(capacity))
        return fill(*args, capacity=capacity, plan=plan)

    monkeypatch.setattr(binning, "_fill_view", spy)
    monkeypatch.setattr(binning, "_SLOTS", 1)  # one view at a time
    for repeats in (0, 8, 40):
        # The same Gaussians in more and more tiles, beyond what they touch.
        wide = boxes.copy()
        wide[:, :repeats] = [0, 0, plan.grid[1], plan.grid[0]]
        result = jax.jit(functools.partial(binning.bin_pairs, plan=plan))(table, wide)
        jax.effects_barrier()
        for view in range(2):
            assert lists(result, plan, view) == lists(wanted, plan, view)
    assert len(set(taken)) == 3


def test_large_numbers():
    """More Gaussians and tiles than one packed key can tell apart."""
    n, size = 70_000, 256
    config = RasterConfig(tile=(1, 1), pairs_per_view=100_000)
    plan = make_plan(config, 1, n, size, size, tile=(8, 8), chunk=4)
    rng = np.random.default_rng(0)
    table = np.zeros((1, n, 10), np.float32)
    corner = rng.integers(0, size, size=(1, n, 2))
    table[..., :2], table[..., 2:5] = corner + 0.5, [1, 0, 1]
    table[..., 6] = rng.uniform(1, 2, size=(1, n))
    boxes = np.concatenate([corner, corner + 1], -1).astype(np.int32)
    run = jax.jit(functools.partial(binning.bin_pairs, plan=plan))
    bins = run(table, boxes)
    tile = corner[0, :, 1] * size + corner[0, :, 0]
    order = np.lexsort((table[0, :, 6], tile))
    np.testing.assert_array_equal(bins.ids[0, :n], order)
    edges = np.searchsorted(tile[order], np.arange(size * size + 1))
    np.testing.assert_array_equal(bins.edges[0], edges)
    # If each covered all tiles, their number would not fit into 32 bits.
    boxes[...] = [0, 0, size, size]
    bins = run(table, boxes)
    assert bins.overflow == 2**31 - 1 - plan.capacity
    nearest = np.argsort(table[0, :, 6], kind="stable")[:2]
    assert set(np.unique(bins.ids[0, : bins.edges[0, -1]])) <= set(nearest)


@pytest.mark.parametrize("extents", ["exact", "original"])
def test_boxes(extents):
    """Boxes of projected Gaussians, one by one in plain Python."""
    from videomv_kernels.rasterize.project import Projected

    rng = np.random.default_rng(3)
    mean = rng.uniform(-30, 90, size=(2, 200))
    xx, yy = rng.uniform(0.3, 60, size=(2, 200))
    xy = rng.uniform(-0.9, 0.9, size=200) * np.sqrt(xx * yy)
    opacity = rng.uniform(0.004, 1, size=200)
    config = RasterConfig(extents=extents)
    plan = make_plan(config, 2, 200, HEIGHT, WIDTH, tile=(8, 4), chunk=4)
    single = functools.partial(jnp.asarray, dtype=jnp.float32)
    projected = Projected(
        mean=tuple(map(single, mean)),
        conic=(),
        covariance=tuple(map(single, (xx, yy, xx * yy - xy**2))),
        depth=single(opacity),
        opacity=single(opacity),
        visible=jnp.arange(200) % 10 != 0,
    )
    bounds = splats.pixel_bounds(projected, config)
    boxes = np.stack(splats.tile_boxes(bounds, plan), -1)
    if extents == "original":
        assert plan.tile == (16, 16)
        middle = (xx + yy) / 2
        root = np.sqrt(np.maximum(0.1, middle**2 - (xx * yy - xy**2)))
        radius = np.ceil(3 * np.sqrt(middle + root))
        centre = mean - 0.5
        first = np.trunc((centre - radius) / 16).clip(0)
        end = np.trunc((centre + radius + 15) / 16).clip(0)
        wanted = np.stack([*first, *end], -1)
    else:
        reach = np.sqrt(2 * np.log(255 * opacity)) * np.sqrt([xx, yy])
        table = np.zeros((200, 2))
        table[:] = mean.T
        wanted = boxes_of(table, reach.T, plan)
    columns, lines = plan.grid[::-1]
    wanted = wanted.clip(0, [columns, lines, columns, lines])
    for i in range(200):
        if i % 10 == 0:
            assert not boxes[i].any()
        else:
            np.testing.assert_array_equal(boxes[i], wanted[i])
