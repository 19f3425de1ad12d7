"""Version of msdask."""

__version__ = "0.1.0"
