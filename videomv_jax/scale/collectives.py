"""What a compiled program sends between chips, read from its HLO text."""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np

from videomv_jax.scale import hlo

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
_OPERATION = re.compile(
    rf"^\s*(?:ROOT )?%?\S+ = (.+?) ({'|'.join(KINDS)}|ragged-all-to-all)(-start)?\("
)
# Between slices: the host's network library sends for the chip.
_SEND = re.compile(
    r"^\s*(?:ROOT )?%?\S+ = \((.+?), u32\[\].* send\(.*xla_megascale_runtime"
)
_PURPOSE = re.compile(r'_xla_host_transfer_rendezvous="([a-z\-]+)')
SLICES = "slices"
"""The axes of what goes between slices, over the data-centre network."""

_MESH = re.compile(
    r"mesh\[(.+?)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{(.*)\}"
)
_CHANNEL = re.compile(r"channel_id=(\d+)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange of a program.

    Attributes:
        kind: one of `KINDS`.
        axes: mesh axes over which chips exchange, joined by "+"; `SLICES`.
        count: how often a run of the program does it.
        result_bytes: size of what a chip holds afterwards.
        sent_bytes: what a chip sends, each time, if the exchange is optimal on a
            ring: an all-gather and a reduce-scatter among g chips send (g - 1) / g
            of the whole, an all-reduce twice that.
    """

    kind: str
    axes: str
    count: int
    result_bytes: int
    sent_bytes: float


def collectives(text: str, mesh: Mapping[str, int]) -> list[Collective]:
    """All exchanges of a program.

    Args:
        text: `compiled.as_text()`.
        mesh: sizes of the axes of the mesh it was compiled for, in their order; of
            the part within a slice, where there are several.

    Raises:
        ValueError: groups of devices in a notation this does not read.
    """
    found: list[Collective] = []
    by_channel: dict[str, int] = {}
    programs, entry = hlo.computations(text)
    for name, count in hlo.executions(programs, entry).items():
        for line in programs[name]:
            if match := _OPERATION.match(line):
                one = _read(line, match, name, count, mesh)
                channel = _CHANNEL.search(line)
                # TPUs overlap an exchange with kernels; its start, its end and each of
                # those kernels then repeat it.
                if channel is None or channel[1] not in by_channel:
                    if channel is not None:
                        by_channel[channel[1]] = len(found)
                    found.append(one)
                    continue
                at = by_channel[channel[1]]
                found[at] = max(found[at], one, key=lambda x: x.count)
            elif match := _SEND.match(line):
                size = hlo.arrays(match[1])[0].size
                purpose = _PURPOSE.search(line)
                kind = purpose[1] if purpose else "send"
                found.append(Collective(kind, SLICES, count, size, size))
    return found


def totals(found: list[Collective]) -> dict[tuple[str, str], float]:
    """Bytes a chip sends, by kind and axes, the largest first."""
    sums: Counter[tuple[str, str]] = Counter()
    for one in found:
        sums[one.kind, one.axes] += one.count * one.sent_bytes  # type: ignore[assignment]
    return dict(sums.most_common())


def _read(
    line: str, match: re.Match, computation: str, count: int, mesh: Mapping[str, int]
) -> Collective:
    shapes, kind, start = match.groups()
    sizes = [one.size for one in hlo.arrays(shapes)]
    if start and kind in ("all-gather", "collective-permute"):
        sizes = [max(sizes)]  # the others are its operand and flags
    size = sum(sizes)
    if kind == "collective-permute":
        text = _attribute(line, "source_target_pairs")
        groups = [pair for pair in _explicit(text) if pair[0] != pair[1]]
        return Collective(kind, _axes(groups, mesh), count, size, size)
    groups = _groups(_attribute(line, "replica_groups"), math.prod(mesh.values()))
    g = len(groups[0])
    sent = size * (g - 1) / g
    if kind == "reduce-scatter":
        sent = size * (g - 1)
    elif kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"  # a fusion of TPUs
    elif kind == "all-reduce":
        sent *= 2
    return Collective(kind, _axes(groups, mesh), count, size, sent)


def _attribute(line: str, name: str) -> str:
    start = line.index(f"{name}=") + len(name) + 1
    if line.startswith("mesh[", start):  # has a comma inside
        return line[start : line.index("}", start) + 1]
    depth, end = 0, start
    for end in range(start, len(line)):
        depth += (line[end] in "{[(") - (line[end] in "}])")
        if depth == 0 and line[end] == ",":
            return line[start:end]
    return line[start : end + 1]


def _groups(text: str, devices: int) -> list[list[int]]:
    """The three notations: `{{0,1},{2,3}}`; `[2,2]<=[4]T(0)`, which is numbers counted
    up in another order; `mesh['a'=2,'b'=2] {'b'}`, the axes of a mesh."""
    if text == "{}":
        return [list(range(devices))]
    if text.startswith("{"):
        return _explicit(text)
    if match := _MESH.fullmatch(text):
        mesh, dims, order, axes = match.groups()
        return _of_mesh(mesh, axes, _iota(dims, order) if dims else None)
    iota = re.fullmatch(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if iota is None:
        raise ValueError(f"cannot read the groups of devices {text!r}")
    return _iota(iota[2], iota[3]).reshape(list(_numbers(iota[1]))).tolist()


def _iota(dims: str, order: str | None) -> np.ndarray:
    shape = list(_numbers(dims))
    numbers = np.arange(math.prod(shape)).reshape(shape)
    return numbers.transpose(list(_numbers(order)) if order else None).ravel()


def _of_mesh(mesh: str, axes: str, numbers: np.ndarray | None) -> list[list[int]]:
    sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", mesh)}
    # Each axis as (before, part, after): `'a':(2)4` is 4 of it behind the first 2.
    parts = {name: (1, 1, n) for name, n in sizes.items()}
    for name, before, part in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes):
        before, part = (int(before), int(part)) if part else (1, sizes[name])
        parts[name] = (before, part, sizes[name] // before // part)
    if numbers is None:
        numbers = np.arange(math.prod(sizes.values()))
    numbers = numbers.reshape([n for split in parts.values() for n in split])
    moved = numbers.transpose(
        [3 * i + j for i in range(len(parts)) for j in (0, 2)]
        + [3 * i + 1 for i in range(len(parts))]
    )
    size = math.prod(part for _, part, _ in parts.values())
    return moved.reshape(-1, size).tolist()


def _explicit(text: str) -> list[list[int]]:
    return [list(_numbers(group)) for group in re.findall(r"\{([\d,]+)\}", text)]


def _numbers(text: str) -> Iterator[int]:
    return map(int, text.split(","))


def _axes(groups: list[list[int]], mesh: Mapping[str, int]) -> str:
    """Axes along which the members of a group differ."""
    shape = tuple(mesh.values())
    places = [np.array(np.unravel_index(group, shape)) for group in groups]
    differ = [any((p[i] != p[i, 0]).any() for p in places) for i in range(len(shape))]
    return "+".join(axis for axis, d in zip(mesh, differ, strict=True) if d) or "none"
