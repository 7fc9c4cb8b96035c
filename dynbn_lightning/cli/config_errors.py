"""What jsonargparse says of a wrong option, over a dozen lines, in one line."""

from __future__ import annotations

import re

# What is said of each try, in lines of no use to who wrote the YAML.
_FRAME = re.compile(
    r"(Does not validate against any of the Union subtypes|Subtypes: .*|Errors:|Given value( type)?: .*|"
    r"Subclass types expect one of:|a class path \(str\)|a dict with class_path entry|"
    r"a dict without class_path but with init_args entry.*|a dict with parameters accepted by the base class.*)?"
)
# What is said of types that a value could also have, but hardly was meant to.
_OTHER_TYPES = re.compile(
    r"Expected a <class '(NoneType|str|bool)'>|Not of type Path: .*|Expected a path but .*|Not a valid subclass of .*|"
    r"Expected a typing\.(?!Literal).*|Expected a <class 'collections\..*"
)
_PLACE = re.compile(r"(?:Parser key \"(.+)\"|Problem with given class_path '(.+)'):$")


def in_one_line(message: str) -> str:
    r"""The places and causes in a message of jsonargparse, in one line.

    >>> in_one_line('''Parser key "data":\n  Errors:\n    - Expected a <class 'int'>. Got value: x''')
    'data: expected int. Got value: x'
    """
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    said = [line for line in lines if not _FRAME.fullmatch(line)]
    causes = [line for line in said if not _OTHER_TYPES.fullmatch(line)]
    if all(_PLACE.fullmatch(line) for line in causes):
        causes = said  # then those types are all that there was
    text = ""
    for line in causes:
        place = _PLACE.fullmatch(line)
        text += f"{place[1] or place[2]}: " if place else f"{line.rstrip('.:')}; "
    return re.sub(r"Expected a <class '([\w.]+)'>", r"expected \1", text).rstrip("; ")
