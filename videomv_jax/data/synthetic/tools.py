"""Hand tools and small objects."""

from videomv_jax.data.synthetic.assembly import MAIN, Assembly, category

WOOD = ("brown", "orange")
METAL = ("grey", "black")


@category("hammer", parts={"head": MAIN, "handle": WOOD}, color="grey")
def hammer(a: Assembly) -> None:
    a.tube("handle", (0, 0, -0.2), 0.1, 0.7, bevel=0.05)
    a.box("head", (0, 0.0, 0.56), (0.17, 0.24, 0.17))
    a.tube("head", (0, 0.34, 0.56), 0.2, 0.12, axis="y", bevel=0.04)
    a.box("head", (0, -0.4, 0.56), (0.15, 0.24, 0.14), axis="y", taper=(0.0, 0.85))


@category("key", parts={"ring": MAIN, "teeth": MAIN}, color="yellow")
def key(a: Assembly) -> None:
    a.ring("ring", (0, 0, 0.55), 0.27, 0.11, axis="x")
    a.rod("", (0, 0, 0.25), (0, 0, -0.9), 0.1, flat=True)
    a.box("teeth", (0, 0.2, -0.78), (0.08, 0.17, 0.1))
    a.box("teeth", (0, 0.17, -0.46), (0.08, 0.14, 0.09))


@category(
    "sword",
    parts={"blade": MAIN, "handle": WOOD, "guard": ("yellow", "black")},
    color="grey",
)
def sword(a: Assembly) -> None:
    a.box("blade", (0, 0, 0.2), (0.05, 0.13, 0.62))
    a.box("blade", (0, 0, 0.92), (0.05, 0.066, 0.1), taper=(0, -0.97))
    a.box("guard", (0, 0, -0.44), (0.1, 0.38, 0.07), bevel=0.05)
    a.rod("handle", (0, 0, -0.45), (0, 0, -0.82), 0.085, flat=True)
    a.ball("guard", (0, 0, -0.88), 0.13)


@category("guitar", parts={"neck": WOOD, "hole": METAL, "head": METAL}, color="orange")
def guitar(a: Assembly) -> None:
    a.tube("", (0, 0, -0.5), 0.42, 0.13, axis="x", bevel=0.04)
    a.tube("", (0, 0, -0.02), 0.3, 0.13, axis="x", bevel=0.04)
    a.tube("hole", (0.05, 0, -0.2), 0.14, 0.1, axis="x")
    a.box("neck", (0.12, 0, 0.42), (0.05, 0.075, 0.6))
    a.box("head", (0.1, 0, 1.08), (0.05, 0.13, 0.16))
    a.box("head", (0.14, 0, -0.62), (0.04, 0.18, 0.05))


@category(
    "gift",
    parts={"ribbon": ("yellow", "red"), "bow": ("yellow", "red")},
    color="purple",
)
def gift(a: Assembly) -> None:
    a.box("", (0, 0, -0.1), (0.5, 0.5, 0.4))
    a.box("", (0, 0, 0.3), (0.55, 0.55, 0.11))
    a.box("ribbon", (0, 0, -0.04), (0.59, 0.1, 0.49))
    a.box("ribbon", (0, 0, -0.04), (0.1, 0.59, 0.49))
    a.ring("bow", (0, 0.17, 0.53), 0.13, 0.06, axis="x", mirror="y")
    a.ball("bow", (0, 0, 0.48), 0.1)
