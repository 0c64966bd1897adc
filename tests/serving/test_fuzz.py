"""The application's own OpenAPI document, fuzzed: whatever comes, no answer is a fault of ours."""

import contextlib

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

pytestmark = [pytest.mark.ray, pytest.mark.faults]

NUM_EXAMPLES = 15  # of each operation, that obey the document, and as many that do not


def test_nothing_that_the_document_allows_or_forbids_is_a_fault_of_ours(server_url):
    schema = schemathesis.openapi.from_url(f"{server_url}/openapi.json")
    statuses = {}
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path.endswith("/activate"):
            continue  # it would undo what other tests put
        _fuzz(operation, GenerationMode.POSITIVE, statuses)
        with contextlib.suppress(Unsatisfiable):  # where any text will do there is nothing to get wrong
            _fuzz(operation, GenerationMode.NEGATIVE, statuses)
    assert {"/v1/completions", "/v1/chat/completions", "/v1/facts", "/v1/retrieve"} <= statuses.keys()
    seen = [status for of_path in statuses.values() for status in of_path]
    assert len(seen) > 200
    assert {200, 400} <= set(seen), "everything was refused, or nothing"
    # A version that is not there yet is waited for, then it is 503 with Retry-After.
    assert not [(path, of_path) for path, of_path in statuses.items() if {s for s in of_path if s >= 500} - {503}]


def _fuzz(operation, mode, statuses):
    @settings(
        max_examples=NUM_EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def one(case):
        response = case.call(timeout=30)
        assert response.status_code != 503 or "retry-after" in response.headers
        statuses.setdefault(case.path, []).append(response.status_code)

    one()
