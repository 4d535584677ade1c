"""All public types and errors of the package."""

from __future__ import annotations

from django_moe_personalize.conf import ConfigurationError
from django_moe_personalize.exceptions import (
    APIError,
    AuthenticationError,
    CircuitOpenError,
    DeadlineExceeded,
    DeliveryError,
    InvalidResponseError,
    LeakError,
    MoePersonalizeError,
    ProxyError,
    ProxyTimeout,
    RateLimitedError,
    ResponseError,
    ServerError,
    StillConnecting,
    TransportError,
)
from django_moe_personalize.moengage.types import (
    Action,
    DataSource,
    Event,
    Experience,
    ExperienceFailure,
    ExperienceMeta,
    ExperiencesMetadata,
    ExperiencesResult,
    ExperienceStatus,
    FailureReason,
    Offering,
)
from django_moe_personalize.visitor import Consent, Identity

__all__ = [
    "APIError",
    "Action",
    "AuthenticationError",
    "CircuitOpenError",
    "ConfigurationError",
    "Consent",
    "DataSource",
    "DeadlineExceeded",
    "DeliveryError",
    "Event",
    "Experience",
    "ExperienceFailure",
    "ExperienceMeta",
    "ExperienceStatus",
    "ExperiencesMetadata",
    "ExperiencesResult",
    "FailureReason",
    "Identity",
    "InvalidResponseError",
    "LeakError",
    "MoePersonalizeError",
    "Offering",
    "ProxyError",
    "ProxyTimeout",
    "RateLimitedError",
    "ResponseError",
    "ServerError",
    "StillConnecting",
    "TransportError",
]
