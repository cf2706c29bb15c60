"""The streams of captions and the two splits."""

import random

import pytest

from videomv_jax.data.synthetic import (
    CATEGORIES,
    heldout_captions,
    parse,
    sample,
    sample_descriptions,
    sample_one,
    split_of,
)
from videomv_jax.data.synthetic.sampling import composition
from videomv_jax.types import InputError


def test_streams_do_not_change():
    texts = [one.text for one in sample_descriptions(3, 0, "train")]
    assert texts == [
        "a narrow red truck with a purple cab and orange wheels",
        "a black bottle with a blue cap",
        "a lamp",
    ]
    assert sample_one(0, 2, "train").text == texts[2]
    assert [o.text for o in sample_descriptions(3, 1, "train")] != texts


def test_splits_share_no_look():
    train = {composition(one) for one in sample_descriptions(3000, 0, "train")}
    heldout = {composition(one) for one in sample_descriptions(300, 0, "heldout")}
    assert not train & heldout
    assert len(train) > 2000


def test_the_example_is_held_out_in_any_words():
    for text in (
        "a red chair with blue legs",
        "a tall red chair with blue legs",
        "a red chair with a red back and blue legs",
        "a blue chair with a red seat and a red back",
    ):
        assert split_of(parse(text)) == "heldout", text
    train = sample_descriptions(3000, 0, "train")
    words = " ".join(one.text for one in train)
    # Its parts are seen.
    assert "red chair" in words and "blue legs" in words


def test_size_words_do_not_move_a_caption_between_splits():
    for one in sample_descriptions(50, 3, "heldout"):
        plain = parse(" ".join(w for w in one.text.split() if w not in one.sizes))
        assert split_of(plain) == "heldout"


def test_share_of_the_heldout_split():
    rng = random.Random(0)
    held = sum(split_of(sample(rng)) == "heldout" for _ in range(4000))
    assert 0.05 < held / 4000 < 0.11


def test_samples_cover_the_grammar_and_show_their_main_color():
    seen = sample_descriptions(4000, 5, "train")
    assert {one.category for one in seen} == set(CATEGORIES)
    assert {one.pattern for one in seen} == {None, "striped", "dotted", "checkered"}
    for one in seen:
        if one.color:
            assert one.color in {paint.color for paint in one.paints().values()}


def test_heldout_captions():
    captions = heldout_captions(64, 0)
    assert captions[0] == "a red chair with blue legs"
    assert len(set(captions)) == 64
    assert captions[:10] == heldout_captions(10, 0)
    assert captions[1:] != heldout_captions(64, 1)[1:]
    assert all(split_of(parse(text)) == "heldout" for text in captions)


def test_unknown_split():
    with pytest.raises(InputError, match="train"):
        sample_descriptions(1, 0, "test")  # type: ignore[arg-type]
