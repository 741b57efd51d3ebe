"""The commands behind `optimum-cli optin`: each module adds its arguments and runs."""

from .run import run

__all__ = ["run"]
