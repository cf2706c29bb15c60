"""The public object: shapes, settings, seeds, compilation, errors."""

import dataclasses

import jax
import numpy as np
import pytest

from videomv_jax import embedded
from videomv_jax.model_folder import PARTS, load_model, read_config
from videomv_jax.pipeline import VideoMV
from videomv_jax.sampling.programs import Programs
from videomv_jax.types import InputError

PROMPT = "a red chair with blue legs"


@pytest.fixture(scope="module")
def model(small_model):
    return small_model


@pytest.fixture(scope="module")
def generation(model):
    return model.generate(PROMPT)


@pytest.fixture(scope="module")
def plain(model):
    return model.generate(PROMPT, steps_3d=())


@pytest.fixture
def compilations():
    """Names of what compiles while the test runs."""
    seen = []

    def listen(name, seconds, **_):
        if name == "/jax/core/compile/backend_compile_duration":
            seen.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


def test_generation(generation):
    assert generation.views.shape == (1, 8, 32, 32, 3)
    assert generation.views.dtype == np.float32
    assert np.isfinite(generation.views).all()
    assert 0 <= generation.views.min() < generation.views.max() <= 1
    assert generation.cameras.intrinsics.shape == (8, 4)
    gaussians = generation.gaussians
    assert gaussians.means.shape == (1, 1024, 3)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gaussians))
    assert generation.dropped == 0
    assert generation.settings == {
        "mode": "guided",
        "sampler": "dpmpp",
        "steps": 4,
        "steps_3d": [2],
        "guidance": 2.0,
        "guidance_rescale": 0.0,
        "negative_prompt": "",
    }


def test_the_same_seed_gives_the_same_views(model, generation):
    again = model.generate(PROMPT, seed=0)
    np.testing.assert_array_equal(again.views, generation.views)
    other = model.generate(PROMPT, seed=1)
    assert np.abs(other.views - generation.views).max() > 0.01


def test_everything_asked_for_matters(model, generation):
    for change in (
        {"prompts": "a green boat"},
        {"negative_prompt": "a green boat"},
        {"guidance": 4.0},
        {"guidance_rescale": 0.7},
        {"steps": 5},
        {"sampler": "ddim"},
        {"steps_3d": (0.75,)},
    ):
        other = model.generate(**({"prompts": PROMPT} | change))
        assert np.abs(other.views - generation.views).max() > 1e-4, change


def test_only_the_first_call_compiles(model, generation, compilations):
    model.turntable(generation.gaussians, frames=10)
    compilations.clear()
    model.generate("a green boat", seed=7, steps=6, sampler="ddim", guidance=3.0)
    model.turntable(generation.gaussians, frames=10)
    assert not compilations


def test_compiling_ahead(small_folder, monkeypatch):
    """Everything of a kind, before any prompt. Executables: test_executables.py."""
    asked = []
    monkeypatch.setattr(Programs, "compile", lambda _, *args: asked.append(args[:3]))
    model = VideoMV.from_pretrained(small_folder)
    model.compile(3)
    model.compile(steps_3d=())
    model.compile(mode="reference")
    assert asked == [(3, True, "guided"), (1, False, "guided"), (1, True, "reference")]
    with pytest.raises(InputError, match="batch: got 0"):
        model.compile(0)
    with pytest.raises(InputError, match="XLA cannot save a CPU's programs"):
        model.save_compiled("anywhere")
    with pytest.raises(InputError, match="nowhere holds no compiled programs"):
        model.load_compiled("nowhere")


def test_low_memory(model, generation, small_folder):
    """The text encoder waits on the host; images pass through in parts."""
    small = VideoMV.from_pretrained(small_folder, low_memory=True)._programs
    assert {type(x) for x in small.weights["text_encoder"]} == {np.ndarray}
    latents = np.random.default_rng(0).normal(size=(1, 8, 4, 4, 4)).astype("float32")
    usual = model._programs
    wanted = usual.decode(usual.weights, latents)
    lowered = small.decode.trace(small.weights, latents).lower()
    assert "while" in lowered.as_text()
    found = small.decode(small.weights, latents)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert np.ptp(found) > 0.1


