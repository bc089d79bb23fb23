"""Every server that speaks OpenAI's chat completions: OpenAI itself, and vLLM, llama.cpp and others by base URL."""

from __future__ import annotations

import os
from typing import Any

from rocm_overlay.errors import TargetError, UsageError

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

LOCAL_URL = "http://127.0.0.1:8000/v1"


class OpenAI:
    """The official client, with its own retries switched off: ours are counted."""

    def __init__(self, settings: Settings) -> None:
        try:
            import openai
        except ImportError as error:
            raise no_client("openai", f"model_name={settings.model_name}") from error
        self._errors = openai
        self._settings = settings
        local = settings.model_name == "local"
        self._prompts = load_prompts(settings.prompts, settings.prompts_dir)
        url = settings.base_url or os.environ.get("OPENAI_BASE_URL", "") or (LOCAL_URL if local else "")
        if url and not url.startswith(("http://", "https://")):
            raise UsageError("bad-url", f"base_url {url!r} is not a web address.", remedy=f"for example {LOCAL_URL}")
        key = find_key(("OPENAI_API_KEY",), needed=not local)
        self._client = openai.OpenAI(api_key=key, base_url=url or None, max_retries=0, timeout=settings.request_timeout)
        self._retry = Retry(Pace(settings.requests_per_minute))
        named = settings.llm_model or os.environ.get("OPENAI_MODEL", "")
        self._model = named or (self._first_model(url) if local else DEFAULT_MODELS["openai"].name)

    def _first_model(self, url: str) -> str:
        """Return the model that a server on this machine has loaded.

        Raises:
            TargetError: there is no server, or it does not say.
        """
        try:
            return str(next(iter(self._client.models.list())).id)
        except (self._errors.APIError, StopIteration, ValueError, AttributeError) as error:
            raise TargetError(
                "no-model",
                f"The server at {url} names no model: {type(error).__name__}.",
                remedy="start it, or set base_url=... and llm_model=...",
            ) from error

    def generate(self, plan: Plan, feedback: Feedback | None = None) -> Reply:
        """Ask the model for one program."""
        system, turns = conversation(self._prompts, plan, feedback)
        answer, requests = self._retry.call(lambda: self._ask(system, turns))
        choices = getattr(answer, "choices", None)
        text = choices[0].message.content if choices and choices[0].message else None
        if not text:
            raise ProviderError("the server's answer holds no text", requests)
        usage = getattr(answer, "usage", None)
        tokens = (getattr(usage, "prompt_tokens", 0) or 0, getattr(usage, "completion_tokens", 0) or 0)
        cost = (tokens[0] * self._settings.price_in + tokens[1] * self._settings.price_out) / 1e6
        return Reply(text, *tokens, requests, cost)

    def _ask(self, system: str, turns: list[tuple[str, str]]) -> Any:
        openai = self._errors
        messages: list[Any] = [{"role": role, "content": text} for role, text in [("system", system), *turns]]
        try:
            return self._client.chat.completions.create(
                model=self._model,
                messages=messages,
                temperature=self._settings.temperature,
                max_tokens=self._settings.max_tokens,
            )
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise TargetError(
                "refused",
                f"The server refused the request with status {error.status_code}.",
                remedy="check the key, llm_model and base_url",
            ) from error
        except (openai.RateLimitError, openai.InternalServerError) as error:
            pause = retry_after(error.response.headers.get("retry-after"))
            raise Transient(f"the server answered with status {error.status_code}", pause) from error
        except openai.APITimeoutError as error:
            raise Transient(f"no answer within {self._settings.request_timeout:g} s") from error
        except openai.APIConnectionError as error:
            raise Transient(f"no connection: {error.__cause__ or error}") from error
        except openai.APIStatusError as error:
            raise ProviderError(f"the server answered with status {error.status_code}") from error
        except (openai.APIError, ValueError) as error:
            raise ProviderError(f"the server's answer cannot be read: {type(error).__name__}") from error
