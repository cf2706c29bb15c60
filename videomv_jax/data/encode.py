"""From samples to shards: what every epoch would encode again is encoded once."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from videomv_jax.data import shards
from videomv_jax.data.bucket import staged
from videomv_jax.data.samples import Sample, SampleSource, fit, over
from videomv_jax.data.shards import Manifest, ShardWriter
from videomv_jax.data.tokenizer import encode as tokenize
from videomv_jax.models.clip import TextEncoder
from videomv_jax.models.vae import VAE
from videomv_jax.types import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True)
class Encoders:
    """What samples are encoded with, and how they are prepared.

    Attributes:
        vae: of the views.
        text: of the captions; None: they are stored as text alone.
        tokenizer: the text encoder's.
        size: height and width of a view in pixels.
        background: grey behind the views, in [0, 1].
        suffix: appended to captions of objects, not of pictures.
    """

    vae: VAE
    text: TextEncoder | None
    tokenizer: "PreTrainedTokenizerBase | None"
    size: int
    background: float
    suffix: str


def text_fingerprint(text: TextEncoder, tokenizer: "PreTrainedTokenizerBase") -> str:
    """What tells text encoders apart, their tokenizers included."""
    samples = ["a red chair", "Zwei Häuser, ein Boot."]
    tokens, _ = tokenize(tokenizer, samples, text.config.length)
    return shards.fingerprint(text, str(tokens.tolist()), str(len(tokenizer)))


def prompt_of(caption: str, suffix: str, pictured: bool) -> str:
    """The text that a caption is encoded as.

    Args:
        caption: as the source has it.
        suffix: what the model's captions of objects end in.
        pictured: a picture without a camera, whose caption stays as it is.
    """
    if pictured or suffix.strip(" ,") in caption:
        return caption
    return caption + suffix


def encode(
    source: SampleSource,
    out: str,
    encoders: Encoders,
    *,
    where: str,
    views: int,
    per_shard: int = 256,
    part: tuple[int, int] = (0, 1),
    threads: int = 4,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, str]:
    """Write shards of a source; those that are there already stay.

    Args:
        source: the samples.
        out: folder of the shards, or a bucket's address, see `bucket.staged`.
        encoders: what to encode with.
        where: the source's place, for the manifest.
        views: of a sample of it; samples with fewer are skipped.
        per_shard: samples of the source's listing in a shard.
        part: (i, n): write every n-th shard from the i-th. Each of n processes may
            write its part at any time.
        threads: that read.
        progress: is told how many samples of the part's are done, and of how many.

    Returns:
        The samples that were skipped this time, and why.

    Raises:
        InputError: the part is none, the folder was made from something else or
            cannot be reached or written.
    """
    index, count = part
    if not 0 <= index < count:
        raise InputError(f"shard: got {index}/{count}, want 0/n to n-1/n")
    if per_shard < 1:
        raise InputError(f"per_shard: got {per_shard}, want at least 1")
    pictured = source.layout in ("pictures", "tars")
    text = ""
    if encoders.text is not None:
        assert encoders.tokenizer is not None
        text = text_fingerprint(encoders.text, encoders.tokenizer)
    manifest = Manifest(
        version=shards.VERSION,
        source=where,
        layout=source.layout,
        samples=len(source),
        listing=shards.listing(list(source.names)),
        per_shard=per_shard,
        views=1 if pictured else views,
        size=encoders.size,
        background=encoders.background,
        suffix="" if pictured else encoders.suffix,
        vae=shards.fingerprint(encoders.vae),
        text=text,
    )
    mine = range(index, manifest.shards, count)
    places = {
        k: range(k * per_shard, min((k + 1) * per_shard, len(source))) for k in mine
    }
    total = sum(map(len, places.values()))
    skipped: dict[str, str] = {}
    with staged(out) as (folder, publish):
        if shards.begin(folder, manifest):
            publish([shards.MANIFEST])
        todo = [k for k in mine if not shards.complete(folder, manifest, k)]
        done = total - sum(len(places[k]) for k in todo)
        progress(done, total)
        compute = compiled(encoders)
        order = [place for k in todo for place in places[k]]
        samples = _samples(source, order, manifest, threads)
        for shard in todo:
            writer = ShardWriter(folder, manifest, shard)
            for place in places[shard]:
                sample = next(samples)
                if isinstance(sample, str):
                    writer.skip(source.names[place], sample)
                else:
                    writer.add(sample, compute(sample))
                done += 1
                progress(done, total)
            skipped |= writer.close()
            publish(manifest.files(shard))
    return skipped


def _samples(
    source: SampleSource, order: Sequence[int], manifest: Manifest, threads: int
) -> Iterator[Sample | str]:
    """Samples in order, at their size; or what is wrong with one."""

    def read(place: int) -> Sample | str:
        try:
            sample = fit(source[int(place)], manifest.size)
        except InputError as error:
            return str(error)
        if len(sample.views) != manifest.views:
            return f"{len(sample.views)} views, want {manifest.views}"
        return sample

    if not order:
        return iter(())
    items = grain.MapDataset.source(order).map(read)  # type: ignore[arg-type]
    return iter(
        items.to_iter_dataset(
            grain.ReadOptions(threads, prefetch_buffer_size=2 * threads)
        )
    )


def compiled(encoders: Encoders) -> Callable[[Sample], dict[str, np.ndarray]]:
    """A sample's latents and text states, views over all devices of this process."""
    devices = jax.local_devices()
    mesh = Mesh(np.array(devices), ("images",))
    split = NamedSharding(mesh, PartitionSpec("images"))
    whole = NamedSharding(mesh, PartitionSpec())

    vae, vae_state = nnx.split(encoders.vae)
    vae_state = jax.device_put(vae_state, whole)
    text, text_state = None, None
    if encoders.text is not None:
        text, text_state = nnx.split(encoders.text)
        text_state = jax.device_put(text_state, whole)

    def compute(sample: Sample) -> dict[str, np.ndarray]:
        images = over(sample.views, encoders.background)
        padding = -len(images) % len(devices)
        images = np.concatenate([images, images[:1].repeat(padding, 0)])
        found = _moments(vae, vae_state, jax.device_put(images, split))
        names = ("mean", "logvar")
        encoded = {
            name: np.asarray(x)[: len(sample.views)]
            for name, x in zip(names, found, strict=True)
        }
        if text is not None:
            assert encoders.text is not None and encoders.tokenizer is not None
            prompt = prompt_of(sample.caption, encoders.suffix, sample.cameras is None)
            length = encoders.text.config.length
            tokens, _ = tokenize(encoders.tokenizer, [prompt], length)
            encoded["text"] = np.asarray(_states(text, text_state, tokens))[0]
        return encoded

    return compute


@functools.partial(jax.jit, static_argnums=0)
def _moments(vae: nnx.GraphDef, state: Any, images: Array) -> tuple[Array, Array]:
    mean, logvar = nnx.merge(vae, state).moments(images.astype(jnp.float32) / 255)
    return mean.astype(jnp.float16), logvar.astype(jnp.float16)


@functools.partial(jax.jit, static_argnums=0)
def _states(text: nnx.GraphDef, state: Any, tokens: Array) -> Array:
    return nnx.merge(text, state)(tokens).astype(jnp.float16)
