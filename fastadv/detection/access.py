"""A bearer token in front of the HTTP service. Needs the extra ``serve``."""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from fastadv.core.errors import ArgumentError

OPEN = ("/healthz", "/readyz")
_TOKEN = re.compile(r"[!-~]{16,4096}")


def check_token(token: str, name: str = "token") -> str:
    """A token that can be sent in a header and is not guessed at once.

    Raises:
        ValueError: it is shorter than 16 characters, or has others than visible ASCII; the message does not repeat it.
    """
    if not _TOKEN.fullmatch(token):
        raise ArgumentError(
            f"{name}: expected 16 to 4096 visible ASCII characters, got {len(token)} characters"
            + (", some not visible or not ASCII" if re.search("[^!-~]", token) else "")
            + "; generate one with: openssl rand -hex 32"
        )
    return token


class TokenCheck:
    """Answers 401 to requests without the token; those that ask for health are open to all."""

    def __init__(self, app: ASGIApp, token: str, refuse: Callable[[str], None] = lambda limit: None) -> None:
        """Put the check around an application; `refuse` counts."""
        self.app, self._refuse = app, refuse
        self._expected = check_token(token).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it before any of its body is read."""
        if scope["type"] == "http" and scope["path"] not in OPEN:
            kind, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
            right = hmac.compare_digest(given.strip().encode("latin-1"), self._expected)  # in constant time
            if kind.lower() != "bearer" or not right:
                self._refuse("token")
                refused = JSONResponse(
                    {"detail": "expected the header 'Authorization: Bearer TOKEN' with this server's token"},
                    401,
                    {"WWW-Authenticate": "Bearer"},
                )
                await refused(scope, receive, send)
                return
        await self.app(scope, receive, send)
