"""The webhook: news of findings, posted to whoever listens at one address.

A request is `POST` with `Content-Type: application/json`; its body is a list of alarms, each as `Alarm.as_json`. Any
answer of 200 to 299 takes them; anything else, a redirect too, does not, and they are posted again.
"""

import http.client
import json
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import NoReturn
from urllib.parse import urlsplit

from freshet.schemas.errors import Problem, Refused, Unavailable
from freshet.schemas.finding import Alarm

_LIMIT_S = 5.0


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would turn the POST into a GET without a body."""

    def redirect_request(self, *_: object) -> None:
        """Follow none."""


class Webhook:
    """Posts alarms of a project to an http:// or https:// URL, which may be a secret and is never said.

    Connecting, and each wait for an answer, lasts no longer than `limit_s`. Raises `Refused` for a URL of another kind.
    """

    def __init__(self, url: str, project: str, limit_s: float = _LIMIT_S) -> None:
        self._url, self._project, self._limit_s = url, project, limit_s
        try:
            parts = urlsplit(url)
            named = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.username is None
            fine = named and parts.port != 0 and re.fullmatch(r"[!-~]+", url) is not None
        except ValueError:  # its text may hold pieces of the URL
            fine = False
        if not fine:
            hint = "write http://host/… or https://host/…, percent-encoded, a secret in its path or query"
            raise Refused([Problem("variable", "FRESHET_WEBHOOK", "is not a URL that can be posted to", hint=hint)])
        self._host = parts.netloc
        self._opener = urllib.request.build_opener(_NoRedirect)

    def deliver(self, alarms: Sequence[Alarm]) -> None:
        """Return once the receiver has taken them; raises `Unavailable` if it does not."""
        body = json.dumps([alarm.as_json(self._project) for alarm in alarms], allow_nan=False).encode()
        headers = {"Content-Type": "application/json", "User-Agent": "freshet"}
        request = urllib.request.Request(self._url, body, headers, method="POST")  # noqa: S310  # checked above
        try:
            self._opener.open(request, timeout=self._limit_s).close()
        except urllib.error.HTTPError as error:
            error.close()
            self._fail(f"it answers {error.code}")
        except urllib.error.URLError as error:
            self._fail(str(error.reason))
        except (OSError, http.client.HTTPException) as error:  # while the answer is read
            self._fail(f"{type(error).__name__} while its answer was read")

    def _fail(self, cause: str) -> NoReturn:
        hint = "its URL is FRESHET_WEBHOOK"
        raise Unavailable(f"webhook at {self._host} does not take findings: {cause}. Hint: {hint}") from None


class MemoryWebhook:
    """The twin of `Webhook`: bodies as they would be posted, kept in this process."""

    def __init__(self, project: str) -> None:
        self._project = project
        self.well = True
        """Whether it takes what comes."""
        self.bodies: list[bytes] = []

    def deliver(self, alarms: Sequence[Alarm]) -> None:
        """Take them; raises `Unavailable` if it is not well."""
        if not self.well:
            raise Unavailable("webhook in memory does not take findings: it is not well")
        self.bodies.append(json.dumps([alarm.as_json(self._project) for alarm in alarms], allow_nan=False).encode())