def test_a_rounded_model_is_not_saved_as_more(small_folder, tmp_path):
    model = VideoMV.from_pretrained(small_folder, dtype="bfloat16")
    with pytest.raises(InputError, match="unet was loaded in bfloat16"):
        model.save_pretrained(tmp_path / "copy")
    model.save_pretrained(tmp_path / "copy", dtype="bfloat16")
    assert read_config(tmp_path / "copy") == read_config(small_folder)


def test_a_batch_is_its_prompts(model):
    batch = model.generate(["a green boat", PROMPT], seed=2**32 - 2, steps_3d=())
    assert batch.views.shape[0] == len(batch.gaussians.means) == 2
    first = model.generate("a green boat", seed=2**32 - 2, steps_3d=())
    second = model.generate(PROMPT, seed=2**32 - 1, steps_3d=())
    wanted = np.concatenate([first.views, second.views])
    np.testing.assert_allclose(batch.views, wanted, atol=1e-3)
    assert np.abs(wanted[0] - wanted[1]).max() > 0.01


def test_without_3d(plain, generation):
    assert plain.settings["steps_3d"] == []
    assert plain.gaussians is not None
    assert np.abs(plain.views - generation.views).max() > 0.01


def test_reference_mode(model):
    reference = model.generate(PROMPT, mode="reference")
    assert reference.settings["sampler"] == "ddim"
    assert reference.settings["steps"] == 50
    assert reference.settings["steps_3d"] == [20, 30, 40]
    assert np.isfinite(reference.views).all()
    again = model.generate(PROMPT, mode="reference")
    np.testing.assert_array_equal(again.views, reference.views)


def test_progress_names_every_stage_in_order(model, monkeypatch):
    monkeypatch.setattr("videomv_jax.pipeline._CALL_S", 0.0)  # every step is told
    heard = []
    model.generate(PROMPT, progress=lambda *event: heard.append(event))
    stages = list(dict.fromkeys(stage for stage, _, _ in heard))
    assert stages == ["compiling", "denoising", "decoding", "reconstructing"]
    steps = [event for event in heard if event[0] == "denoising"]
    assert steps == [("denoising", done, 4) for done in range(5)]
    for stage in stages:
        done, total = [event[1:] for event in heard if event[0] == stage][-1]
        assert done == total


def test_short_calls_are_joined(model, generation, monkeypatch):
    monkeypatch.setattr("videomv_jax.pipeline._CALL_S", 1e9)
    heard = []
    again = model.generate(PROMPT, progress=lambda *event: heard.append(event))
    steps = [done for stage, done, _ in heard if stage == "denoising"]
    assert steps == [0, 1, 4]
    np.testing.assert_array_equal(again.views, generation.views)


def test_reconstruct_is_what_generate_does(model, generation):
    some = np.array([0, 2, 4, 6])
    cameras = generation.cameras[some]
    gaussians = model.reconstruct(generation.views[:, some], cameras)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
        gaussians,
        generation.gaussians,
    )
    batched = jax.tree.map(lambda x: x[None], cameras)
    again = model.reconstruct(generation.views[:, some], batched)
    np.testing.assert_allclose(again.means, gaussians.means, atol=1e-4)


