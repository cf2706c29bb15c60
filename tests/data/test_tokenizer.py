"""The small tokenizer: any text, the same every time."""

import numpy as np
import pytest

from videomv_jax.data.synthetic import sample_descriptions
from videomv_jax.data.tokenizer import encode, load_tokenizer, train_tokenizer
from videomv_jax.types import InputError

CAPTIONS = [one.text for one in sample_descriptions(3000, 0)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CAPTIONS)


def test_training_is_deterministic(tokenizer):
    again = train_tokenizer(CAPTIONS)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert len(tokenizer) <= 1024


def test_words_of_captions_are_single_tokens(tokenizer):
    ids, cut = encode(tokenizer, ["A red chair with BLUE legs"], 12)
    assert ids.dtype == np.int32 and ids.shape == (1, 12) and cut == [""]
    assert ids[0, 0] == 1 and ids[0, 7] == 2
    assert (ids[0, 1:7] > 2).all() and (ids[0, 8:] == 0).all()
    assert len(set(ids[0, 1:7].tolist())) == 6


def test_captions_fit(tokenizer):
    _, cut = encode(tokenizer, CAPTIONS, 48)
    assert not any(cut)


@pytest.mark.parametrize("text", ["a größe 椅子 🪑!", "", "zebra\n\tquantum"])
def test_any_text_survives(tokenizer, text):
    ids, _ = encode(tokenizer, [text], 64)
    back = tokenizer.decode(ids[0], skip_special_tokens=True)
    assert back.strip() == text.strip()


def test_too_long(tokenizer):
    prompt = "a red chair with blue legs and a green back"
    ids, cut = encode(tokenizer, [prompt, "a car"], 8)
    assert cut == ["and a green back", ""]
    assert ids[0, -1] == 2 and (ids[0] > 0).all()


def test_saved_and_read(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    again = load_tokenizer(tmp_path / "tokenizer")
    want, _ = encode(tokenizer, CAPTIONS[:50], 48)
    np.testing.assert_array_equal(encode(again, CAPTIONS[:50], 48)[0], want)


def test_bad_input(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(InputError, match="tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(InputError, match="vocabulary"):
        train_tokenizer(CAPTIONS, 100)
