"""The text of a compiled program: computations, loops, arrays, memory traffic."""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

_COMPUTATION = re.compile(r"^(ENTRY )?%?(\S+) .*\{\s*$")
_CALLS = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_LOOP = re.compile(
    r"^\s*(?:ROOT )?%?(?P<name>\S+) = .* while\(%?(?P<start>[^)]+)\), "
    r"condition=%?(?P<condition>[\w.\-]+), body=%?(?P<body>[\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_INDEX = re.compile(r"get-tuple-element\(.*?\), index=(\d+)")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](?:\{([^}]*)\})?")
_BITS = {"pred": 8, "c64": 64, "c128": 128}
_OPERATION = re.compile(
    r"^\s*(?:ROOT )?%?(?P<name>\S+) = (?P<result>.+?) (?P<kind>[a-z\-]+)"
    r"\((?P<operands>.*?)\)(?:,|$)"
)
# Move nothing, or tell what others do: the end of a transfer, a loop, a call.
_NO_KERNELS = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}
_NO_KERNELS |= {"after-all", "while", "conditional", "call", "async-update"}


def computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of every computation by its name, and the name of the entry."""
    found: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if not line.startswith((" ", "}")) and (match := _COMPUTATION.match(line)):
            name = match[2]
            found[name] = []
            entry = name if match[1] else entry
        elif name:
            found[name].append(line)
    return found, entry


def executions(programs: Mapping[str, list[str]], entry: str) -> Counter[str]:
    """How often each computation runs; a loop of unknown length counts once."""
    counts: Counter[str] = Counter()
    turns = trips(programs)

    def visit(name: str, times: int) -> None:
        counts[name] += times
        for line in programs[name]:
            called = _CALLS.findall(line)
            for branches in _BRANCHES.findall(line):
                called += [one.strip().lstrip("%") for one in branches.split(",")]
            loop = _LOOP.match(line) if called else None
            again = turns[loop["name"]] if loop else 1
            for one in called:
                if one in programs:
                    visit(one, times * again)

    visit(entry, 1)
    return counts


def trips(programs: Mapping[str, list[str]]) -> dict[str, int]:
    """How often each loop turns, by its name; 1 where that is not known.

    Some say so. The compiler's own, which overlap a gather with a product of matrices,
    do not: they count up by a constant from one constant to another.
    """
    found = {}
    for lines in programs.values():
        loops = [loop for line in lines if (loop := _LOOP.match(line))]
        here = _Operations(lines if loops else ())
        for loop in loops:
            if known := _TRIPS.search(loop.string):
                found[loop["name"]] = int(known[1])
                continue
            condition, body = (
                _Operations(programs[loop[part]]) for part in ("condition", "body")
            )
            found[loop["name"]] = _turns(here, loop["start"], condition, body)
    return found


def unrolled(text: str) -> str:
    """A program with each loop as often as it turns, for who counts its body once."""
    turns = trips(computations(text)[0])
    out = []
    for line in text.splitlines(keepends=True):
        if loop := _LOOP.match(line):
            name = loop["name"]
            for turn in range(1, turns[name]):
                fresh = line.replace(name, f"{name}.{turn}.turn", 1)
                out.append(fresh.replace("ROOT ", "", 1))
        out.append(line)
    return "".join(out)


class _Operations:
    """The operations of one computation."""

    def __init__(self, lines: Iterable[str]):
        self._lines, self.root = {}, ""
        for line in lines:
            left = line.partition(" = ")[0].split()
            if left:
                name = left[-1].lstrip("%")
                self._lines[name] = line
                self.root = name if left[0] == "ROOT" else self.root

    def read(self, name: str) -> tuple[str, list[str], str]:
        """Its kind, what it is of, and its line; copies are what they copy."""
        one = _OPERATION.match(self._lines.get(name, ""))
        if one is None:
            return "", [""], ""
        operands = [part.strip().lstrip("%") for part in one["operands"].split(",")]
        if one["kind"] in ("copy", "copy-start", "copy-done"):
            return self.read(operands[0])
        return one["kind"], operands, one.string

    def number(self, name: str) -> int | None:
        """The constant that it is."""
        kind, (first, *_), _ = self.read(name)
        return int(first) if kind == "constant" and first.isdigit() else None


def _turns(
    around: _Operations, start: str, test: _Operations, body: _Operations
) -> int:
    """How often a loop turns that counts from one constant to below another."""
    kind, operands, line = test.read(test.root)
    (before, starts, _), (after, ends, _) = around.read(start), body.read(body.root)
    if (kind, before, after) != ("compare", "tuple", "tuple"):
        return 1
    place = _INDEX.search(test.read(operands[0])[2])
    last = test.number(operands[1])
    if place is None or last is None or ", direction=LT" not in line:
        return 1
    at = int(place[1])
    first, step, name = around.number(starts[at]), 0, ends[at]
    while (read := body.read(name))[0] == "add":
        name, more = read[1][0], body.number(read[1][1])
        if more is None:
            return 1
        step += more
    counter = _INDEX.search(read[2])
    if first is None or step < 1 or counter is None or int(counter[1]) != at:
        return 1
    return -(-(last - first) // step)


@dataclasses.dataclass(frozen=True)
class HloArray:
    """An array in a program's text.

    Attributes:
        size: bytes of its elements.
        laid_out: bytes it takes, as tiles: the last two axes are padded.
        in_hbm: whether it lies in the main memory, not in the chip.
    """

    size: int
    laid_out: int
    in_hbm: bool


def arrays(text: str) -> list[HloArray]:
    """The arrays that a shape, or several, names."""
    return [_array(*one) for one in _ARRAY.findall(text)]


def _array(kind: str, dims: str, layout: str) -> HloArray:
    if kind in ("token", "opaque"):
        return HloArray(0, 0, False)
    bits = _BITS.get(kind) or int(re.findall(r"\d+", kind)[0])
    shape = list(_numbers(dims))
    order, _, rest = layout.partition(":")
    physical = [shape[i] for i in reversed(list(_numbers(order)))] or shape
    tile = re.search(r"T\(([\d,]+)\)", rest)
    for i, side in enumerate(reversed(list(_numbers(tile[1])) if tile else [])):
        if i < len(physical):
            at = len(physical) - 1 - i
            physical[at] = -(-physical[at] // side) * side
    whole, padded = math.prod(shape) * bits // 8, math.prod(physical) * bits // 8
    return HloArray(whole, padded, re.search(r"S\([1-9]", rest) is None)


def _numbers(text: str) -> Iterator[int]:
    return (int(one) for one in text.split(",") if one)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel, or a transfer, of a scheduled program.

    Attributes:
        name, kind: of its operation.
        line: the text of that.
        count: how often it runs.
        bytes: between the main memory and the chip, each time. Its operands and results
            there count whole, as they are laid out, and so does what is fetched ahead
            into the chip. One that reads a part of an operand, or writes into a part of
            its result, moves less than is counted.
    """

    name: str
    kind: str
    line: str
    count: int
    bytes: int


