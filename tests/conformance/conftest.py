from tests.integration.broker.conftest import broker_endpoint

__all__ = ["broker_endpoint"]
