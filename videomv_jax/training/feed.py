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
from videomv_jax.data.sources import SourceSpec, open_source, read_specs
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
    else moves. With `config.image_batch`, pictures come beside clips, an equal number
    beside each.

    Args:
        config: source, seed, reading threads, pictures of a step.
        model: size, views, background, suffix of captions.
        tokenizer: of the captions.
        vae: the run's, which shards must have been encoded with.
        text: the run's text encoder where it does not train: shards that have text
            states of it are read with them.
        coverage: give views with coverage, `[f, h, w, 4]`, beside latents; otherwise
            latents alone, or views over grey, `[f, h, w, 3]`, where there are none.

    Raises:
        InputError: a source cannot be read or was encoded with another model; clips
            and pictures in a run without `image_batch`, one that the batch does not
            divide; shards mixed with sources of views.
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
        specs = read_specs(config.source)
        opened = [(spec, open_source(spec, model.cameras.views)) for spec in specs]
        reader = _Reader(model, tokenizer, vae, text, coverage, self.problems)
        pictured = [_pictured(source) for _, source in opened]
        pictures = [
            x for x, is_picture in zip(opened, pictured, strict=True) if is_picture
        ]
        clips = [x for x in opened if x not in pictures] or pictures
        self._clips = _Mix(clips, reader)
        self._pictures, self._beside = None, 0
        if clips is not pictures and pictures:
            if not config.image_batch or config.image_batch % config.batch_size:
                raise InputError(
                    f"image_batch: {config.image_batch}; {config.source} has clips and "
                    f"pictures: want a multiple of batch_size {config.batch_size}"
                )
            self._pictures = _Mix(pictures, reader)
            self._beside = config.image_batch // config.batch_size

    def numbers(self, seed: int) -> grain.MapDataset:
        """Pairs of a source's number and a sample's in it; with pictures, of a clip and
        the pictures beside it."""
        clips = self._clips.numbers(seed)
        if self._pictures is None:
            return clips
        pictures, count = self._pictures.numbers(seed), self._beside

        def join(place: int, clip: np.ndarray) -> np.ndarray:
            beside = [pictures[place * count + i] for i in range(count)]
            return np.stack([clip, *beside])  # type: ignore[list-item]

        return clips.map_with_index(join)

    def load(self, numbers: np.ndarray) -> Batch:
        """Arrays of some objects, see `objects_of`."""
        if numbers.ndim == 2:
            return self._clips.load(numbers)
        assert self._pictures is not None
        batch = self._clips.load(numbers[:, 0])
        beside = self._pictures.load(numbers[:, 1:].reshape(-1, 2))
        shape = len(numbers), self._beside
        pictures = {n: x.reshape(*shape, *x.shape[1:]) for n, x in beside.items()}
        return batch | {"pictures": pictures}

    def held(self, count: int, vae: VAE) -> Pool:
        """The first objects of the first source, to show how far training is."""
        batch = self._clips.load(self._clips.first(count))
        cameras, key = self._clips.reader.model.cameras, jax.random.key(0)
        graph, state = nnx.split(vae)

        @jax.jit
        def make(state, batch):
            merged = nnx.merge(graph, state)
            return objects_of(batch, None, merged, cameras, key)

        return make(state, batch)


def _pictured(source: SampleSource) -> bool:
    if isinstance(source, ShardSource):
        return source.manifest.views == 1
    return source.layout in ("pictures", "tars")


