"""Generated requests to every operation that the API describes: none fails the server, all answers are as described."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
    use_after_free,
)
from serving import served

pytestmark = pytest.mark.slow
schemathesis.serializer.alias("application/offset+octet-stream", "application/octet-stream")

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    use_after_free,
]
QUICK = settings(
    max_examples=6, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    """The API as a server describes it, with a key of every scope."""
    limits = {"requests_per_minute": 1_000_000}
    with served(tmp_path_factory.mktemp("server"), arguments=("--no-dispatcher",), limits=limits) as server:
        headers = {"authorization": f"Bearer {server.key}"}
        schema = schemathesis.openapi.from_url(f"{server.url}/v1/openapi.json", headers=headers)
        schema.config.update(headers=headers, request_timeout=60)
        yield schema


def test_every_operation_conforms(api):
    failed = {}
    for found in api.get_all_operations():
        operation = found.ok()

        @QUICK
        @given(case=operation.as_strategy())
        def conforms(case):
            case.call_and_validate(checks=CHECKS)

        try:
            conforms()
        except (AssertionError, BaseExceptionGroup) as error:
            failed[operation.label] = str(error)
    assert not failed, "\n\n".join(f"{label}: {said}" for label, said in failed.items())


def test_sequences_of_operations_conform(api):
    """What one operation answers is given to those that its links name."""

    class Workflow(api.as_state_machine()):
        def validate_response(self, response, case, **options):
            case.validate_response(response, checks=CHECKS)

    Workflow.run(settings=settings(QUICK, max_examples=10, stateful_step_count=8))
