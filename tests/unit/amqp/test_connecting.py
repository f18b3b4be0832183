"""What is wrong with an address before anything is sent."""

import pytest

from taskqueue.amqp.connection import connect
from taskqueue.amqp.parameters import BrokerConfigurationError, BrokerParameters


@pytest.mark.parametrize("host", ["foo..bar", "x" * 64 + ".example"])
async def test_a_host_that_is_no_name_is_a_mistake_in_the_settings(host: str) -> None:
    parameters = BrokerParameters(host=host, port=5672, username="u", password="p")
    with pytest.raises(BrokerConfigurationError, match="key host"):
        await connect(parameters, name="test")
