"""Where a run's objects come from: numbers of a pool on the devices, or a source.

Every process goes through the same endless order of numbers, a whole batch at a time,
and reads those its devices hold: neither the order nor where to resume in it depends
on how many processes there are.
"""

from typing import Any, Protocol

import grain
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from transformers import PreTrainedTokenizerBase

from videomv_jax.data.encode import prompt_of, text_fingerprint
from videomv_jax.data.samples import Sample, SampleSource, fit, over
from videomv_jax.data.shards import ShardSource, caption, fingerprint
from videomv_jax.data.sources import open_source, read_specs
from videomv_jax.data.tokenizer import encode
from videomv_jax.model_folder import CameraConfig, ModelConfig
from videomv_jax.models.clip import TextEncoder
from videomv_jax.models.vae import VAE
from videomv_jax.splat.cameras import Cameras
from videomv_jax.training.config import TrainConfig
from videomv_jax.training.pool import Pool, Views
from videomv_jax.types import InputError, PRNGKey

Batch = Any
"""Object numbers `[b]`, or a dict of arrays that lead with `b`."""


class Feed(Protocol):
    """Objects by number.

    Attributes:
        threads: that call `load`.
        problems: objects that were passed over so far, and why.
    """

    threads: int
    problems: dict[str, str]

    def numbers(self, seed: int) -> grain.MapDataset:
        """An endless order of objects."""
        ...

    def load(self, numbers: np.ndarray) -> Batch:
        """What the step gets of some objects, numpy."""
        ...


class Numbers:
    """Objects that lie on the devices: the step gets their numbers alone."""

    threads = 1

    def __init__(self, count: int):
        self._count = count
        self.problems: dict[str, str] = {}

    def numbers(self, seed: int) -> grain.MapDataset:
        """See `Feed`."""
        return grain.MapDataset.range(self._count).shuffle(seed=seed).repeat()

    def load(self, numbers: np.ndarray) -> Batch:
        """The numbers."""
        return numbers


def batches(feed: Feed, config: TrainConfig, rows: np.ndarray) -> grain.DatasetIterator:
    """Batches for ever, of each the rows that this process's devices hold."""
    numbers = feed.numbers(config.seed).batch(config.batch_size, drop_remainder=True)
    loaded = numbers.map(lambda batch: feed.load(batch[rows]))  # type: ignore[index]
    options = grain.ReadOptions(feed.threads, prefetch_buffer_size=2 * feed.threads)
    return iter(loaded.to_iter_dataset(options))


