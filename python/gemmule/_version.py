"""The version of the package, a constant so that asking for it reads no installed metadata."""

__all__ = ["__version__"]

__version__ = "0.1.0"
