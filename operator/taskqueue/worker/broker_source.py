"""Where a worker finds its broker, and who it is there: read for each connection.

The operator's pods have the keys of the broker's Secret in files, which the kubelet replaces when
the Secret changes; other workers have environment variables only. Only the files make a worker
notice changed credentials.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from taskqueue.amqp.parameters import BrokerConfigurationError, BrokerParameters
from taskqueue.model.broker_environment import BROKER_VARIABLES


class BrokerSource:
    """Reads the broker's address and credentials.

    A file counts before the variable of its key. Once there was one, the variable never counts
    again: it may be a copy of what has been removed from the Secret since.

    Args:
        variables: the worker's environment; empty values count as not set.
        directory: with a file for each key of the Secret; "": there is none.
    """

    def __init__(self, variables: Mapping[str, str], directory: str = "") -> None:
        self._variables = {
            key: variables[name] for name, key in BROKER_VARIABLES.items() if variables.get(name)
        }
        self._directory = directory
        self._keys_in_files: set[str] = set()

    def read(self) -> BrokerParameters:
        """Return the address and credentials as they are now.

        Raises:
            BrokerConfigurationError: something is missing or wrong; the text names the variable, or
                the key and the directory.
        """
        found = self._read_files() if self._directory else {}
        self._keys_in_files |= found.keys()
        for key, text in self._variables.items():
            if key not in self._keys_in_files:
                found[key] = text
        if not found.get("uri") and not found.get("host"):
            where = f", and neither has {self._directory} uri or host" if self._directory else ""
            raise BrokerConfigurationError(
                f"neither TASKQUEUE_BROKER_URI nor TASKQUEUE_BROKER_HOST is set{where}: "
                "give amqp://user:password@host/vhost, or the host"
            )
        try:
            return BrokerParameters.from_mapping(found)
        except BrokerConfigurationError as error:
            raise BrokerConfigurationError(self._in_place(str(error))) from None

    @property
    def directory(self) -> str:
        """With the files; "": there is none."""
        return self._directory

    def drop_variables(self) -> None:
        """Forget the values of the environment, in a process that does not connect."""
        self._variables.clear()

    def explain_or_raise(self, error: BrokerConfigurationError) -> str:
        """Return what to log about settings that cannot be used, if changed files can end that.

        Raises:
            BrokerConfigurationError: the error itself: nothing changes while the worker runs.
        """
        if not self._directory:
            raise error
        return f"the broker's settings: {error}: correct the Secret, it is read again"

    def _read_files(self) -> dict[str, str]:
        found = {}
        for key in BROKER_VARIABLES.values():
            path = Path(self._directory, key)
            try:
                found[key] = path.read_text("utf-8")
            except FileNotFoundError:
                continue
            except OSError as error:
                raise BrokerConfigurationError(
                    f"{path} cannot be read: {error.strerror}: let the worker's user read it"
                ) from None
            except UnicodeError:
                raise BrokerConfigurationError(f"{path} is not UTF-8 text") from None
        return found

    def _in_place(self, text: str) -> str:
        """Return an error about keys of a Secret as one about files or variables."""
        if self._directory:
            return f"in {self._directory} or TASKQUEUE_BROKER_*: {text}"
        for name, key in BROKER_VARIABLES.items():
            text = re.sub(rf"\bkeys? {re.escape(key)}(?![\w.])", name, text)
        return text
