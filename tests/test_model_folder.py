"""Model folders: what is written is what is read, and what does not fit is told."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from videomv_jax.convert import mapping
from videomv_jax.model_folder import (
    CONFIG,
    PARTS,
    CameraConfig,
    ModelConfig,
    abstract,
    load_model,
    read_config,
    save_model,
)
from videomv_jax.models.vae import VAE, VAEConfig
from videomv_jax.presets import PRESETS
from videomv_jax.types import InputError
from videomv_jax.weights import SUMS, verify

SIZES = VAEConfig(
    channels=16, multipliers=(1, 1), layers=1, groups=8, dtype=jnp.bfloat16
)
VAE_ONLY = ModelConfig(
    name="small", licence="Apache-2.0", provenance="random", vae=SIZES
)


@pytest.fixture(scope="module")
def vae():
    module = abstract(lambda rngs: VAE(SIZES, rngs=rngs))
    rng = np.random.default_rng(0)
    weights = {k: rng.normal(0, 0.1, s) for k, s in mapping.shapes(module).items()}
    mapping.assign(module, weights)
    return module


@pytest.fixture
def folder(tmp_path, vae):
    save_model(tmp_path / "model", VAE_ONLY, {"vae": vae})
    return tmp_path / "model"


@pytest.mark.parametrize("name", PRESETS)
def test_config_survives_json(name):
    text = PRESETS[name].to_json()
    again = ModelConfig.from_json(text)
    assert again.to_json() == text
    assert again.unet is not None and again.unet.multipliers == (
        PRESETS[name].unet.multipliers
    )
    assert again.cameras == PRESETS[name].cameras
    assert again.sampling == PRESETS[name].sampling


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(promt=1), "unknown config key in .*'promt'"),
        (lambda d: d["unet"].update(dims=64), "unet.*'dims': did you mean 'dim'"),
        (lambda d: d["unet"].update(dim="64"), "unet: dim is '64', wanted int"),
        (lambda d: d["unet"].update(dim=True), "dim is True, wanted int"),
        (lambda d: d["unet"].update(multipliers=[1, "2"]), "multipliers is '2', wan"),
        (lambda d: d.update(prediction="eps"), "prediction 'eps': .*did you mean 'ep"),
        (lambda d: d.pop("name"), "the key 'name' is missing"),
        (lambda d: d.update(cameras=3), "cameras: 3 is not a JSON object"),
    ],
)
def test_config_tells_what_is_wrong(change, words):
    data = json.loads(PRESETS["tiny"].to_json())
    change(data)
    with pytest.raises(InputError, match=words):
        ModelConfig.from_json(json.dumps(data))


def test_integers_are_floats_where_floats_are_wanted():
    data = json.loads(VAE_ONLY.to_json())
    data["cameras"] = {"radius": 2}
    radius = ModelConfig.from_json(json.dumps(data)).cameras.radius
    assert isinstance(radius, float) and radius == 2


def test_round_trip(folder, vae):
    assert sorted(path.name for path in folder.iterdir()) == [
        SUMS,
        CONFIG,
        "vae.safetensors",
    ]
    model = load_model(folder)
    assert model.unet is model.text_encoder is model.reconstructor is None
    assert model.tokenizer_dir is None
    assert model.config.to_json() == VAE_ONLY.to_json()
    for name, value in mapping.flatten(vae).items():
        read = mapping.flatten(model.vae)[name]
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, value.astype(np.float16), err_msg=name)


def test_sums_tell_changes(folder):
    assert verify(folder) == []
    change_weights(folder, lambda w, n: w[n].fill(1))
    assert verify(folder) == ["vae.safetensors has changed"]


def test_bfloat16_on_disk(tmp_path, vae):
    save_model(tmp_path / "model", VAE_ONLY, {"vae": vae}, dtype="bfloat16")
    read = mapping.flatten(load_model(tmp_path / "model").vae)
    for name, value in mapping.flatten(vae).items():
        assert read[name].dtype == np.float32
        np.testing.assert_array_equal(read[name], value.astype(jnp.bfloat16))


def test_the_compute_type_can_be_chosen(folder, vae):
    model = load_model(folder, dtype="float32")
    assert model.config.vae.dtype == "bfloat16"
    computation = jax.make_jaxpr(model.vae.encode)(jnp.zeros((1, 8, 8, 3)))
    assert "bf16" not in str(computation)
    assert "bf16" in str(jax.make_jaxpr(vae.encode)(jnp.zeros((1, 8, 8, 3))))


def test_saving_replaces_an_older_model_only(folder, vae, tmp_path):
    save_model(folder, dataclasses.replace(VAE_ONLY, name="newer"), {"vae": vae})
    assert read_config(folder).name == "newer"
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(InputError, match="not ours to replace"):
        save_model(tmp_path / "photos", VAE_ONLY, {"vae": vae})
    assert (tmp_path / "photos" / "cat.jpg").exists()


def test_float16_overflow_is_found_and_leaves_nothing(tmp_path, vae):
    large = nnx.clone(vae)
    weights = mapping.flatten(large)
    name = next(iter(weights))
    weights[name] = np.full_like(weights[name], 1e6)
    mapping.assign(large, weights)
    with pytest.raises(InputError, match=f"vae: {name} is not finite in float16"):
        save_model(tmp_path / "model", VAE_ONLY, {"vae": large})
    assert not list(tmp_path.iterdir())
    save_model(tmp_path / "model", VAE_ONLY, {"vae": large}, dtype="float32")


def test_parts_must_match_the_config(tmp_path, vae):
    with pytest.raises(InputError, match="unknown part 'vea': did you mean 'vae'"):
        save_model(tmp_path / "model", VAE_ONLY, {"vea": vae})
    config = dataclasses.replace(VAE_ONLY, unet=PRESETS["tiny"].unet)
    with pytest.raises(InputError, match=r"\['unet', 'vae'\], modules are \['vae'\]"):
        save_model(tmp_path / "model", config, {"vae": vae})


def test_parts_in_common_are_kept_once(folder, vae, tmp_path):
    config = dataclasses.replace(VAE_ONLY, name="second")
    second, third = tmp_path / "second", tmp_path / "third"
    save_model(second, config, {"vae": vae}, shared_with="model")
    assert sorted(path.name for path in second.iterdir()) == [SUMS, CONFIG]
    loaded = load_model(second)
    assert loaded.config.shared == ("vae",) and loaded.config.shared_with == "model"
    for name, value in mapping.flatten(loaded.vae).items():
        np.testing.assert_array_equal(
            value, mapping.flatten(load_model(folder).vae)[name]
        )
    assert not verify(second)

    # A copy has it all; what differs, if only in its type, is not shared.
    save_model(third, loaded.config, {"vae": loaded.vae}, dtype="float32")
    assert load_model(third).config.shared_with is None
    save_model(second, config, {"vae": vae}, dtype="float32", shared_with="model")
    assert (second / "vae.safetensors").is_file()
    assert not read_config(second).shared

    text = dataclasses.replace(config, shared=("vae",), shared_with="gone").to_json()
    (second / CONFIG).write_text(text)
    with pytest.raises(InputError, match="gone/vae.safetensors is missing"):
        load_model(second)
    for change in ({"shared_with": "a/b"}, {"shared_with": ".."}, {"shared": ("vea",)}):
        with pytest.raises(InputError, match="shared"):
            dataclasses.replace(loaded.config, **change)


def change_weights(folder, change):
    path = folder / "vae.safetensors"
    weights = safetensors.numpy.load_file(path)
    name = next(iter(weights))
    change(weights, name)
    safetensors.numpy.save_file(weights, path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / CONFIG).unlink(), "is not a model folder: cannot read config"),
        (lambda f: (f / CONFIG).write_text("{"), "config.json is not JSON"),
        (lambda f: (f / "vae.safetensors").unlink(), "vae.safetensors is missing"),
        (
            lambda f: (f / "vae.safetensors").write_bytes(b"123456789"),
            "is not a safetensors file",
        ),
        (
            lambda f: change_weights(f, lambda w, n: w.pop(n)),
            "vae.safetensors: .*missing: ",
        ),
        (
            lambda f: change_weights(f, lambda w, n: w.update({n: w[n][None]})),
            "vae.safetensors: .*mis-shaped: ",
        ),
        (
            lambda f: change_weights(f, lambda w, n: w[n].fill(np.nan)),
            "vae.safetensors: .*finite",
        ),
    ],
)
def test_damage_is_told(folder, damage, words):
    damage(folder)
    with pytest.raises(InputError, match=words):
        load_model(folder)


@pytest.mark.parametrize("part", ["vae", "text_encoder", "reconstructor"])
def test_abstract_networks_have_the_shapes_of_real_ones(part):
    sizes = getattr(PRESETS["tiny"], part)
    made = mapping.shapes(abstract(lambda rngs: PARTS[part](sizes, rngs=rngs)))
    real = nnx.eval_shape(lambda: PARTS[part](sizes, rngs=nnx.Rngs(0)))
    assert made == mapping.shapes(real)


def test_orbit_of_a_config():
    cameras = CameraConfig(views=6, size=64).orbit()
    assert cameras.intrinsics.shape == (6, 4)
    assert CameraConfig().orbit(views=72, size=32).world_to_camera.shape == (72, 4, 4)
