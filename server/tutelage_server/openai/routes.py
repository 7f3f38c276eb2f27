"""`/openai/v1`: what an unmodified OpenAI client needs, from a file that is sent to a chat with the tuned model."""

from __future__ import annotations

from typing import Any

from litestar import Router

from tutelage_server.openai.chats import create_chat
from tutelage_server.openai.files import create_file, delete_file, file_content, list_files, retrieve_file
from tutelage_server.openai.models import delete_model, list_models, retrieve_model
from tutelage_server.openai.tuning import (
    cancel_job,
    create_job,
    list_checkpoints,
    list_events,
    list_jobs,
    pause_job,
    resume_job,
    retrieve_job,
)

_FILES = [create_file, list_files, retrieve_file, file_content, delete_file]
_JOBS = [create_job, list_jobs, retrieve_job, cancel_job, pause_job, resume_job, list_events, list_checkpoints]
_MODELS = [list_models, retrieve_model, delete_model, create_chat]

ROUTES: list[Any] = [Router("/openai/v1", route_handlers=[*_FILES, *_JOBS, *_MODELS], tags=["openai"])]
