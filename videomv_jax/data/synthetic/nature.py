"""Plants, animals and figures."""

from videomv_jax.data.synthetic.assembly import MAIN, Assembly, category

EYES = ("black", "white")


@category("tree", parts={"trunk": ("brown", "grey")}, color="green", round=True)
def tree(a: Assembly) -> None:
    a.tube("trunk", (0, 0, -0.55), (0.15, 0.11), 0.38)
    a.tube("", (0, 0, -0.12), (0.58, 0.22), 0.2, bevel=0.02)
    a.tube("", (0, 0, 0.26), (0.46, 0.16), 0.2, bevel=0.02)
    a.tube("", (0, 0, 0.66), (0.34, 0.01), 0.24, bevel=0.02)


@category("mushroom", parts={"stem": ("white", "yellow")}, color="red", round=True)
def mushroom(a: Assembly) -> None:
    a.tube("stem", (0, 0, -0.32), (0.25, 0.18), 0.42, bevel=0.06)
    a.ball("", (0, 0, 0.0), (0.68, 0.68, 0.52), keep=((0, 0, 1), 0))


@category(
    "flower",
    parts={
        "center": ("yellow", "white"),
        "stem": ("green", "brown"),
        "leaves": ("green", "brown"),
    },
    color="pink",
)
def flower(a: Assembly) -> None:
    a.rod("stem", (-0.06, 0, -0.9), (-0.06, 0, 0.3), 0.06)
    a.ball("center", (0.05, 0, 0.42), (0.12, 0.17, 0.17))
    for angle in (0, 60, 120):
        a.ball("", (-0.02, 0, 0.42), (0.08, 0.5, 0.17), turn=("x", angle))
    a.ball(
        "leaves", (-0.06, 0.24, -0.42), (0.06, 0.26, 0.12), turn=("x", 35), mirror="y"
    )


@category(
    "cactus",
    parts={"pot": ("orange", "brown"), "flower": ("pink", "red")},
    color="green",
)
def cactus(a: Assembly) -> None:
    a.tube("pot", (0, 0, -0.66), (0.27, 0.38), 0.22)
    a.rod("", (0, 0, -0.5), (0, 0, 0.6), 0.21)
    a.rod("", (0, 0.1, -0.1), (0, 0.5, -0.1), 0.12)
    a.rod("", (0, 0.5, -0.1), (0, 0.5, 0.32), 0.12)
    a.rod("", (0, -0.1, 0.08), (0, -0.46, 0.08), 0.12)
    a.rod("", (0, -0.46, 0.08), (0, -0.46, 0.4), 0.12)
    a.ball("flower", (0, 0, 0.82), (0.14, 0.14, 0.1))


@category(
    "snowman",
    parts={"hat": EYES, "scarf": ("red", "green"), "nose": ("orange", "red")},
    details={"eyes": EYES, "arms": ("brown", "black")},
    color="white",
)
def snowman(a: Assembly) -> None:
    a.ball("", (0, 0, -0.5), 0.48)
    a.ball("", (0, 0, 0.05), 0.35)
    a.ball("", (0, 0, 0.46), 0.26)
    a.ring("scarf", (0, 0, 0.27), 0.22, 0.075)
    a.rod("nose", (0.2, 0, 0.46), (0.5, 0, 0.43), (0.075, 0.012))
    a.ball("eyes", (0.22, 0.1, 0.56), 0.045, mirror="y")
    a.tube("hat", (0, 0, 0.67), 0.33, 0.03)
    a.tube("hat", (0, 0, 0.83), 0.21, 0.16)
    a.rod("arms", (0, 0.28, 0.12), (0.1, 0.72, 0.36), 0.04, mirror="y")


@category(
    "robot",
    parts={"head": MAIN, "arms": MAIN, "legs": MAIN},
    details={"eyes": ("yellow", "cyan"), "panel": ("white", "black")},
    color="grey",
)
def robot(a: Assembly) -> None:
    a.box("", (0, 0, 0), (0.24, 0.36, 0.36), bevel=0.04, corner=0.04)
    a.box("head", (0, 0, 0.58), (0.22, 0.27, 0.2), bevel=0.04, corner=0.04)
    a.ball("eyes", (0.22, 0.11, 0.62), (0.05, 0.075, 0.075), mirror="y")
    a.rod("head", (0, 0, 0.7), (0, 0, 0.98), 0.03)
    a.ball("eyes", (0, 0, 1.0), 0.07)
    a.rod("arms", (0, 0.46, 0.24), (0.12, 0.52, -0.26), 0.1, mirror="y")
    a.box("legs", (0, 0.19, -0.56), (0.12, 0.12, 0.26), mirror="y")
    a.box("legs", (0.07, 0.19, -0.84), (0.22, 0.14, 0.07), mirror="y")
    a.box("panel", (0.23, 0, 0.05), (0.04, 0.2, 0.14))


@category("fish", parts={"tail": MAIN, "fins": MAIN, "eyes": EYES}, color="orange")
def fish(a: Assembly) -> None:
    a.ball("", (0.1, 0, 0), (0.68, 0.24, 0.4))
    a.box("tail", (-0.72, 0, 0), (0.22, 0.045, 0.24), axis="x", taper=(0.0, -0.7))
    a.box("fins", (0.05, 0, 0.4), (0.28, 0.04, 0.2), taper=(-0.5, 0))
    a.ball("fins", (0.05, 0.26, -0.12), (0.2, 0.05, 0.12), turn=("x", 40), mirror="y")
    a.ball("eyes", (0.52, 0.15, 0.12), 0.075, mirror="y")


@category(
    "bird",
    parts={"wings": MAIN, "beak": ("orange", "yellow"), "legs": ("orange", "yellow")},
    details={"eyes": EYES},
    color="blue",
)
def bird(a: Assembly) -> None:
    a.ball("", (0, 0, 0), (0.5, 0.34, 0.36), turn=("y", -20))
    a.ball("", (0.36, 0, 0.38), 0.25)
    a.rod("beak", (0.55, 0, 0.36), (0.84, 0, 0.3), (0.1, 0.01))
    a.ball("eyes", (0.5, 0.15, 0.46), 0.06, mirror="y")
    a.ball("wings", (-0.1, 0.33, 0.06), (0.42, 0.07, 0.22), turn=("y", -25), mirror="y")
    a.box("wings", (-0.62, 0, -0.08), (0.28, 0.16, 0.045), turn=("y", -20))
    a.rod("legs", (0.05, 0.13, -0.3), (0.05, 0.13, -0.66), 0.045, mirror="y")
    a.box("legs", (0.12, 0.13, -0.68), (0.15, 0.08, 0.03), mirror="y")
