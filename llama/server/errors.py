"""What goes wrong, as JSON in the shape that OpenAI's clients know."""

from __future__ import annotations

import reprlib
import sys
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from llama.errors import LlamaError, UsageError
from llama.native import c_bytes
from llama.server.schemas import LONE, TAGS

UNREADABLE = "There was an error parsing the body"  # as FastAPI says it
TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    501: "not_supported_error",
}


class ApiError(HTTPException):
    """An answer that is an error. param: the field that is wrong. code: a word that programs look for."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        text = c_bytes(message).decode()  # it may name a file, which may be any bytes
        super().__init__(status, text, headers)
        self.param, self.code = param, code

    @property
    def body(self) -> dict[str, Any]:
        server = "server_error" if self.status_code >= 500 else "invalid_request_error"
        fields = {"type": TYPES.get(self.status_code, server), "param": self.param, "code": self.code}
        return {"error": {"message": self.detail, **fields}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status_code, dict(self.headers or {}))


def unsupported(what: str, param: str | None = None) -> ApiError:
    """What OpenAI has and this server has not, said once: its clients ask again after other errors of 5xx."""
    headers = {"x-should-retry": "false"}
    return ApiError(501, f"{what}: this server has no such thing", param, "not_supported", headers)


def explained(error: Exception) -> ApiError:
    """An error of a request as the answer to it: what the client can mend is its, all else the server's."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UsageError):
        return ApiError(400, str(error))
    return ApiError(500, f"{type(error).__name__}: {error}")


def is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind.startswith("application/") and kind.removeprefix("application/").rpartition("+")[2] == "json"


ALLOWED = {  # what pydantic calls an error, and what is allowed
    "string_type": "a text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true and false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} and more",
    "less_than": "less than {lt}",
    "less_than_equal": "up to {le}",
    "literal_error": "{expected}",
    "too_long": "{max_length} items at most",
    "too_short": "{min_length} item at least",
    "string_too_long": "{max_length} characters at most",
}
SHOWN = 80  # characters of what was found
BRIEF = reprlib.Repr()
BRIEF.maxlevel, BRIEF.maxstring, BRIEF.maxlong, BRIEF.maxother = 3, SHOWN, SHOWN, SHOWN


def told(name: str, error: dict[str, Any]) -> str:
    """What pydantic says of a field in our words: what was found, and what is allowed."""
    kind, found = error["type"], f"{name} = {BRIEF.repr(error['input']):.{SHOWN}}"
    if kind == "missing":
        return f"{name}: is missing"
    if kind == "extra_forbidden":
        return f"{found}: there is no such field"
    if kind == "string_unicode":
        return f"{name}: {LONE}"
    if kind in ALLOWED:
        bounds = {key: f"{x:g}" if isinstance(x, float) else x for key, x in error.get("ctx", {}).items()}
        return f"{found}, allowed {ALLOWED[kind].format(**bounds)}"
    if error["msg"].startswith("allowed "):  # of schemas
        return f"{found}, {error['msg']}"
    return f"{name}: {error['msg']}"


def validation(error: RequestValidationError, content_type: str) -> ApiError:
    """The first thing that is wrong with a request. A field that there is not is told before one that is
    missing, which it may have been meant for.
    """
    errors = error.errors()
    first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
    place = [str(part) for part in first["loc"][1:] if part not in TAGS]
    if first["loc"] == ("body",) and not is_json(content_type):
        return ApiError(415, f"Content-Type = {content_type[:100]!r}, allowed application/json")
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first['ctx']['error']}")
    name = ".".join(place) or "the body"
    return ApiError(400, told(name, first), place[0] if place else None)


def unreadable(error: BaseException | None) -> str:
    """Why a body is not even looked at: what reading it as JSON has raised."""
    if isinstance(error, UnicodeDecodeError):
        return f"the body is not UTF-8: byte {error.start}"
    if isinstance(error, RecursionError):
        return "the body is nested too deeply"
    if isinstance(error, ValueError):  # Python's limit
        return f"the body has a number of more than {sys.get_int_max_str_digits()} digits"
    return "the body can't be read"


def add_handlers(app: FastAPI) -> None:
    """Has every error of an app answered so."""

    @app.exception_handler(ApiError)
    @app.exception_handler(LlamaError)
    async def known(request: Request, error: Exception) -> JSONResponse:
        return explained(error).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return validation(error, request.headers.get("content-type", "")).response()

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        phrase = HTTPStatus(error.status_code).phrase
        message = error.detail if error.detail != phrase else f"{phrase}: {request.method} {request.url.path}"
        if error.detail == UNREADABLE:
            message = unreadable(error.__cause__)
        return ApiError(error.status_code, message, headers=dict(error.headers or {})).response()

    @app.exception_handler(Exception)
    async def unknown(request: Request, error: Exception) -> JSONResponse:
        return explained(error).response()  # and uvicorn logs it
