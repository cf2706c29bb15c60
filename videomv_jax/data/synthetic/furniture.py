"""Furniture and household things."""

from videomv_jax.data.synthetic.assembly import MAIN, Assembly, category

WOOD = ("brown", "orange")
METAL = ("grey", "black")
LIGHT = ("white", "yellow")


@category("chair", parts={"seat": MAIN, "back": MAIN, "legs": MAIN}, color="brown")
def chair(a: Assembly) -> None:
    a.box("seat", (0, 0, 0), (0.42, 0.42, 0.07), bevel=0.03, corner=0.05)
    a.box("back", (-0.36, 0, 0.5), (0.06, 0.42, 0.45), bevel=0.03)
    a.box("legs", (0.33, 0.33, -0.35), (0.065, 0.065, 0.35), mirror="xy")


@category("table", parts={"top": MAIN, "legs": MAIN}, color="brown")
def table(a: Assembly) -> None:
    a.box("top", (0, 0, 0.4), (0.55, 0.8, 0.07), bevel=0.02, corner=0.05)
    a.box("legs", (0.43, 0.67, 0), (0.075, 0.075, 0.38), mirror="xy")


@category(
    "lamp",
    parts={"shade": MAIN, "pole": METAL, "base": METAL},
    color="yellow",
    round=True,
)
def lamp(a: Assembly) -> None:
    a.tube("shade", (0, 0, 0.72), (0.5, 0.26), 0.3)
    a.rod("pole", (0, 0, -0.5), (0, 0, 0.5), 0.055)
    a.tube("base", (0, 0, -0.5), (0.36, 0.3), 0.06)


@category("bed", parts={"blanket": MAIN, "pillow": LIGHT, "frame": WOOD}, color="blue")
def bed(a: Assembly) -> None:
    a.box("blanket", (0.12, 0, 0.1), (0.8, 0.56, 0.15), bevel=0.08, corner=0.08)
    a.box("pillow", (-0.66, 0, 0.26), (0.2, 0.42, 0.1), bevel=0.08, corner=0.1)
    a.box("frame", (0, 0, -0.08), (1.0, 0.6, 0.1))
    a.box("frame", (-0.97, 0, 0.14), (0.06, 0.62, 0.42))
    a.box("frame", (0.97, 0, 0.0), (0.06, 0.62, 0.22))
    a.box("frame", (0.9, 0.52, -0.28), (0.07, 0.07, 0.14), mirror="xy")


@category("sofa", parts={"seat": MAIN, "arms": MAIN, "feet": WOOD}, color="green")
def sofa(a: Assembly) -> None:
    a.box("seat", (0.1, 0, 0.0), (0.4, 0.8, 0.17), bevel=0.06, corner=0.06)
    a.box("", (-0.32, 0, 0.22), (0.16, 0.85, 0.46), bevel=0.08, corner=0.08)
    a.box("arms", (0.04, 0.82, 0.08), (0.44, 0.14, 0.3), bevel=0.09, mirror="y")
    a.box("feet", (0.36, 0.8, -0.26), (0.07, 0.07, 0.1), mirror="xy")


@category(
    "clock",
    parts={"face": LIGHT, "hands": ("black", "grey"), "feet": METAL},
    color="red",
)
def clock(a: Assembly) -> None:
    a.tube("", (0, 0, 0), 0.6, 0.17, axis="x", bevel=0.05)
    a.tube("face", (0.1, 0, 0), 0.48, 0.1, axis="x")
    a.rod("hands", (0.21, 0, 0), (0.21, 0, 0.34), 0.045)
    a.rod("hands", (0.21, 0, 0), (0.21, 0.25, 0), 0.045)
    a.ball("", (0, 0.36, 0.56), (0.16, 0.19, 0.19), mirror="y")
    a.rod("feet", (0, 0.3, -0.45), (0, 0.46, -0.72), 0.08, mirror="y")


@category("mug", parts={"handle": MAIN}, color="white", round=True)
def mug(a: Assembly) -> None:
    a.tube("", (0, 0, 0), 0.46, 0.55, wall=0.09, keep=((0, 0, -1), -0.5))
    a.ring("handle", (0, 0.5, 0), 0.28, 0.075, axis="x", keep=((0, 1, 0), -0.08))


@category("bottle", parts={"label": LIGHT, "cap": METAL}, color="green", round=True)
def bottle(a: Assembly) -> None:
    a.tube("", (0, 0, -0.2), 0.34, 0.5, bevel=0.05)
    a.tube("", (0, 0, 0.45), (0.33, 0.13), 0.16)
    a.tube("", (0, 0, 0.7), 0.13, 0.2)
    a.tube("cap", (0, 0, 0.92), 0.17, 0.1, bevel=0.03)
    a.tube("label", (0, 0, -0.2), 0.385, 0.25)


@category(
    "teapot",
    parts={"lid": MAIN, "handle": MAIN, "spout": MAIN},
    color="blue",
    round=True,
)
def teapot(a: Assembly) -> None:
    a.ball("", (0, 0, 0), (0.56, 0.56, 0.46), keep=((0, 0, 1), -0.36))
    a.ball("lid", (0, 0, 0.33), (0.33, 0.33, 0.16))
    a.ball("lid", (0, 0, 0.56), 0.1)
    a.rod("spout", (0, 0.36, -0.1), (0, 0.92, 0.34), (0.17, 0.09))
    a.ring("handle", (0, -0.52, 0.02), 0.3, 0.075, axis="x", keep=((0, -1, 0), -0.05))


@category("umbrella", parts={"handle": WOOD, "tip": METAL}, color="red", round=True)
def umbrella(a: Assembly) -> None:
    a.ball("", (0, 0, 0.1), (0.85, 0.85, 0.62), wall=0.06, keep=((0, 0, 1), 0.0))
    a.rod("handle", (0, 0, -0.72), (0, 0, 0.7), 0.05)
    a.ring("handle", (0, 0.14, -0.72), 0.14, 0.05, axis="x", keep=((0, 0, -1), 0.0))
    a.rod("tip", (0, 0, 0.6), (0, 0, 0.86), 0.06)


@category(
    "cake",
    parts={"icing": ("pink", "white"), "candle": LIGHT, "plate": ("white", "cyan")},
    details={"flame": ("orange", "yellow")},
    color="brown",
    round=True,
)
def cake(a: Assembly) -> None:
    a.tube("plate", (0, 0, -0.34), (0.66, 0.78), 0.04)
    a.tube("", (0, 0, -0.1), 0.6, 0.26, bevel=0.03)
    a.tube("icing", (0, 0, 0.1), 0.65, 0.09, bevel=0.06)
    a.tube("", (0, 0, 0.32), 0.36, 0.16, bevel=0.03)
    a.tube("icing", (0, 0, 0.46), 0.41, 0.07, bevel=0.05)
    a.rod("candle", (0, 0, 0.5), (0, 0, 0.84), 0.07, flat=True)
    a.ball("flame", (0, 0, 0.94), (0.06, 0.06, 0.11))


@category(
    "ice cream",
    parts={"cone": WOOD, "cherry": ("red", "purple")},
    color="pink",
    round=True,
)
def ice_cream(a: Assembly) -> None:
    a.tube("cone", (0, 0, -0.45), (0.05, 0.36), 0.5)
    a.ball("", (0, 0, 0.25), (0.43, 0.43, 0.4))
    a.tube("", (0, 0, 0.08), 0.46, 0.09, bevel=0.08)
    a.ball("cherry", (0, 0, 0.68), 0.13)