class _Mix:
    """Sources of one kind, drawn by their weights."""

    def __init__(
        self, opened: list[tuple[SourceSpec, SampleSource]], reader: "_Reader"
    ):
        self.reader = reader
        self._weights = [spec.weight for spec, _ in opened]
        self._sources = [source for _, source in opened]
        encoded = [s for s in self._sources if isinstance(s, ShardSource)]
        if 0 < len(encoded) < len(self._sources):
            raise InputError("source: shards are mixed with other layouts")
        # States that nobody stored are computed from tokens in the step.
        self._states = bool(encoded) and reader.text is not None
        self._states = self._states and all(s.manifest.text for s in encoded)
        for source in encoded:
            reader.check(source, self._states)

    def numbers(self, seed: int) -> grain.MapDataset:
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

    def first(self, count: int) -> np.ndarray:
        at = np.arange(min(count, len(self._sources[0])))
        return np.stack([np.zeros_like(at), at], -1)

    def load(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        items = [self._one(int(source), int(at)) for source, at in numbers]
        return {name: np.stack([item[name] for item in items]) for name in items[0]}

    def _one(self, number: int, index: int) -> dict[str, np.ndarray]:
        source, problems = self._sources[number], self.reader.problems
        for step in range(len(source)):
            place = (index + step) % len(source)
            try:
                return self.reader.read(source, place, self._states)
            except InputError as error:
                problems[source.names[place]] = str(error)
        raise InputError(
            f"source: no sample can be read: {next(iter(problems.values()))}"
        )


class _Reader:
    """What a run wants of one sample."""

    def __init__(
        self,
        model: ModelConfig,
        tokenizer: PreTrainedTokenizerBase,
        vae: VAE,
        text: TextEncoder | None,
        coverage: bool,
        problems: dict[str, str],
    ):
        assert model.text_encoder is not None
        self.model, self.text, self.problems = model, text, problems
        self._tokenizer, self._vae, self._coverage = tokenizer, vae, coverage
        self._length = model.text_encoder.length

    def check(self, source: ShardSource, states: bool) -> None:
        """Compare what shards were made with and what the run has."""
        text = None
        if states and self.text is not None:
            text = text_fingerprint(self.text, self._tokenizer)
        source.check_encoders(vae=fingerprint(self._vae), text=text)
        cameras, manifest = self.model.cameras, source.manifest
        wanted = {"size": cameras.size, "background": cameras.background}
        if not _pictured(source):
            wanted["views"] = cameras.views
            if states:
                wanted["suffix"] = self.model.sampling.prompt_suffix
        for name, value in wanted.items():
            if getattr(manifest, name) != value:
                raise InputError(
                    f"source: {manifest.source} was encoded with {name} "
                    f"{getattr(manifest, name)!r}, the model wants {value!r}"
                )

    def read(
        self, source: SampleSource, index: int, states: bool
    ) -> dict[str, np.ndarray]:
        cameras = self.model.cameras
        found: dict[str, np.ndarray] = {}
        sample: Sample | None = None
        if isinstance(source, ShardSource):
            record = source.latents(index)
            names = ["mean", "logvar", "world_to_camera", "intrinsics"]
            found = {name: record[name] for name in names if name in record}
            if states:
                found["states"] = record["text"]
            text, pictured = caption(record), "intrinsics" not in record
            if self._coverage:
                sample = source[index]
        else:
            sample = fit(source[index], cameras.size)
            text, pictured = sample.caption, sample.cameras is None
            if sample.cameras is not None:
                for name in ("world_to_camera", "intrinsics"):
                    found[name] = np.asarray(getattr(sample.cameras, name))
        if sample is not None:
            wanted = 1 if pictured else cameras.views
            if len(sample.views) != wanted:
                raise InputError(
                    f"{sample.name}: {len(sample.views)} views, want {wanted}"
                )
            views = sample.views
            found["views"] = (
                views if self._coverage else over(views, cameras.background)
            )
        prompt = prompt_of(text, self.model.sampling.prompt_suffix, pictured)
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
    pictures = None
    if "pictures" in batch:
        beside = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch["pictures"])
        apart = jax.random.fold_in(key, 1)
        pictures = objects_of(beside, None, vae, cameras, apart)
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
    states = batch.get("states")
    return Pool(views, batch["tokens"], latents, stands, states, pictures=pictures)
