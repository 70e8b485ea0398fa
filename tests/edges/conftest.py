"""A real Valkey server for the tests of this folder, by the name they use."""

import pytest


@pytest.fixture(scope="session")
def online_url(valkey_url: str) -> str:
    return valkey_url
