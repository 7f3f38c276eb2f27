"""What handlers here are given."""

from __future__ import annotations

from typing import Annotated, Any

from litestar import Request
from litestar.di import NamedDependency
from litestar.params import FromPath, Parameter

from tutelage_server.accounts.caller import Caller
from tutelage_server.jobs.submitting import Submitting
from tutelage_server.settings import Settings
from tutelage_server.store.store import Store

Calling = Request[Caller, Any, Any]
TheStore = NamedDependency[Store]
TheSettings = NamedDependency[Settings]
TheSubmitting = NamedDependency[Submitting]
Id = Annotated[FromPath[str], Parameter(max_length=300, description="Its id.")]
After = Annotated[str | None, Parameter(max_length=100, description="The last id of the page before.")]
Limit = Annotated[int, Parameter(ge=1, le=1000, description="How many at most.")]
