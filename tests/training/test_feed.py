"""Objects from a source: order, mixing, damage, and the same latents every way."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from small_run import Reverse, losses, run
from trees import COUNT, TREES, VIEWS

from videomv_jax import sharding
from videomv_jax.data import encode as encoding
from videomv_jax.data.sources import SourceSpec, open_source
from videomv_jax.data.tokenizer import load_tokenizer
from videomv_jax.model_folder import load_model
from videomv_jax.training import pool, stages
from videomv_jax.training.config import TrainConfig, freeze
from videomv_jax.training.feed import SourceFeed, batches, objects_of
from videomv_jax.training.supervision import Supervision
from videomv_jax.types import InputError


@pytest.fixture(scope="module")
def start(small_folder):
    """A model of as many views and pixels as the trees have."""
    loaded = load_model(small_folder)
    cameras = dataclasses.replace(loaded.config.cameras, views=VIEWS, size=16)
    sampling = dataclasses.replace(loaded.config.sampling, prompt_suffix=", 3d asset")
    config = dataclasses.replace(loaded.config, cameras=cameras, sampling=sampling)
    return dataclasses.replace(loaded, config=config)


@pytest.fixture(scope="module")
def tokenizer(start):
    return load_tokenizer(start.tokenizer_dir)


@pytest.fixture(scope="module")
def roots(tmp_path_factory, start, tokenizer):
    """Every tree, and shards of the plain one and of the pictures."""
    folder = tmp_path_factory.mktemp("roots")
    for layout, make in TREES.items():
        make(folder / layout)
    encoders = encoding.Encoders(
        start.vae, start.text_encoder, tokenizer, 16, 0.5, ", 3d asset"
    )
    for layout in ("views", "pictures"):
        source = open_source(SourceSpec(str(folder / layout)), VIEWS)
        out = str(folder / f"shards-{layout}")
        encoding.encode(source, out, encoders, where=layout, views=VIEWS)
    return folder


def make(
    start,
    tokenizer,
    source,
    *,
    frozen_text=False,
    coverage=False,
    batch=2,
    image_batch=0,
):
    config = TrainConfig(
        stage="diffusion",
        source=str(source),
        batch_size=batch,
        image_batch=image_batch,
    )
    text = start.text_encoder if frozen_text else None
    return SourceFeed(
        config, start.config, tokenizer, start.vae, text, coverage=coverage
    ), config


def test_what_is_loaded(start, tokenizer, roots):
    pairs = np.array([[0, 0], [0, 2]])
    for layout in ("orbits", "nerf", "views"):
        feed, _ = make(start, tokenizer, roots / layout)
        batch = feed.load(pairs)
        assert set(batch) == {"views", "tokens", "world_to_camera", "intrinsics"}
        assert batch["views"].shape == (2, VIEWS, 16, 16, 3)
        assert batch["views"][0, 0, 0, 0].tolist() == [128] * 3
    feed, _ = make(start, tokenizer, roots / "views", coverage=True)
    assert feed.load(pairs)["views"].shape == (2, VIEWS, 16, 16, 4)
    feed, _ = make(start, tokenizer, roots / "pictures")
    pictures = feed.load(pairs)
    assert set(pictures) == {"views", "tokens"} and pictures["views"].shape[1] == 1
    feed, _ = make(start, tokenizer, roots / "shards-views", frozen_text=True)
    shards = feed.load(pairs)
    assert set(shards) == set(batch) - {"views"} | {"mean", "logvar", "states"}
    np.testing.assert_array_equal(shards["tokens"], batch["tokens"])
    text = tokenizer.decode(shards["tokens"][0], skip_special_tokens=True)
    assert "3d asset" in text


def test_latents_are_the_same_from_views_and_from_shards(start, tokenizer, roots):
    key, cameras = jax.random.key(0), start.config.cameras

    @jax.jit
    def objects(batch):
        return objects_of(batch, None, start.vae, cameras, key)

    pairs = np.array([[0, 1], [0, 0]])
    found = []
    for source in ("views", "shards-views"):
        feed, _ = make(start, tokenizer, roots / source, coverage=True)
        found.append(objects(feed.load(pairs)))
    scale = float(np.std(found[0].latents))
    for other in found[1:]:
        np.testing.assert_allclose(other.latents, found[0].latents, atol=0.05 * scale)
        np.testing.assert_allclose(
            other.cameras.world_to_camera, found[0].cameras.world_to_camera
        )
    rgb, alpha = found[1].scenes.over(0.5, np.array([1, 3]))
    assert rgb.shape == (2, 2, 16, 16, 3) and 0 < float(alpha.mean()) < 1


def test_order_does_not_depend_on_processes(start, tokenizer, roots):
    feed, config = make(start, tokenizer, roots / "views", batch=4)
    whole = batches(feed, config, np.arange(4))
    halves = [batches(feed, config, rows) for rows in (np.arange(2), np.arange(2, 4))]
    for _ in range(4):
        want = next(whole)
        got = [next(half) for half in halves]
        for name in want:
            joined = np.concatenate([part[name] for part in got])
            np.testing.assert_array_equal(joined, want[name])
    state = json.dumps(whole.get_state())
    expected = next(whole)["tokens"]
    resumed = batches(feed, config, np.arange(4))
    resumed.set_state(json.loads(state))
    np.testing.assert_array_equal(next(resumed)["tokens"], expected)


def test_sources_are_mixed_by_weight(start, tokenizer, roots):
    entries = [{"path": "nerf", "weight": 3}, {"path": "views", "weight": 1}]
    (roots / "mix.json").write_text(json.dumps(entries))
    feed, _ = make(start, tokenizer, roots / "mix.json")
    numbers = feed.numbers(0)
    drawn = np.array([numbers[i] for i in range(40)])
    assert (drawn[:, 0] == 0).sum() == 30
    for source in (0, 1):  # each goes through its own objects, again and again
        order = drawn[drawn[:, 0] == source][:, 1]
        for epoch in range(len(order) // COUNT):
            part = order[epoch * COUNT : (epoch + 1) * COUNT]
            assert sorted(part) == list(range(COUNT))
    again = feed.numbers(0)
    np.testing.assert_array_equal([again[i] for i in range(40)], drawn)
    for second, told in (("pictures", "image_batch: 0"), ("shards-views", "other")):
        (roots / "mix.json").write_text(
            json.dumps([{"path": "nerf"}, {"path": second}])
        )
        with pytest.raises(InputError, match=told):
            make(start, tokenizer, roots / "mix.json")


def test_pictures_beside_clips(start, tokenizer, roots):
    for clips, pictures in (("views", "pictures"), ("shards-views", "shards-pictures")):
        entries = [{"path": pictures}, {"path": clips}]
        (roots / "both.json").write_text(json.dumps(entries))
        feed, config = make(start, tokenizer, roots / "both.json", image_batch=4)
        first = next(batches(feed, config, np.arange(2)))
        beside = first["pictures"]
        assert beside["tokens"].shape[:2] == (2, 2)
        assert "intrinsics" in first and "intrinsics" not in beside
        alone, _ = make(start, tokenizer, roots / pictures)
        order = alone.numbers(config.seed)
        want = alone.load(np.stack([order[i] for i in range(4)]))
        for name, x in want.items():
            np.testing.assert_array_equal(beside[name].reshape(x.shape), x)
        second = batches(feed, config, np.array([1]))
        other = next(second)["pictures"]
        np.testing.assert_array_equal(other["tokens"], beside["tokens"][1:])
    cameras, key = start.config.cameras, jax.random.key(0)
    objects = jax.jit(lambda b: objects_of(b, None, start.vae, cameras, key))(first)
    assert objects.pictures.latents.shape == (4, 1, *objects.latents.shape[2:])
    assert objects.pictures.cameras is None
    with pytest.raises(InputError, match="multiple of batch_size 2"):
        make(start, tokenizer, roots / "both.json", image_batch=3)


def test_damage_moves_nothing_else(start, tokenizer, roots, tmp_path):
    whole, config = make(start, tokenizer, roots / "views", batch=3)
    shutil.copytree(roots / "views", tmp_path / "in")
    (tmp_path / "in/object1/cameras.json").write_text("[]")
    damaged, _ = make(start, tokenizer, tmp_path / "in", batch=3)
    want, got = (batches(f, config, np.arange(3)) for f in (whole, damaged))
    order = whole.numbers(config.seed)
    for step in range(3):
        one, other = next(want), next(got)
        for row in range(3):
            if order[3 * step + row][1] != 1:
                np.testing.assert_array_equal(one["views"][row], other["views"][row])
    assert list(damaged.problems) == ["object1"] and not whole.problems
    for name in ("object0", "object2"):
        (tmp_path / "in" / name / "cameras.json").unlink()
    with pytest.raises(InputError, match="no sample can be read"):
        damaged.load(np.array([[0, 0]]))


def test_another_encoder_is_refused(start, tokenizer, roots):
    moved = load_model(start.tokenizer_dir.parent).vae
    bias = moved.quant.bias
    bias[...] = bias[...] + 1.0
    other = dataclasses.replace(start, vae=moved)
    with pytest.raises(InputError, match="another autoencoder"):
        make(other, tokenizer, roots / "shards-views")
    wide = dataclasses.replace(start.config.cameras, views=6)
    config = dataclasses.replace(start.config, cameras=wide)
    with pytest.raises(InputError, match="views 4, the model wants 6"):
        make(
            dataclasses.replace(start, config=config), tokenizer, roots / "shards-views"
        )


def test_rows_of_a_process():
    mesh = sharding.make_mesh("view", ici={}, dcn={})
    place = sharding.batch_sharding(mesh)
    rows = sharding.local_rows(place, 16)
    np.testing.assert_array_equal(rows, np.arange(16))
    x = np.arange(32.0).reshape(16, 2)
    placed = sharding.put_rows({"x": x}, place, 16)["x"]
    assert placed.sharding == place
    np.testing.assert_array_equal(placed, x)


def test_objects_from_the_host_train_as_those_on_devices(tmp_path):
    for name in ("device", "host"):
        task = Reverse(host=name == "host")
        run(tmp_path / name, task, strategy="fsdp", fsdp=4, accumulate=2)
    assert losses(tmp_path / "host") == losses(tmp_path / "device")


def test_config():
    config = dataclasses.asdict(TrainConfig(stage="autoencoder", source="x"))
    with pytest.raises(InputError, match="synthetic set"):
        freeze(config)


@pytest.mark.parametrize("stage", ["diffusion", "reconstruction", "joint"])
def test_every_stage_reads_a_source(stage, start, tokenizer, roots, monkeypatch):
    """Traced, not run: what a loss asks of its objects is there, as in the pool."""

    def encoded(objects, *_, **__):
        latents = np.zeros((len(objects), VIEWS, 2, 2, 4), np.float32)
        tokens = np.zeros((len(objects), 48), np.int32)
        return pool.Pool(pool.scenes(objects), tokens, latents)

    monkeypatch.setattr(pool, "encoded", encoded)
    monkeypatch.setattr(stages, "load_model", lambda *_, **__: start)
    monkeypatch.setattr(stages, "PRESETS", {"small": start.config})
    shapes = []
    for source in ("shards-views", "views", ""):
        config = TrainConfig(
            stage=stage,
            objects=4,
            model="small",
            init_from=str(start.tokenizer_dir.parent),
            source=str(roots / source) if source else "",
            batch_size=2,
            corrupted_inputs=0.5,
            feedback=0.5,
            train_text=False,
        )
        task = stages.make_task(config)
        numbers = np.array([[0, 0], [0, 1]]) if source else np.array([3, 1])
        batch = task.feed.load(numbers)
        params = jax.eval_shape(task.networks.init, jax.random.key(0))

        def loss(params, constants, batch, task=task):
            networks = task.networks.merge(params)
            return task.loss(networks, constants, batch, jax.random.key(0))

        shapes.append(jax.eval_shape(loss, params, task.constants, batch))
        jax.eval_shape(task._sample if stage != "reconstruction" else task._show,
                       params, task.constants)  # fmt: skip
    assert shapes[0] == shapes[1] == shapes[2] and shapes[0][0].shape == ()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"schedule": "linear_sd"}, "has the schedule 'linear_sd'"),
        ({"prediction": "epsilon"}, "has the prediction 'epsilon'"),
    ],
)
def test_a_unet_that_means_something_else_is_no_start(
    start, monkeypatch, changes, message
):
    other = dataclasses.replace(start.config, **changes)
    assert other != start.config
    monkeypatch.setattr(
        stages,
        "load_model",
        lambda *_, **__: dataclasses.replace(start, config=other),
    )
    monkeypatch.setattr(stages, "PRESETS", {"small": start.config})
    folder = str(start.tokenizer_dir.parent)
    config = TrainConfig(stage="diffusion", model="small", init_from=folder)
    with pytest.raises(InputError, match=message):
        stages.make_task(config)


def test_views_of_a_source_are_not_blown_up_to_be_compared(start):
    config = TrainConfig(stage="reconstruction", source="shards", supervised_size=32)
    with pytest.raises(InputError, match="supervised_size: 32.*at 16"):
        Supervision(config, start.config)
    Supervision(dataclasses.replace(config, source=""), start.config)
