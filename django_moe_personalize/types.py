"""All public types and errors of the package."""

# ruff: noqa: I001 - with "as" in each import, ruff would write one statement for each name.

from django_moe_personalize.conf import ConfigurationError as ConfigurationError
from django_moe_personalize.exceptions import (
    APIError as APIError,
    AuthenticationError as AuthenticationError,
    CircuitOpenError as CircuitOpenError,
    DeadlineExceeded as DeadlineExceeded,
    DeliveryError as DeliveryError,
    InvalidResponseError as InvalidResponseError,
    LeakError as LeakError,
    MoePersonalizeError as MoePersonalizeError,
    ProxyError as ProxyError,
    ProxyTimeout as ProxyTimeout,
    RateLimitedError as RateLimitedError,
    ResponseError as ResponseError,
    ServerError as ServerError,
    StillConnecting as StillConnecting,
    TransportError as TransportError,
)
from django_moe_personalize.moengage.types import (
    Action as Action,
    DataSource as DataSource,
    Event as Event,
    Experience as Experience,
    ExperienceFailure as ExperienceFailure,
    ExperienceMeta as ExperienceMeta,
    ExperiencesMetadata as ExperiencesMetadata,
    ExperiencesResult as ExperiencesResult,
    ExperienceStatus as ExperienceStatus,
    FailureReason as FailureReason,
    Offering as Offering,
)
from django_moe_personalize.visitor import Consent as Consent, Identity as Identity
