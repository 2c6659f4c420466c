"""Command-line options for the fields of a dataclass."""

import argparse
import dataclasses
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

Settings = TypeVar("Settings")


def add_options(parser: argparse.ArgumentParser, defaults: Any) -> None:
    """Add an option for each field of `defaults`, such as --learning-rate for learning_rate.

    An option that is not given is None. A tuple takes as many values as the default has.
    """
    hints = get_type_hints(type(defaults))
    for field in dataclasses.fields(defaults):
        option, default = "--" + field.name.replace("_", "-"), getattr(defaults, field.name)
        hint, shown = hints[field.name], default
        how: dict[str, Any] = {"type": type(default)}
        if isinstance(default, bool):
            how = {"action": argparse.BooleanOptionalAction}
        elif isinstance(default, tuple):
            how = {"type": type(default[0]), "nargs": len(default), "metavar": "N"}
            shown = " ".join(map(str, default))
        elif get_origin(hint) is Literal:
            how = {"choices": get_args(hint)}
        elif default is None:
            how, shown = {"type": get_args(hint)[0]}, "none"
        parser.add_argument(option, **how, help=f"default: {shown}")


def with_options(settings: Settings, options: argparse.Namespace) -> Settings:
    """The settings, with the values of the options that were given."""
    given = {f.name: getattr(options, f.name) for f in dataclasses.fields(settings)}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if v is not None}
    return dataclasses.replace(settings, **values)
