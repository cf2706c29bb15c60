"""Plans side by side: a table, a CSV and a picture."""

import csv
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from rich.table import Table

from videomv_jax.scale.chips import chip_of
from videomv_jax.scale.plan import Plan

_GIB = 2**30


def row(plan: Plan) -> dict[str, str]:
    """A plan's figures, per chip, as text; "-" where the program did not compile."""

    def number(value: float | None, unit: float, digits: int = 2) -> str:
        return "-" if value is None else f"{value / unit:.{digits}f}"

    least = plan.bounds
    by_kind = ", ".join(f"{what} {size / 1e6:.0f}" for what, size in plan.sent.items())
    between = plan.sent_between_slices if plan.fits else None
    sent = None if between is None else sum(plan.sent.values()) - between
    return {
        "strategy": plan.strategy,
        "mesh": " ".join(f"{a}={n}" for a, n in plan.mesh.items() if n > 1) or "1",
        "batch": str(plan.batch),
        "fits": "yes" if plan.fits else "no",
        "HBM GiB": number(plan.total_bytes, _GIB),
        "of GiB": number(chip_of(plan.topology).memory, _GIB, 0),
        "arguments GiB": number(plan.argument_bytes, _GIB),
        "temporaries GiB": number(plan.temporary_bytes, _GIB),
        "model TFLOP": number(plan.model_flops, 1e12),
        "executed TFLOP": number(plan.flops, 1e12),
        "HBM traffic GB": number(plan.bytes, 1e9),
        "sent MB": number(sent, 1e6, 0),
        "between slices MB": number(between, 1e6, 0),
        "compute ms": number(least and least.compute, 1e-3, 1),
        "memory ms": number(least and least.memory, 1e-3, 1),
        "network ms": number(least and least.network, 1e-3, 1),
        "step ms, overlapped": number(least and least.overlapped, 1e-3, 1),
        "step ms, in a row": number(least and least.in_a_row, 1e-3, 1),
        "sent MB by kind and axis": by_kind or "-",
    }


def table(plans: Sequence[Plan]) -> Table:
    """The rows, one column for each plan."""
    rows = [row(plan) for plan in plans]
    first = plans[0]
    name = first.topology if first.slices == 1 else f"{first.slices} x {first.topology}"
    made = Table(
        title=f"{first.step} on {name}, {first.parameters / 1e6:.1f} M parameters, "
        "per chip",
        caption="times: compute = executed operations over the bf16 peak, memory = "
        "bytes between HBM and chip over HBM's rate, network = bytes sent over the "
        "rate of all links; overlapped = the largest, in a row = network after the "
        "rest",
    )
    made.add_column("")
    for one in rows:
        made.add_column(one["strategy"], justify="right", overflow="fold")
    for name in list(rows[0])[1:]:
        made.add_row(name, *(one[name] for one in rows))
    return made


def write_csv(path: Path, plans: Sequence[Plan]) -> None:
    """One line for each plan."""
    rows = [
        {"step": plan.step, "topology": plan.topology, "slices": str(plan.slices)}
        | row(plan)
        for plan in plans
    ]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


_WIDTH, _BAR, _LEFT = 360, 22, 110
_COLORS = {"arguments": "#4c78a8", "temporaries": "#f58518", "needed": "#bab0ac"}
_COLORS |= {"compute": "#54a24b", "memory": "#eeca3b", "network": "#b279a2"}


def write_plot(path: Path, plans: Sequence[Plan]) -> None:
    """Two rows of bars as SVG: memory against the chip's, and the times."""
    memory = chip_of(plans[0].topology).memory / _GIB
    bars, times = [], []
    for plan in plans:
        least = plan.bounds
        if least is None:
            bars.append([("needed", plan.total_bytes / _GIB)])
            times.append([])
            continue
        assert plan.temporary_bytes is not None
        other = plan.total_bytes - plan.temporary_bytes
        bars.append([("arguments", other / _GIB)])
        bars[-1].append(("temporaries", plan.temporary_bytes / _GIB))
        parts = ("compute", "memory", "network")
        times.append([(part, 1e3 * getattr(least, part)) for part in parts])
    names = [plan.strategy for plan in plans]
    left = _bars("HBM, GiB; the line is the chip's", names, bars, memory, stacked=True)
    right = _bars("time of a step, ms", names, times, None, stacked=False)
    height = (len(plans) * 2 + 3) * _BAR
    width = 2 * (_WIDTH + _LEFT + 70)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">\n'
        f'<rect width="{width}" height="{height}" fill="white"/>\n'
        f'<g>{left}</g>\n<g transform="translate({width // 2} 0)">{right}</g>\n</svg>\n'
    )


def _bars(title, names, groups, line: float | None, *, stacked: bool) -> str:
    sums = [
        sum(v for _, v in g) if stacked else max([v for _, v in g] or [0])
        for g in groups
    ]
    scale = _WIDTH / max([*sums, line or 0.0, 1e-9])
    out = [f'<text x="{_LEFT}" y="{_BAR * 0.8}" font-weight="bold">{title}</text>']
    for i, (name, group) in enumerate(zip(names, groups, strict=True)):
        y, x = (2 * i + 1.5) * _BAR, 0.0
        at = f'x="{_LEFT - 8}" y="{y + _BAR}" text-anchor="end"'
        out.append(f"<text {at}>{escape(name)}</text>")
        thick = 1.6 * _BAR / (1 if stacked else 3)
        for k, (part, value) in enumerate(group):
            top = y if stacked else y + k * thick
            out.append(
                f'<rect x="{_LEFT + x:.1f}" y="{top:.1f}" width="{value * scale:.1f}" '
                f'height="{thick:.1f}" fill="{_COLORS[part]}"><title>{part} {value:.2f}'
                "</title></rect>"
            )
            x += value * scale if stacked else 0
        end = f"{sums[i]:.1f}" if group else "does not fit"
        out.append(
            f'<text x="{_LEFT + sums[i] * scale + 4:.1f}" y="{y + _BAR}">{end}</text>'
        )
    parts = list(dict.fromkeys(part for group in groups for part, _ in group))
    for k, part in enumerate(parts):
        x, y = _LEFT + 100 * k, (2 * len(names) + 2) * _BAR
        out.append(
            f'<rect x="{x}" y="{y}" width="12" height="12" fill="{_COLORS[part]}"/>'
        )
        out.append(f'<text x="{x + 16}" y="{y + 11}">{part}</text>')
    if line is not None:
        x = _LEFT + line * scale
        ends = f'y1="{_BAR}" y2="{(2 * len(names) + 1.5) * _BAR}"'
        look = 'stroke="#e45756" stroke-dasharray="4"'
        out.append(f'<line x1="{x:.1f}" x2="{x:.1f}" {ends} {look}/>')
    return "\n".join(out)
