"""Captions: both directions, and what is refused."""

import pytest

from videomv_jax.data.synthetic import Description, parse, sample_descriptions
from videomv_jax.types import InputError


def test_every_sampled_caption_reads_back_as_itself():
    for split in ("train", "heldout"):
        for one in sample_descriptions(500, 1, split):
            assert parse(one.text) == one


@pytest.mark.parametrize(
    "text, want",
    [
        ("a red chair", Description("chair", "red")),
        ("The RED chair.", Description("chair", "red")),
        (
            "a striped red and white mug with a blue handle",
            Description("mug", "red", "striped", "white", (("handle", "blue"),)),
        ),
        (
            "red and white striped cup with blue handle",
            Description("mug", "red", "striped", "white", (("handle", "blue"),)),
        ),
        ("an orange ice cream", Description("ice cream", "orange")),
        ("tall wide house", Description("house", sizes=("tall", "wide"))),
        ("dotted gray gift", Description("gift", "grey", "dotted", "white")),
        ("striped white gift", Description("gift", "white", "striped", "black")),
    ],
)
def test_free_wording(text, want):
    assert parse(text) == want


def test_order_of_parts_and_sizes_does_not_matter():
    one = parse("a wide big car with black wheels, a white roof and blue windows")
    two = parse("a big wide car with blue windows and black wheels and a white roof")
    assert one == two
    assert one.text == (
        "a big wide car with a white roof, blue windows and black wheels"
    )


@pytest.mark.parametrize(
    "text, told",
    [
        ("", "a red chair"),
        ("with a red door", "a red chair"),
        ("a red chiar", "'chair'"),
        ("a blue ice creem", "'ice cream'"),
        ("a rde chair", "'red'"),
        ("a red chair with blue legz", "'legs'"),
        ("a red chair with blue wheels", "back, legs, seat"),
        ("a red chair with blu legs", "'blue'"),
        ("a red chair with blue", "'blue' alone"),
        ("a red blue chair", "pattern word"),
        ("a red green blue striped chair", "at most two colors"),
        ("a striped red and red chair", "two different colors"),
        ("a big small chair", "big and small"),
        ("a chair with red legs and blue legs", "twice"),
    ],
)
def test_outside_the_grammar(text, told):
    with pytest.raises(InputError, match="caption") as error:
        parse(text)
    assert told in str(error.value)


def test_articles_and_plurals():
    one = Description("clock", "orange", parts=(("feet", "red"), ("face", "orange")))
    assert one.text == "an orange clock with an orange face and red feet"


def test_defaults_differ_from_the_main_color():
    paints = Description("car", "black").paints()
    assert paints[""].color == "black"
    assert paints["roof"].color == "black"
    assert paints["wheels"].color == "grey"


def test_named_parts_are_plain_and_others_wear_the_pattern():
    paints = parse("a striped red and white chair with blue legs").paints()
    assert paints["legs"].color == "blue" and paints["legs"].pattern is None
    assert paints["back"].pattern == "striped" and paints["back"].second == "white"
