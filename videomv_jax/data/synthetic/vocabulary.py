"""The words captions are made of, apart from the names of objects and parts."""

# sRGB. Grey stays darker than the usual 0.5 background under any light.
COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.09, 0.09),
    "orange": (0.97, 0.48, 0.04),
    "yellow": (0.98, 0.87, 0.10),
    "green": (0.10, 0.60, 0.16),
    "blue": (0.10, 0.24, 0.88),
    "purple": (0.50, 0.13, 0.66),
    "pink": (0.99, 0.55, 0.74),
    "brown": (0.43, 0.23, 0.09),
    "black": (0.07, 0.07, 0.08),
    "white": (0.97, 0.97, 0.97),
    "grey": (0.37, 0.38, 0.40),
    "cyan": (0.12, 0.82, 0.88),
}

PATTERNS = ("striped", "dotted", "checkered")

# Factors of (width, height, overall size); at most one word of each pair applies.
SIZES: dict[str, tuple[float, float, float]] = {
    "big": (1.0, 1.0, 1.15),
    "small": (1.0, 1.0, 0.66),
    "tall": (1.0, 1.35, 1.0),
    "short": (1.0, 0.68, 1.0),
    "wide": (1.35, 1.0, 1.0),
    "narrow": (0.68, 1.0, 1.0),
}
SIZE_PAIRS = (("big", "small"), ("tall", "short"), ("wide", "narrow"))

# Other words for the same things.
SYNONYMS = {
    "gray": "grey",
    "violet": "purple",
    "large": "big",
    "little": "small",
    "spotted": "dotted",
    "checked": "checkered",
    "airplane": "plane",
    "couch": "sofa",
    "cup": "mug",
    "present": "gift",
    "ship": "boat",
}


def article(word: str) -> str:
    """The indefinite article before `word`."""
    return "an" if word[0] in "aeiou" else "a"
