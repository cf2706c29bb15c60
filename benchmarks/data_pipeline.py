"""How fast a core reads clips, and how large they are, at the released size.

videomv data write --out orbits --count 8 --size 512
python benchmarks/data_pipeline.py orbits [--repeat 4]
python benchmarks/data_pipeline.py orbits --encode t2v [--threads 16]

SOURCE has 24 views of an object, RGBA, in any layout. Clips are read as a run reads
them: from its files, resized to 256 pixels; and from shards of the same objects, whose
latents and text states are random here, of the released model's shapes, as reading does
not depend on their values. Seconds are those of the reading thread on its core.

`--encode` measures `videomv data encode` instead: objects a second from files to
shards, and of the encoders alone, with random weights of a preset's sizes.
"""

import argparse
import dataclasses
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from videomv_jax.data import encode, shards
from videomv_jax.data.samples import SampleSource, fit, over
from videomv_jax.data.shards import Manifest, ShardSource, ShardWriter
from videomv_jax.data.sources import SourceSpec, open_source
from videomv_jax.data.tokenizer import train_tokenizer
from videomv_jax.presets import PRESETS

VIEWS, SIZE, LATENT, TEXT = 24, 256, (24, 32, 32, 4), (77, 1024)
OBJECTS = 280_000


def write_shards(source: SampleSource, folder: Path) -> None:
    """Shards with random latents."""
    manifest = Manifest(
        version=shards.VERSION,
        source="benchmark",
        layout=source.layout,
        samples=len(source),
        listing=shards.listing(list(source.names)),
        per_shard=len(source),
        views=VIEWS,
        size=SIZE,
        background=0.5,
        suffix="",
        vae="random",
        text="random",
    )
    shards.begin(folder, manifest)
    writer, rng = ShardWriter(folder, manifest, 0), np.random.default_rng(0)
    for index in range(len(source)):
        encoded = {
            "mean": rng.normal(size=LATENT).astype(np.float16),
            "logvar": rng.normal(size=LATENT).astype(np.float16),
            "text": rng.normal(size=TEXT).astype(np.float16),
        }
        writer.add(fit(source[index], SIZE), encoded)
    writer.close()


def encoding(source: SampleSource, preset: str, threads: int, repeat: int) -> None:
    """Print objects a second of conversion; compilation is not counted."""
    import jax
    from inference import network

    config = PRESETS[preset]
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    vae, text = (
        network(part, dataclasses.replace(getattr(config, part), dtype=dtype))
        for part in ("vae", "text_encoder")
    )
    encoders = encode.Encoders(
        vae,  # type: ignore[arg-type]
        text,  # type: ignore[arg-type]
        train_tokenizer([source[0].caption, config.sampling.prompt_suffix]),
        config.cameras.size,
        config.cameras.background,
        config.sampling.prompt_suffix,
    )
    run = encode.compiled(encoders)
    sample = fit(source[0], encoders.size)
    run(sample)
    began = time.perf_counter()
    for _ in range(8 * repeat):
        run(sample)
    print(
        f"{8 * repeat / (time.perf_counter() - began):8.2f} objects/s, encoders alone"
    )
    times: list[float] = []
    with tempfile.TemporaryDirectory() as temporary:
        for number in range(repeat):
            told: list[float] = []
            encode.encode(
                source,
                f"{temporary}/{number}",
                encoders,
                where="benchmark",
                views=VIEWS,
                threads=threads,
                progress=lambda *_, told=told: told.append(time.perf_counter()),
            )
            # The second is when the first object is done: reading has begun by then.
            times += np.diff(told[1:]).tolist()
    print(f"{1 / np.mean(times):8.2f} objects/s, files to shards, {threads} threads")
    device = jax.devices()[0].device_kind
    print({"model": preset, "type": dtype, "device": device, "jax": jax.__version__})


def seconds(read: Callable[[int], object], count: int, repeat: int) -> float:
    """Of the core, for one clip."""
    read(0)
    began = time.thread_time()
    for index in range(count * repeat):
        read(index % count)
    return (time.thread_time() - began) / (count * repeat)


def size_of(folder: Path, pattern: str) -> int:
    """Bytes of files."""
    return sum(p.stat().st_size for p in folder.rglob(pattern) if p.is_file())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("source")
    parser.add_argument("--repeat", type=int, default=4)
    parser.add_argument("--encode", metavar="PRESET", help="whose sizes: t2v, tiny")
    parser.add_argument("--threads", type=int, default=4, help="that read, of encode")
    options = parser.parse_args()
    source = open_source(SourceSpec(options.source), VIEWS)
    if options.encode:
        encoding(source, options.encode, options.threads, options.repeat)
        return
    count = len(source)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "shards"
        write_shards(source, folder)
        encoded = ShardSource(folder)
        rows = (
            (
                f"{source.layout}, views",
                lambda i: over(fit(source[i], SIZE).views, 0.5),
                size_of(Path(options.source), "*"),
            ),
            (
                "shards, latents and text",
                encoded.latents,
                size_of(folder, "*.latents.*"),
            ),
            ("shards, views", lambda i: encoded[i], size_of(folder, "*.views.*")),
        )
        print(
            f"{'':26}{'clips/s a core':>16}{'kB an object':>14}{'GB for 280,000':>16}"
        )
        for name, read, size in rows:
            each = size / count
            speed = 1 / seconds(read, count, options.repeat)
            total = each * OBJECTS / 1e9
            print(f"{name:26}{speed:16.1f}{each / 1e3:14.0f}{total:16,.0f}")
    print({"python": platform.python_version(), "cores": os.cpu_count()})


if __name__ == "__main__":
    main()