def test_gaussians_are_in_the_world_frame(model, generation):
    """Seen from elsewhere, the same object: cameras turn, so do the Gaussians."""
    some = np.array([0, 2, 4, 6])
    turned = model.config.cameras.orbit()[some]
    quarter = np.array([[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    turned = dataclasses.replace(
        turned,
        world_to_camera=turned.world_to_camera @ quarter.T[None].astype(np.float32),
    )
    seen = model.reconstruct(generation.views[:, some], turned)
    wanted = np.asarray(generation.gaussians.means) @ quarter[:3, :3].T
    np.testing.assert_allclose(seen.means, wanted, atol=1e-4)


def test_turntable(model, generation):
    films, dropped = model.turntable(generation.gaussians, frames=11)
    assert films.shape == (1, 11, 32, 32, 3) and dropped == 0
    some, _ = model.turntable(generation.gaussians, frames=22)
    np.testing.assert_allclose(some[:, ::2], films, atol=1e-5)


def test_saved_is_the_same_model(model, small_folder, tmp_path):
    model.save_pretrained(tmp_path / "copy")
    config = read_config(small_folder)
    for part in (part for part in PARTS if getattr(config, part)):
        name = f"{part}.safetensors"
        again, before = (
            (f / name).read_bytes() for f in (tmp_path / "copy", small_folder)
        )
        assert again == before
    assert read_config(tmp_path / "copy") == read_config(small_folder)
    again = VideoMV.from_pretrained(tmp_path / "copy")
    np.testing.assert_array_equal(
        again.tokenize([PROMPT])[0], model.tokenize([PROMPT])[0]
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompts": ""}, "prompt: it is empty"),
        ({"prompts": [PROMPT, "  "]}, "prompt: it is empty"),
        ({"prompts": []}, "prompts: got none"),
        ({"seed": -1}, "seed: got -1, want 0 to 4294967295"),
        ({"seed": 2**32}, "seed: got 4294967296"),
        ({"steps": 0}, "steps: got 0, want 1 to 1000"),
        ({"steps": 1001}, "steps: got 1001"),
        ({"sampler": "ddmi"}, "unknown sampler 'ddmi': did you mean 'ddim'"),
        ({"mode": "referense"}, "unknown mode .*did you mean 'reference'"),
        ({"guidance": -1.0}, "guidance: got -1.0, want 0 to 100"),
        ({"guidance": float("nan")}, "guidance: got nan"),
        ({"guidance_rescale": 1.5}, "guidance_rescale: got 1.5, want 0 to 1"),
        ({"steps_3d": (1.0,)}, "fractions: got 1.0"),
    ],
)
def test_bad_input(model, change, words):
    with pytest.raises(InputError, match=words):
        model.generate(**({"prompts": PROMPT} | change))


def test_bad_views(model, generation):
    cameras = generation.cameras
    with pytest.raises(InputError, match=r"images: \(1, 8, 16, 16, 3\); want .*32"):
        model.reconstruct(generation.views[:, :, ::2, ::2], cameras)
    with pytest.raises(InputError, match=r"cameras: \(4,\); want \(8,\) or \(1, 8\)"):
        model.reconstruct(generation.views, cameras[np.arange(4)])


def test_missing_parts_are_told(small_folder):
    loaded = load_model(small_folder)
    plain = VideoMV(dataclasses.replace(loaded, reconstructor=None))
    with pytest.raises(InputError, match="'small' has no reconstructor"):
        plain.generate(PROMPT)
    with pytest.raises(InputError, match="'small' has no reconstructor"):
        plain.reconstruct(np.zeros((1, 4, 32, 32, 3)), plain.config.cameras.orbit(4))
    assert plain.generate(PROMPT, steps_3d=()).gaussians is None
    with pytest.raises(InputError, match="'small' has no unet"):
        VideoMV(dataclasses.replace(loaded, unet=None)).generate(PROMPT)
    with pytest.raises(InputError, match="'small' has no tokenizer"):
        VideoMV(dataclasses.replace(loaded, tokenizer_dir=None)).generate(PROMPT)


def test_long_prompts_say_what_is_cut(model):
    _, (none, rest) = model.tokenize([PROMPT, f"{PROMPT} " * 8 + "and a green boat"])
    assert none == ""
    assert rest.endswith("green boat")


def test_unknown_models_name_the_closest(monkeypatch, tmp_path):
    monkeypatch.setattr(embedded, "embedded", lambda: ["tiny", "large"])
    with pytest.raises(InputError, match="unknown model.*'tinny': did you mean 'tiny'"):
        VideoMV.from_pretrained("tinny")
    with pytest.raises(InputError, match="is not a model folder"):
        VideoMV.from_pretrained(tmp_path)
