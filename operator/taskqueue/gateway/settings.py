"""Settings of the gateway, from the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """What an installer may set: `TASKQUEUE_GATEWAY_<FIELD>`.

    Attributes:
        host: address to listen on; "": all in a cluster, 127.0.0.1 on a desk.
        port: to listen on.
        body_bytes: of a request, at most.
        requests_per_second: of each caller, in the long run.
        burst: requests that a caller may send at once.
        open_requests: of all callers together, streams of events included.
        drain_seconds: how long new requests are still served after SIGTERM, so that whoever
            balances the load has noticed.
    """

    host: str = ""
    port: int = 8000
    body_bytes: int = 1024 * 1024
    requests_per_second: float = 100.0
    burst: int = 200
    open_requests: int = 2000
    drain_seconds: float = 3.0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> GatewaySettings:
        """Read the settings.

        Raises:
            ValueError: one is wrong; the text names the variable.
        """
        found: dict[str, str | int | float] = {}
        for each in fields(cls):
            name = f"TASKQUEUE_GATEWAY_{each.name.upper()}"
            text = environment.get(name, "")
            if not text:
                continue
            try:
                kind = {"int": int, "float": float}.get(str(each.type), str)
                value = kind(text)
                if isinstance(value, int | float) and not 0 < value < 2**31:
                    raise ValueError
            except ValueError:
                raise ValueError(f"{name} is {text!r}: give a number above 0") from None
            found[each.name] = value
        return cls(**found)  # type: ignore[arg-type]
