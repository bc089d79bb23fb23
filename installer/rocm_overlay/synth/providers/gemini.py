"""Google's models through google-genai."""

from __future__ import annotations

import contextlib
import os
from importlib import import_module
from typing import Any

from rocm_overlay.errors import TargetError

from ..sampler.plan import Plan
from ..settings import DEFAULT_MODELS, Settings
from .base import (
    Feedback,
    Pace,
    ProviderError,
    Reply,
    Retry,
    Transient,
    conversation,
    find_key,
    load_prompts,
    no_client,
    retry_after,
)


def _transport_errors() -> tuple[type[Exception], ...]:
    """The errors of a lost or slow connection: those of the HTTP library that the client came with."""
    found = []
    for name in ("httpx2", "httpx"):
        with contextlib.suppress(ImportError):
            found.append(import_module(name).TransportError)
    return tuple(found)


class Gemini:
    """The official client, with our own retries."""

    def __init__(self, settings: Settings) -> None:
        try:
            from google import genai
            from google.genai import errors, types
        except ImportError as error:
            raise no_client("google-genai", "model_name=gemini") from error
        self._errors, self._types = errors, types
        self._lost = _transport_errors()
        self._settings = settings
        self._prompts = load_prompts(settings.prompts, settings.prompts_dir)
        self._model = settings.llm_model or os.environ.get("GEMINI_MODEL", "") or DEFAULT_MODELS["gemini"].name
        key = find_key(("GEMINI_API_KEY", "GOOGLE_API_KEY"), needed=True)
        options = types.HttpOptions(base_url=settings.base_url or None, timeout=int(settings.request_timeout * 1000))
        self._client = genai.Client(api_key=key, http_options=options)
        self._retry = Retry(Pace(settings.requests_per_minute))

    def generate(self, plan: Plan, feedback: Feedback | None = None) -> Reply:
        """Ask the model for one program."""
        system, turns = conversation(self._prompts, plan, feedback)
        answer, requests = self._retry.call(lambda: self._ask(system, turns))
        if not answer.text:
            raise ProviderError("the server's answer holds no text", requests)
        usage = answer.usage_metadata
        tokens = (getattr(usage, "prompt_token_count", 0) or 0, getattr(usage, "candidates_token_count", 0) or 0)
        cost = (tokens[0] * self._settings.price_in + tokens[1] * self._settings.price_out) / 1e6
        return Reply(answer.text, *tokens, requests, cost)

    def _ask(self, system: str, turns: list[tuple[str, str]]) -> Any:
        contents = [
            self._types.Content(role="model" if role == "assistant" else role, parts=[self._types.Part(text=text)])
            for role, text in turns
        ]
        config = self._types.GenerateContentConfig(
            system_instruction=system,
            temperature=self._settings.temperature,
            max_output_tokens=self._settings.max_tokens,
        )
        try:
            return self._client.models.generate_content(model=self._model, contents=contents, config=config)
        except self._errors.APIError as error:
            if error.code in (401, 403, 404):
                raise TargetError(
                    "refused",
                    f"The server refused the request with status {error.code}.",
                    remedy="check key and llm_model",
                ) from error
            if error.code == 429 or (error.code or 0) >= 500:
                pause = retry_after(getattr(error.response, "headers", {}).get("retry-after"))
                raise Transient(f"the server answered with status {error.code}", pause) from error
            raise ProviderError(f"the server answered with status {error.code}") from error
        except self._lost as error:
            raise Transient(f"no connection or no answer in time: {type(error).__name__}") from error
        except ValueError as error:
            raise ProviderError(f"the server's answer cannot be read: {type(error).__name__}") from error