class SourceFeed:
    """Objects of `config.source`, several sources mixed by their weights.

    An object that cannot be read gives its place to the next one that can: nothing
    else moves.

    Args:
        config: source, seed, reading threads.
        model: size, views, background, suffix of captions.
        tokenizer: of the captions.
        vae: the run's, which shards must have been encoded with.
        text: the run's text encoder where it does not train: shards that have text
            states of it are read with them.
        coverage: give views with coverage, `[f, h, w, 4]`, beside latents; otherwise
            latents alone, or views over grey, `[f, h, w, 3]`, where there are none.

    Raises:
        InputError: a source cannot be read or was encoded with another autoencoder;
            clips and pictures are mixed, or shards with sources of views.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: ModelConfig,
        tokenizer: PreTrainedTokenizerBase,
        vae: VAE,
        text: TextEncoder | None,
        *,
        coverage: bool,
    ):
        self.threads = config.threads
        self.problems: dict[str, str] = {}
        self._model, self._tokenizer, self._coverage = model, tokenizer, coverage
        assert model.text_encoder is not None
        self._length = model.text_encoder.length
        specs = read_specs(config.source)
        self._weights = [spec.weight for spec in specs]
        views = model.cameras.views
        self._sources = [open_source(spec, views) for spec in specs]
        encoded = [s for s in self._sources if isinstance(s, ShardSource)]
        if 0 < len(encoded) < len(self._sources):
            raise InputError(f"source: {config.source} mixes shards and other layouts")
        self._views = self._same_kind(config.source)
        if self._views != 1 and self._views != views:
            raise InputError(
                f"source: samples of {self._views} views, the model wants {views}"
            )
        ours = fingerprint(vae) if encoded else ""
        # States that nobody stored are computed from tokens in the step.
        use_text = text is not None and all(s.manifest.text for s in encoded)
        self._text = bool(encoded) and use_text
        theirs = text_fingerprint(text, tokenizer) if self._text and text else None
        for source in encoded:
            source.check_encoders(vae=ours, text=theirs)

    def _same_kind(self, where: str) -> int:
        """Views of every sample."""
        kinds = set()
        for source in self._sources:
            if isinstance(source, ShardSource):
                kinds.add(source.manifest.views)
            else:
                pictured = source.layout in ("pictures", "tars")
                kinds.add(1 if pictured else self._model.cameras.views)
        if len(kinds) > 1:
            raise InputError(f"source: {where} mixes clips and pictures")
        return kinds.pop()

    def numbers(self, seed: int) -> grain.MapDataset:
        """Pairs of a source's number and a sample's in it."""
        orders = [
            grain.MapDataset.range(len(source))
            .shuffle(seed=seed + number)
            .repeat()
            .map(lambda at, number=number: np.array([number, at]))
            for number, source in enumerate(self._sources)
        ]
        if len(orders) == 1:
            return orders[0]
        return grain.MapDataset.mix(orders, self._weights)

    def load(self, numbers: np.ndarray) -> Batch:
        """Arrays of some objects, see `objects_of`."""
        items = [self._one(int(source), int(at)) for source, at in numbers]
        return {name: np.stack([item[name] for item in items]) for name in items[0]}

    def held(self, count: int, vae: VAE) -> Pool:
        """The first objects of the first source, to show how far training is."""
        at = np.arange(min(count, len(self._sources[0])))
        batch = self.load(np.stack([np.zeros_like(at), at], -1))
        cameras, key = self._model.cameras, jax.random.key(0)
        graph, state = nnx.split(vae)

        @jax.jit
        def make(state, batch):
            merged = nnx.merge(graph, state)
            return objects_of(batch, None, merged, cameras, key)

        return make(state, batch)

    def _one(self, number: int, index: int) -> dict[str, np.ndarray]:
        source = self._sources[number]
        for step in range(len(source)):
            place = (index + step) % len(source)
            try:
                return self._read(source, place)
            except InputError as error:
                self.problems[source.names[place]] = str(error)
        raise InputError(
            f"source: no sample can be read: {next(iter(self.problems.values()))}"
        )

    def _read(self, source: SampleSource, index: int) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        sample: Sample | None = None
        if isinstance(source, ShardSource):
            record = source.latents(index)
            names = ["mean", "logvar", "world_to_camera", "intrinsics"]
            found = {name: record[name] for name in names if name in record}
            if self._text:
                found["states"] = record["text"]
            text, pictured = caption(record), "intrinsics" not in record
            if self._coverage:
                sample = source[index]
        else:
            sample = fit(source[index], self._model.cameras.size)
            text, pictured = sample.caption, sample.cameras is None
            if sample.cameras is not None:
                for name in ("world_to_camera", "intrinsics"):
                    found[name] = np.asarray(getattr(sample.cameras, name))
        if sample is not None:
            if len(sample.views) != self._views:
                raise InputError(f"{sample.name}: {len(sample.views)} views")
            grey = self._model.cameras.background
            views = sample.views
            found["views"] = views if self._coverage else over(views, grey)
        prompt = prompt_of(text, self._model.sampling.prompt_suffix, pictured)
        found["tokens"] = encode(self._tokenizer, [prompt], self._length)[0][0]
        return found


def objects_of(
    batch: Batch, held: Pool | None, vae: VAE, cameras: CameraConfig, key: PRNGKey
) -> Pool:
    """The objects of a batch.

    Args:
        batch: numbers of held objects, or what a `SourceFeed` loads.
        held: the pool on the devices.
        vae: encodes views that come without latents.
        cameras: the model's: size of the views and grey behind them.
        key: latents of a source are drawn from the encoder's posterior, as in the
            original; those of the pool are its means.
    """
    if not isinstance(batch, dict):
        return jax.tree.map(lambda x: x[batch], held)
    views = Views(batch["views"]) if "views" in batch else None
    if "mean" in batch:
        mean, logvar = (batch[n].astype(jnp.float32) for n in ("mean", "logvar"))
        noise = jax.random.normal(key, mean.shape)
        latents = (mean + jnp.exp(0.5 * logvar) * noise) * vae.config.scale_factor
    else:
        assert views is not None
        latents = vae.encode(views.over(cameras.background)[0], key)
    stands = None
    if "intrinsics" in batch:
        matrices = batch["world_to_camera"], batch["intrinsics"]
        stands = Cameras(*matrices, cameras.size, cameras.size)
    return Pool(views, batch["tokens"], latents, stands, batch.get("states"))
