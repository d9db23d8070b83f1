"""Reasons why a server refuses a request, apart from `WireError` (the request itself is wrong)."""

from sfumato.errors import ServingError


class ModelNotFound(ServingError):
    """No such model, or no such version of it."""


class Overloaded(ServingError):
    """More requests wait than the server is willing to keep, or it is shutting down."""


class ModelFailed(ServingError):
    """The model broke on a request that looked right."""
