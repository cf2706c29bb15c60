"""VideoMV in JAX: a prompt becomes 24 consistent views and a 3D Gaussian asset."""

__version__ = "0.1.0"
