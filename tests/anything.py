"""Hypothesis strategies: any JSON value, and structures near the contract with any JSON value in each place."""

import json

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# A busy machine makes an example slow, which is no failure.
patiently = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=8,
)
# Structures near the contract.
near_offerings = st.lists(
    json_values
    | st.fixed_dictionaries(
        {}, optional={"dp_offering_id": json_values, "offering_content": json_values, "offering_context": json_values}
    )
)
near_variables = (
    json_values
    | st.fixed_dictionaries(
        {"value": json_values | near_offerings | near_offerings.map(json.dumps)},
        optional={"data_type": st.sampled_from(["string", "number", "boolean", "json", "float", "date"]) | json_values},
    )
    | st.fixed_dictionaries({"offerings": near_offerings | json_values})
)
near_payloads = json_values | st.dictionaries(st.text(), near_variables)
near_entries = json_values | st.fixed_dictionaries(
    {}, optional={"payload": near_payloads, "experience_context": json_values}
)
near_answers = st.fixed_dictionaries(
    {},
    optional={
        "experiences": json_values | st.dictionaries(st.text(), near_entries),
        "failures": json_values
        | st.lists(st.fixed_dictionaries({}, optional={"reason": json_values, "experience_keys": json_values})),
        "metadata": json_values
        | st.fixed_dictionaries(
            {},
            optional={
                "experiences": st.lists(
                    st.fixed_dictionaries({"experience_key": st.text() | json_values, "status": json_values})
                )
            },
        ),
    },
)


def same(left: object, right: object) -> bool:
    """Return whether two values are equal and of the same type: 1, 1.0 and True are different values."""
    return type(left) is type(right) and left == right
