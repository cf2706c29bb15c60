"""Buildings and structures."""

from videomv_jax.data.synthetic.assembly import MAIN, Assembly, category

WOOD = ("brown", "black")
GLASS = ("cyan", "white")
ROOF = ("red", "brown")


@category(
    "house",
    parts={"roof": ROOF, "door": WOOD, "windows": GLASS},
    details={"chimney": ("grey", "brown")},
    color="white",
)
def house(a: Assembly) -> None:
    a.box("", (0, 0, -0.25), (0.5, 0.6, 0.38))
    a.box("roof", (0, 0, 0.36), (0.6, 0.37, 0.25), taper=(0, -0.96))
    a.box("door", (0.5, 0, -0.38), (0.03, 0.13, 0.25))
    a.box("windows", (0, 0.36, -0.18), (0.53, 0.12, 0.12), mirror="y")
    a.box("windows", (0, 0, -0.18), (0.14, 0.63, 0.12))
    a.box("chimney", (-0.2, 0.4, 0.48), (0.09, 0.09, 0.24))


@category("castle", parts={"roofs": ROOF, "gate": WOOD, "flag": ROOF}, color="grey")
def castle(a: Assembly) -> None:
    a.box("", (0, 0, -0.3), (0.55, 0.55, 0.28))
    a.tube("", (0.52, 0.52, -0.16), 0.2, 0.44, mirror="xy")
    a.tube("roofs", (0.52, 0.52, 0.46), (0.27, 0.01), 0.2, mirror="xy")
    a.box("", (0, 0, 0.1), (0.28, 0.28, 0.5))
    a.tube("roofs", (0, 0, 0.8), (0.36, 0.01), 0.24)
    a.box("gate", (0.55, 0, -0.36), (0.04, 0.15, 0.22))
    a.rod("flag", (0, 0, 0.9), (0, 0, 1.22), 0.025)
    a.box("flag", (0, 0.12, 1.13), (0.02, 0.12, 0.08), bevel=0.01)


@category("bridge", parts={"road": ("grey", "black"), "towers": MAIN}, color="red")
def bridge(a: Assembly) -> None:
    a.box("road", (0, 0, -0.12), (0.3, 1.0, 0.07))
    a.box("towers", (0.29, 0.5, 0.06), (0.09, 0.09, 0.56), mirror="xy")
    a.box("towers", (0, 0.5, 0.52), (0.29, 0.07, 0.08), mirror="y")
    a.ring("", (0.29, 0, 0.56), 0.48, 0.06, axis="x", mirror="x", keep=((0, 0, -1), 0))
    a.rod("", (0.29, 0.52, 0.54), (0.29, 0.98, -0.08), 0.06, mirror="xy")


@category(
    "lighthouse",
    parts={"light": ("yellow", "white"), "roof": ROOF, "door": WOOD},
    details={"gallery": ("grey", "black")},
    color="white",
    round=True,
)
def lighthouse(a: Assembly) -> None:
    a.tube("", (0, 0, -0.2), (0.36, 0.22), 0.65)
    a.tube("gallery", (0, 0, 0.47), 0.32, 0.05)
    a.tube("light", (0, 0, 0.62), 0.17, 0.14)
    a.tube("roof", (0, 0, 0.86), (0.27, 0.02), 0.13)
    a.box("door", (0.32, 0, -0.66), (0.06, 0.1, 0.17))


@category(
    "windmill",
    parts={"blades": ("white", "red"), "roof": ROOF, "door": WOOD},
    color="yellow",
    round=True,
)
def windmill(a: Assembly) -> None:
    a.tube("", (0, 0, -0.2), (0.4, 0.26), 0.5)
    a.ball("roof", (0, 0, 0.3), (0.3, 0.3, 0.27), keep=((0, 0, 1), 0))
    a.rod("blades", (0.2, 0, 0.34), (0.44, 0, 0.34), 0.06)
    a.box("blades", (0.42, 0, 0.34), (0.03, 0.1, 0.66), turn=("x", 45))
    a.box("blades", (0.42, 0, 0.34), (0.03, 0.66, 0.1), turn=("x", 45))
    a.box("door", (0.36, 0, -0.55), (0.06, 0.1, 0.15))
