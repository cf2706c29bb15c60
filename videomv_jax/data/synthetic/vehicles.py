"""Things that drive, float and fly."""

from videomv_jax.data.synthetic.assembly import MAIN, Assembly, category

TIRES = ("black", "grey")
GLASS = ("cyan", "white")


@category(
    "car",
    parts={"roof": MAIN, "windows": GLASS, "wheels": TIRES},
    details={"lights": ("yellow", "white")},
    color="red",
)
def car(a: Assembly) -> None:
    a.box("", (0, 0, 0), (0.95, 0.43, 0.2), bevel=0.1, corner=0.12)
    a.box("windows", (-0.1, 0, 0.28), (0.52, 0.37, 0.17), taper=(-0.2, -0.08))
    a.box("roof", (-0.1, 0, 0.45), (0.42, 0.35, 0.05), bevel=0.03, corner=0.05)
    a.tube("wheels", (0.55, 0.4, -0.18), 0.22, 0.09, axis="y", mirror="xy", rigid=True)
    a.ball("lights", (0.92, 0.28, 0.03), (0.07, 0.09, 0.07), mirror="y")


@category(
    "truck",
    parts={"cab": ("white", "grey"), "wheels": TIRES, "windows": GLASS},
    details={"chassis": TIRES},
    color="blue",
)
def truck(a: Assembly) -> None:
    a.box("", (-0.28, 0, 0.3), (0.66, 0.42, 0.45), bevel=0.03)
    a.box("cab", (0.68, 0, 0.12), (0.28, 0.4, 0.32), bevel=0.05, corner=0.04)
    a.box("windows", (0.73, 0, 0.24), (0.28, 0.44, 0.12))
    a.box("chassis", (0, 0, -0.2), (0.94, 0.34, 0.08))
    a.tube("wheels", (0.62, 0.36, -0.26), 0.2, 0.09, axis="y", mirror="y", rigid=True)
    a.tube("wheels", (-0.2, 0.36, -0.26), 0.2, 0.09, axis="y", mirror="y", rigid=True)
    a.tube("wheels", (-0.68, 0.36, -0.26), 0.2, 0.09, axis="y", mirror="y", rigid=True)


@category(
    "train", parts={"cab": MAIN, "chimney": TIRES, "wheels": TIRES}, color="green"
)
def train(a: Assembly) -> None:
    a.tube("", (0.24, 0, 0.14), 0.32, 0.62, axis="x", bevel=0.05)
    a.box("cab", (-0.58, 0, 0.3), (0.3, 0.4, 0.48))
    a.box("chimney", (-0.58, 0, 0.8), (0.38, 0.46, 0.05))
    a.tube("chimney", (0.58, 0, 0.55), (0.1, 0.17), 0.2)
    a.box("wheels", (0, 0, -0.22), (0.9, 0.3, 0.07))
    for x in (-0.6, -0.05, 0.5):
        a.tube("wheels", (x, 0.34, -0.26), 0.22, 0.07, axis="y", mirror="y", rigid=True)


@category(
    "boat",
    parts={"sail": ("white", "yellow"), "mast": ("brown", "black")},
    color="blue",
)
def boat(a: Assembly) -> None:
    a.ball("", (0, 0, -0.12), (0.95, 0.36, 0.45), keep=((0, 0, -1), 0))
    a.rod("mast", (0, 0, -0.3), (0, 0, 0.98), 0.045)
    a.box("sail", (-0.27, 0, 0.36), (0.46, 0.035, 0.5), taper=(-0.98, 0))
    a.box("sail", (0.3, 0, 0.28), (0.26, 0.035, 0.38), taper=(-0.98, 0))


@category(
    "plane",
    parts={"wings": MAIN, "tail": MAIN, "windows": GLASS},
    details={"engines": ("grey", "black")},
    color="white",
)
def plane(a: Assembly) -> None:
    a.ball("", (0, 0, 0), (0.95, 0.19, 0.19))
    a.box("wings", (0.08, 0, 0), (0.22, 0.92, 0.045), corner=0.1)
    a.box("tail", (-0.8, 0, 0.06), (0.13, 0.36, 0.04), corner=0.06)
    a.box("tail", (-0.8, 0, 0.22), (0.17, 0.035, 0.22), taper=(-0.35, 0))
    a.ball("windows", (0.55, 0, 0.1), (0.2, 0.12, 0.12))
    a.rod("engines", (-0.02, 0.42, -0.1), (0.3, 0.42, -0.1), 0.09, mirror="y")


@category(
    "rocket",
    parts={"nose": ("red", "yellow"), "fins": ("red", "yellow"), "window": GLASS},
    details={"nozzle": ("grey", "black")},
    color="white",
    round=True,
)
def rocket(a: Assembly) -> None:
    a.tube("", (0, 0, -0.1), 0.3, 0.55)
    a.tube("nose", (0, 0, 0.7), (0.3, 0.02), 0.27)
    a.box("fins", (0, 0, -0.55), (0.04, 0.55, 0.24), taper=(0, -0.42))
    a.box("fins", (0, 0, -0.55), (0.55, 0.04, 0.24), taper=(-0.42, 0))
    a.tube("nozzle", (0, 0, -0.74), (0.24, 0.16), 0.1)
    a.ball("window", (0.27, 0, 0.2), (0.07, 0.14, 0.14))


@category(
    "helicopter",
    parts={"rotor": ("black", "grey"), "tail": MAIN, "window": GLASS},
    details={"skids": ("grey", "black")},
    color="orange",
)
def helicopter(a: Assembly) -> None:
    a.ball("", (0.15, 0, 0), (0.48, 0.34, 0.34))
    a.ball("window", (0.32, 0, 0.06), (0.34, 0.28, 0.26))
    a.rod("tail", (-0.1, 0, 0.08), (-0.92, 0, 0.16), (0.14, 0.06))
    a.box("tail", (-0.92, 0, 0.25), (0.12, 0.035, 0.2))
    a.rod("rotor", (0.1, 0, 0.3), (0.1, 0, 0.48), 0.05)
    a.box("rotor", (0.1, 0, 0.5), (0.85, 0.07, 0.03))
    a.box("rotor", (0.1, 0, 0.5), (0.07, 0.85, 0.03))
    a.rod("skids", (-0.3, 0.26, -0.46), (0.6, 0.26, -0.46), 0.045, mirror="y")
    a.rod("skids", (0.15, 0.26, -0.46), (0.15, 0.15, -0.2), 0.04, mirror="y")
