"""Array aliases and the words every room shares.

Axis letters: b batch, f views (frames), h w c image, l tokens, d features,
n Gaussians. Channels last. Images are float32 in [0, 1] at every public border.
"""

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
