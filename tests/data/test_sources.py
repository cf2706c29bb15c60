"""Items by number, and the loader's order, shards and resumption."""

import json

import jax
import numpy as np
import pytest

from videomv_jax.data.sources import SyntheticSource, loader
from videomv_jax.data.synthetic import Scene, build_scene, parse, split_of
from videomv_jax.data.tokenizer import encode, train_tokenizer
from videomv_jax.types import InputError


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["a red chair with blue legs", "a tall green house"])


def make(tokenizer, count=12, **options):
    return SyntheticSource(count, tokenizer, **options)


def assert_same(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_items(tokenizer):
    source = make(tokenizer, length=40)
    assert len(source) == 12
    item = source[3]
    assert isinstance(item["scene"], Scene)
    assert_same(item["scene"], build_scene(parse(item["caption"])))
    np.testing.assert_array_equal(
        item["tokens"], encode(tokenizer, [item["caption"]], 40)[0][0]
    )
    assert_same(item, make(tokenizer, count=99, length=40)[3])
    assert make(tokenizer, seed=1)[3]["caption"] != item["caption"]
    heldout = make(tokenizer, split="heldout")
    assert all(split_of(parse(heldout[i]["caption"])) == "heldout" for i in range(5))


def test_batches(tokenizer):
    batch = next(loader(make(tokenizer), 4))
    assert batch["caption"].shape == (4,)
    assert batch["tokens"].shape == (4, 48) and batch["tokens"].dtype == np.int32
    assert batch["scene"].center.shape[0] == 4


def captions(iterator, batches):
    return [next(iterator)["caption"].tolist() for _ in range(batches)]


def test_every_epoch_has_every_item_in_another_order(tokenizer):
    source = make(tokenizer)
    everything = sorted(source[i]["caption"] for i in range(12))
    iterator = loader(source, 4, seed=5)
    first, second = sum(captions(iterator, 3), []), sum(captions(iterator, 3), [])
    assert sorted(first) == sorted(second) == everything
    assert first != second
    assert sum(captions(loader(source, 4, seed=5), 3), []) == first
    assert sum(captions(loader(source, 4, seed=6), 3), []) != first
    plain = sum(captions(loader(source, 4, shuffle=False), 3), [])
    assert plain == [source[i]["caption"] for i in range(12)]


def test_resuming_is_exact(tokenizer):
    source = make(tokenizer)
    iterator = loader(source, 4, seed=2)
    captions(iterator, 4)  # into the second epoch
    state = json.dumps(iterator.get_state())
    expected = [next(iterator) for _ in range(3)]
    resumed = loader(source, 4, seed=2)
    resumed.set_state(json.loads(state))
    for want in expected:
        assert_same(next(resumed), want)


def test_processes_share_the_batch(tokenizer):
    source = make(tokenizer)
    whole = captions(loader(source, 4, seed=3), 6)
    parts = [captions(loader(source, 4, seed=3, process=(i, 2)), 6) for i in range(2)]
    for step in range(6):
        assert len(parts[0][step]) == 2
        assert sorted(parts[0][step] + parts[1][step]) == sorted(whole[step])


def test_bad_input(tokenizer):
    with pytest.raises(InputError, match="count"):
        make(tokenizer, count=0)
    with pytest.raises(InputError, match="heldout"):
        make(tokenizer, split="held")
    with pytest.raises(InputError, match="batch_size"):
        loader(make(tokenizer), 3, process=(0, 2))
