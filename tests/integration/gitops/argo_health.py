"""Argo CD's health checks, run as Argo CD runs them.

Argo CD gives the script a Lua 5.1 with the libraries base, table, package and a small os: a script
that uses another one works in a plain Lua and fails there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from lupa import lua51

CONFIG_MAP = Path(__file__).parents[3] / "manifests" / "argocd" / "argocd-cm.yaml"
STATUSES = {"Unknown", "Progressing", "Suspended", "Healthy", "Degraded", "Missing"}
_NOT_IN_ARGO_CD = ("string", "io", "math", "debug", "coroutine", "python")


def script(kind: str) -> str:
    """Return the health check of a kind from the ConfigMap."""
    data = yaml.safe_load(CONFIG_MAP.read_text(encoding="utf-8"))["data"]
    text: str = data[f"resource.customizations.health.taskqueue.dev_{kind}"]
    return text


def health(obj: dict[str, Any]) -> tuple[str, str]:
    """Return status and message of an object's health.

    Raises:
        lua51.LuaError: the script failed.
    """
    lua = lua51.LuaRuntime(register_eval=False, register_builtins=False)
    lua.execute('getmetatable("").__index = nil')
    for library in _NOT_IN_ARGO_CD:
        lua.globals()[library] = None
    lua.globals().obj = _table(lua, obj)
    result = lua.execute(script(obj["kind"]))
    status, message = result["status"], result["message"]
    assert status in STATUSES, status
    assert isinstance(message, str), message
    return status, message


def _table(lua: lua51.LuaRuntime, value: Any) -> Any:
    if isinstance(value, dict):
        return lua.table_from({key: _table(lua, below) for key, below in value.items()})
    if isinstance(value, list):
        return lua.table_from([_table(lua, below) for below in value])
    return value
