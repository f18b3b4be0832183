from tests.integration.amqp.conftest import broker_endpoint

__all__ = ["broker_endpoint"]
