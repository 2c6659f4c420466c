"""Command-line options for the fields of a dataclass."""

import argparse
import dataclasses
from typing import Any, TypeVar

Settings = TypeVar("Settings")


def add_options(parser: argparse.ArgumentParser, defaults: Any) -> None:
    """Add an option for each field of `defaults`, such as --learning-rate for learning_rate.

    An option that is not given is None.
    """
    for field in dataclasses.fields(defaults):
        option, default = "--" + field.name.replace("_", "-"), getattr(defaults, field.name)
        how: dict[str, Any] = {"type": type(default)}
        if isinstance(default, bool):
            how = {"action": argparse.BooleanOptionalAction}
        parser.add_argument(option, **how, help=f"default: {default}")


def with_options(settings: Settings, options: argparse.Namespace) -> Settings:
    """The settings, with the values of the options that were given."""
    given = {f.name: getattr(options, f.name) for f in dataclasses.fields(settings)}
    return dataclasses.replace(settings, **{k: v for k, v in given.items() if v is not None})
