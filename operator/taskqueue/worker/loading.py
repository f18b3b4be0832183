"""Imports the modules whose handlers a process is to run.

The worker does this, and so does its fork server when it has to be started again.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from taskqueue.worker.sdk import registry


class StartError(Exception):
    """The worker cannot start; the text says why and what to do."""


def load(modules: Sequence[str]) -> None:
    """Import the modules; the working directory counts as on PYTHONPATH.

    Raises:
        StartError: one cannot be imported, together they register no handler, or a handler's
            payload cannot be checked.
    """
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for name in modules:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise _broken(name, error) from error
            raise StartError(
                f"there is no module {name!r}: give the name as in an import statement, and put "
                "its folder on PYTHONPATH or run in it"
            ) from error
        except Exception as error:
            raise _broken(name, error) from error
    if not registry:
        raise StartError(
            f"no handler is registered by {', '.join(modules)}: mark functions with @task "
            "(from taskqueue import task)"
        )
    try:
        registry.prepare()
    except TypeError as error:
        raise StartError(str(error)) from error


def _broken(name: str, error: Exception) -> StartError:
    lines = traceback.format_exception(error)
    return StartError(
        f"module {name!r} fails when it is imported: {type(error).__name__}: {error}; "
        f"repair it:\n{''.join(lines)}"
    )
