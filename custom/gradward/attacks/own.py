"""An attack of one's own, by the path of its class."""

from __future__ import annotations

import dataclasses
import importlib
import re
from typing import Any

_METHODS = ("knowledge", "images_per_evaluation", "run")
# What NVFlare takes for a class: its allow list has looked at such a path before we import it.
_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)


def own_attack(path: str) -> type[Any]:
    """Import the dataclass of an attack.

    In a job the path stands under the key ``"path"``, so that NVFlare holds it against the party's
    ``class_allow_list`` as it does with every component. Nothing is called here, and nothing but a
    dataclass with an attack's methods is returned: no path makes a function run.

    Args:
        path: ``package.module.Class``. The class is a dataclass whose fields, the attack's options,
            have a number or a string as default, and has the methods of
            :class:`gradward.attacks.spec.Attack`.

    Raises:
        TypeError, ValueError: it is none, or cannot be imported.
    """
    if not isinstance(path, str) or not _PATH.fullmatch(path):
        raise ValueError(f"an attack's path must be like 'package.module.Class', got {path!r}")
    module_name, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"attack {path!r}: cannot import {module_name!r}: {error}") from error
    found = getattr(module, name, None)
    if not isinstance(found, type) or not dataclasses.is_dataclass(found):
        raise TypeError(f"attack {path!r}: {module_name!r} has no dataclass {name!r}")
    missing = [method for method in _METHODS if not callable(getattr(found, method, None))]
    if missing:
        raise TypeError(f"attack {path!r} lacks the methods {missing} of an attack")
    for field in dataclasses.fields(found):
        if type(field.default) not in (int, float, str):
            raise TypeError(
                f"attack {path!r}: the option {field.name!r} needs a number or a string as default"
            )
    return found
