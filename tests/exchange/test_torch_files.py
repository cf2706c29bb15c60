"""Files of torch: read without running them, written and read back bit for bit."""

import dataclasses
import sys

import numpy as np
import pytest

from videomv_jax.convert import pickles
from videomv_jax.model_folder import read_config
from videomv_jax.types import InputError


def test_torch_is_asked_for_only_when_needed(tmp_path, monkeypatch, convert):
    (tmp_path / "t2v.pth").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "torch", None)
    result = convert(tmp_path / "t2v.pth", "--list", code=2)
    assert "pip install 'videomv-jax[convert]'" in result.stderr


@pytest.mark.parity
@pytest.mark.parametrize("zipped", [True, False])
def test_reading(tmp_path, zipped):
    import torch

    path = tmp_path / "x.pth"
    weight = torch.arange(6.0).reshape(2, 3)
    state = {"w": weight.T, "b": weight.bfloat16(), "h": weight.half(), "n": 3}
    content = {"state_dict": state, "step": 7, "optimizer": {"a": weight}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    tensors, dropped = pickles.open_file(path)
    assert dropped == {
        "step": "beside state_dict",
        "optimizer": "beside state_dict",
        "n": "not a tensor",
    }
    assert {k: t.dtype.name for k, t in tensors.items()} == {
        "w": "float32",
        "b": "bfloat16",
        "h": "float16",
    }
    np.testing.assert_array_equal(tensors["w"].read(), weight.numpy().T)
    np.testing.assert_array_equal(tensors["b"].read().astype("f4"), weight.numpy())


class Bomb:
    def __reduce__(self):
        return print, ("boom",)


@pytest.mark.parity
def test_code_is_not_run(tmp_path, capsys):
    import torch

    torch.save({"x": Bomb()}, tmp_path / "x.pth")
    with pytest.raises(InputError, match="more than weights, and its code is not run"):
        pickles.open_file(tmp_path / "x.pth")
    assert "boom" not in capsys.readouterr().out
    (tmp_path / "y.pth").write_bytes(b"nothing")
    with pytest.raises(InputError, match="y.pth"):
        pickles.open_file(tmp_path / "y.pth")
    torch.save([1], tmp_path / "z.pth")
    with pytest.raises(InputError, match="holds a list, want weights"):
        pickles.open_file(tmp_path / "z.pth")


@pytest.mark.parity
def test_there_and_back(narrow, settings, convert, tmp_path):
    """From files of torch to a folder and back, bit for bit."""
    import torch

    def tensors(arrays, dtype=torch.float32):
        return {k: torch.from_numpy(x).to(dtype) for k, x in arrays.items()}

    files = {
        "videomv_t2v.pth": {
            "state_dict": tensors(narrow("videomv_t2v_unet"), torch.float16)
            | tensors(narrow("lgm_big", "lgm_big.")),
            "step": 333000,
        },
        "VQGAN_autoencoder.pth": {
            "state_dict": tensors(
                narrow("autoencoder_kl", "first_stage_model."), torch.bfloat16
            )
        },
        "open_clip_text.bin": tensors(narrow("open_clip_vit_h_14")),
    }
    for name, content in files.items():
        torch.save(content, tmp_path / name)
    folder, back = tmp_path / "folder", tmp_path / "back"
    chosen = [word for s in settings for word in ("--set", s)]
    convert(*(tmp_path / name for name in files), "--to", folder, *chosen)
    convert(folder, "--as", "torch", "--to", back)
    for name, content in files.items():
        seen = torch.load(back / name, weights_only=True)
        seen = seen.get("state_dict", seen)
        wanted = content.get("state_dict", content)
        if name == "open_clip_text.bin":  # what the text states need
            wanted = {
                k: x
                for k, x in wanted.items()
                if not k.startswith(("visual.", "transformer.resblocks.23."))
                and k not in ("text_projection", "logit_scale")
            }
        assert seen.keys() == wanted.keys()
        for key, x in wanted.items():
            assert x.dtype == seen[key].dtype and torch.equal(x, seen[key]), key
    # And to a folder again, which needs no word about sizes that shapes do not tell.
    convert(back, "--to", tmp_path / "again")
    first, second = (read_config(tmp_path / name) for name in ("folder", "again"))
    read = first.text_encoder.layers - first.text_encoder.skip_last
    text = dataclasses.replace(first.text_encoder, layers=read, skip_last=0)
    told = {name: getattr(second, name) for name in ("name", "licence", "provenance")}
    first = dataclasses.replace(first, text_encoder=text, **told)
    assert first == second
    for file in folder.glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


@pytest.mark.parity
def test_there_and_back_of_the_image_model(narrow, convert, tmp_path):
    import torch

    tower = {
        k: x for k, x in narrow("open_clip_vit_h_14").items() if k.startswith("visual")
    }
    files = {
        "videomv_i2v.pth": narrow("videomv_i2v_unet"),
        "open_clip_image.bin": tower,
    }
    files = {
        name: {k: torch.from_numpy(x).half() for k, x in tensors.items()}
        for name, tensors in files.items()
    }
    for name, content in files.items():
        torch.save({"state_dict": content, "step": 882000}, tmp_path / name)
    folder, back = tmp_path / "folder", tmp_path / "back"
    chosen = ("--set", "unet.head_dim=8", "--set", "image_encoder.heads=2")
    convert(*(tmp_path / name for name in files), "--to", folder, *chosen)
    convert(folder, "--as", "torch", "--to", back)
    for name, wanted in files.items():
        seen = torch.load(back / name, weights_only=True)
        seen = seen.get("state_dict", seen)
        assert seen.keys() == wanted.keys()
        assert all(torch.equal(seen[key], x) for key, x in wanted.items())


@pytest.mark.parity
def test_lpips_as_its_package_saves_it(convert, tmp_path):
    import torch

    rng = np.random.default_rng(0)
    state = {"scaling_layer.shift": torch.tensor([-0.030, -0.088, -0.188])}
    state["scaling_layer.scale"] = torch.tensor([0.458, 0.448, 0.450])
    state = {k: x.reshape(1, 3, 1, 1) for k, x in state.items()}
    width = 3
    for level, layers in enumerate([(0, 2), (5, 7), (10,)]):
        for layer in layers:
            kernel = rng.normal(size=(4, width, 3, 3)).astype(np.float32)
            place, width = f"net.slice{level + 1}.{layer}", 4
            state[f"{place}.weight"] = torch.from_numpy(kernel)
            state[f"{place}.bias"] = torch.zeros(4)
        head = torch.from_numpy(rng.uniform(size=(1, 4, 1, 1)).astype(np.float32))
        state |= {f"{x}{level}.model.1.weight": head for x in ("lin", "lins.")}
    torch.save(state, tmp_path / "lpips.pth")
    folder, back = tmp_path / "folder", tmp_path / "back"
    result = convert(tmp_path / "lpips.pth", "--to", folder)
    assert "3 dropped, the heads once more" in result.stdout
    convert(folder, "--as", "torch", "--to", back)
    seen = torch.load(back / "lpips.pth", weights_only=True)
    assert seen.keys() == state.keys()
    assert all(torch.equal(seen[key], x) for key, x in state.items())
