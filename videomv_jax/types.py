"""Array aliases and the words every room shares.

Axis letters: b batch, f views (frames), h w c image, l tokens, d features,
n Gaussians. Channels last. Images are float32 in [0, 1] at every public border.
"""

import difflib
from collections.abc import Iterable
from typing import Literal, TypeAlias

from jaxtyping import Array, Float, Int, Key

Images: TypeAlias = Float[Array, "b f h w 3"]
Latents: TypeAlias = Float[Array, "b f h w 4"]
Tokens: TypeAlias = Int[Array, "b l"]
TextStates: TypeAlias = Float[Array, "b l d"]
PRNGKey: TypeAlias = Key[Array, ""]

PredictionKind = Literal["epsilon", "v", "x0"]


class InputError(ValueError):
    """Something the user passed cannot be used.

    The message names the argument, what was seen and what is wanted. The command
    line prints it alone and exits with code 2.
    """

    @classmethod
    def unknown(cls, what: str, name: str, known: Iterable[str]) -> "InputError":
        """The error for a name outside a known set, with the closest one.

        Args:
            what: what the name names, such as "model" or "config key".
            name: what the user wrote.
            known: every name that would have been right.
        """
        known = sorted(known)
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return cls(f"unknown {what} {name!r}: {hint}known: {', '.join(known)}")
