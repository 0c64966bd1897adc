"""The application's own OpenAPI document, fuzzed: whatever comes, no answer is a fault of ours."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error

pytestmark = pytest.mark.ray

NUM_EXAMPLES = 12  # of each operation


def test_nothing_that_the_document_allows_or_forbids_is_a_fault_of_ours(server_url):
    schema = schemathesis.openapi.from_url(f"{server_url}/openapi.json")
    tried = {}
    for result in schema.get_all_operations():
        operation = result.ok()
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            _fuzz(operation, mode, tried)
    assert {"/v1/completions", "/v1/chat/completions", "/v1/facts", "/v1/retrieve"} <= tried.keys()
    assert sum(tried.values()) > 100


def _fuzz(operation, mode, tried):
    from hypothesis import given

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
        if case.path.endswith("/activate"):
            return  # it would undo what other tests put
        response = case.call(timeout=30)
        tried[case.path] = tried.get(case.path, 0) + 1
        case.validate_response(response, checks=[not_a_server_error])

    one()