def kernels(text: str) -> Iterator[Kernel]:
    """All kernels of a scheduled program."""
    programs, entry = computations(text)
    shapes, inside = {}, set()
    for lines in programs.values():
        for line in lines:
            if (match := _OPERATION.match(line)) is None:
                continue
            shapes[match["name"]] = match["result"]
            if match["kind"] not in ("while", "conditional", "call"):
                inside.update(_CALLS.findall(line))  # of a kernel
    for computation, count in executions(programs, entry).items():
        for line in () if computation in inside else programs[computation]:
            one = _OPERATION.match(line)
            if (
                one is None
                or one["kind"] in _NO_KERNELS
                or one["kind"].endswith("-done")
            ):
                continue
            yield Kernel(one["name"], one["kind"], line, count, _moved(one, shapes))


def memory_traffic(text: str) -> int:
    """Bytes between the main memory and the chip in a run of a scheduled program."""
    return sum(one.count * one.bytes for one in kernels(text))


def _moved(operation: re.Match, shapes: Mapping[str, str]) -> int:
    kind, result = operation["kind"], arrays(operation["result"])
    if kind == "async-start" and not operation["operands"]:  # of a SparseCore
        return 0
    if kind in ("copy-start", "async-start"):  # of a whole array, of a slice of one
        copy = kind == "copy-start"
        target, source = result[:2] if copy else (result[-2], result[0])
        return target.laid_out * (target.in_hbm + source.in_hbm)
    operands = re.findall(r"%([\w.\-]+)", operation["operands"])
    everything = result + [a for name in operands for a in arrays(shapes.get(name, ""))]
    return sum(a.laid_out for a in everything if a.in_hbm)
