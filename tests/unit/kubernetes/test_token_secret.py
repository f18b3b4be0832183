"""The Secret with the token keys: one for each installation."""

import base64
from typing import Any, cast

import pytest

from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.token_secret import load_token_keys


class FakeSecrets:
    """The Secrets of a namespace, by path."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}

    async def get(self, path: str) -> dict[str, Any]:
        if path not in self.objects:
            raise ApiError(404, "NotFound", "no")
        return self.objects[path]

    async def request(self, method: str, path: str, *, body: dict[str, Any]) -> dict[str, Any]:
        assert method == "POST"
        self.objects[f"{path}/{body['metadata']['name']}"] = body
        return body


async def test_each_installation_has_keys_of_its_own() -> None:
    api = FakeSecrets()
    client = cast(ApiClient, api)
    tokens = {
        name: (await load_token_keys(client, "system", name)).sign("uid", 1, 0)
        for name in ("default", "team-a", "team-b")
    }
    assert list(api.objects) == [
        "/api/v1/namespaces/system/secrets/taskqueue-token-keys",
        "/api/v1/namespaces/system/secrets/taskqueue-token-keys.team-a",
        "/api/v1/namespaces/system/secrets/taskqueue-token-keys.team-b",
    ]
    assert len(set(tokens.values())) == 3
    for name, token in tokens.items():
        keys = await load_token_keys(client, "system", name)
        assert keys.verify(token, "uid", 1, 0)
    assert len(api.objects) == 3


async def test_the_tenth_key_signs_and_all_verify() -> None:
    api = FakeSecrets()
    await load_token_keys(cast(ApiClient, api), "system", "default")
    (secret,) = api.objects.values()
    tokens = []
    for number in range(1, 11):
        key = base64.b64encode(b"secret %d" % number).decode()
        secret["data"][f"k{number}"] = key
        keys = await load_token_keys(cast(ApiClient, api), "system", "default")
        tokens.append(keys.sign("uid", 1, 0))
    assert [token.partition(".")[0] for token in tokens] == [f"k{n}" for n in range(1, 11)]
    assert all(keys.verify(token, "uid", 1, 0) for token in tokens)


async def test_a_secret_without_a_key_is_named() -> None:
    api = FakeSecrets()
    await load_token_keys(cast(ApiClient, api), "system", "team-a")
    (secret,) = api.objects.values()
    secret["data"] = {}
    with pytest.raises(ValueError, match=r"Secret system/taskqueue-token-keys\.team-a must hold"):
        await load_token_keys(cast(ApiClient, api), "system", "team-a")
