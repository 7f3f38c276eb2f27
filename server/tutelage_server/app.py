"""The Litestar application: all routes, and what stands around them."""

from __future__ import annotations

from litestar import Litestar
from litestar.datastructures import State
from litestar.di import Provide

from tutelage_server.accounts.routes import ROUTES as ACCOUNTS
from tutelage_server.advice.routes import ROUTES as ADVICE
from tutelage_server.files.routes import ROUTES as FILES
from tutelage_server.jobs.routes import ROUTES as JOBS
from tutelage_server.openai.routes import ROUTES as OPENAI
from tutelage_server.operations.routes import ROUTES as OPERATIONS
from tutelage_server.settings import Settings
from tutelage_server.store.store import Store


def create_app(settings: Settings, store: Store) -> Litestar:
    """The application on an open store whose tables are up to date (`store.migrations.upgrade`)."""

    def provide_settings() -> Settings:
        return settings

    def provide_store() -> Store:
        return store

    return Litestar(
        route_handlers=[*ACCOUNTS, *ADVICE, *FILES, *JOBS, *OPENAI, *OPERATIONS],
        state=State({"settings": settings, "store": store}),
        dependencies={
            "settings": Provide(provide_settings, sync_to_thread=False),
            "store": Provide(provide_store, sync_to_thread=False),
        },
    )
