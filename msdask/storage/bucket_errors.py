"""What an error of obstore says: Python's own errors in its place, which name the server's words and what to set."""

from __future__ import annotations

import re

from obstore import exceptions

from msdask.storage.patience import PassingError, is_passing

__all__ = ["as_os_error", "has_status", "is_whole_answer"]

_STATUS = re.compile(r"status code: (\d{3})([^:\n]*):?(.*?)(?:\n\nDebug source|$)", re.DOTALL)
_CODE = re.compile(r"<Code>\s*(\w+)\s*</Code>")
_INNER_CODE = re.compile(r'code: "(\w+)"')
"""Of one object among many that were to be removed."""
_MESSAGE = re.compile(r"<Message>(.*?)</Message>", re.DOTALL)
_CAUSE = re.compile(r'(?:message|error): "([^"]+)"')
_METADATA_SERVERS = ("169.254.169.254", "169.254.170.2", "metadata.google.internal")
"""Where the role of a machine in a cloud is asked for; elsewhere nobody is there."""
_REFUSALS = {"AccessDenied", "ExpiredToken", "InvalidToken", "TokenRefreshRequired"}
_PASSING_CODES = {"InternalError", "RequestTimeout", "ServiceUnavailable", "SlowDown"}
"""Codes of S3 that come under statuses which say something else, or under none."""
_REDIRECTED = "Received redirect"
_NOT_PARTIAL = "non-partial"
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
}
_LONGEST = 300


def has_status(error: Exception, status: int) -> bool:
    """Whether a server answered with this status."""
    found = _STATUS.search(str(error))
    return found is not None and int(found[1]) == status


def is_whole_answer(error: Exception) -> bool:
    """Whether a server sent the whole object where a range was asked for."""
    return _NOT_PARTIAL in str(error)


def as_os_error(path: str, error: Exception, *, server: str | None) -> OSError:
    """Python's own error in place of obstore's.

    Parameters
    ----------
    path : URL of what was asked for
    error : obstore's
    server : its address, where it is not that of the scheme's own

    Returns
    -------
    error : FileNotFoundError: there is no such object; PermissionError: the server refuses; PassingError: the same
        request later may be answered; OSError: all else
    """
    text = str(error)
    scheme, _, rest = path.partition("://")
    found = _STATUS.search(text)
    status = int(found[1]) if found else None
    if "NoSuchBucket" in text:
        return OSError(f"there is no bucket '{rest.split('/')[0]}': make it first, or check the URL '{path}'")
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(f"'{path}' is missing")
    what = _answer(found) if found else _cause(text)
    code = next((part[1] for part in (_CODE.search(text), _INNER_CODE.search(text)) if part), "")
    if any(f"//{name}" in text for name in _METADATA_SERVERS) and not (status and is_passing(status)):
        return PermissionError(
            f"'{path}': access denied (no credentials, and this machine has no role that gives any: {what}); set "
            f"{_CREDENTIALS.get(scheme, '')} in the environment, or for public data storage_options={{'anonymous': "
            "True}"
        )
    denied = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
    if isinstance(error, denied) or status in (401, 403) or code in _REFUSALS:
        return PermissionError(
            f"'{path}': access denied ({what}); check the credentials in the environment "
            f"({_CREDENTIALS.get(scheme, '')}) and what they may do there"
        )
    at = f"the server {server}" if server else f"{scheme}://"
    sentence = f"'{path}': {at} says: {what}" if found else f"'{path}': {at} gives no answer that could be used: {what}"
    sentence += (
        "; check the network and the server's address (storage_options={'endpoint': ...} or AWS_ENDPOINT_URL) and "
        "region (AWS_REGION)"
    )
    may_pass = code in _PASSING_CODES or (is_passing(status) if status else _REDIRECTED not in text)
    return PassingError(sentence) if may_pass else OSError(sentence)


def _answer(found: re.Match[str]) -> str:
    """A status with its words, and the code and message in the body."""
    body = found[3]
    words = [part[1].strip() for part in (_CODE.search(body), _MESSAGE.search(body)) if part and part[1].strip()]
    status = f"{found[1]}{found[2]}".strip()
    return f"{status} ({': '.join(words)})"[:_LONGEST] if words else status


def _cause(text: str) -> str:
    """Why there was no answer: what the operating system said, else obstore's sentence."""
    first, _, details = text.partition("\n\nDebug source")
    said = first.rsplit(" - ", 1)[-1].removeprefix("Generic S3 error: ").strip()
    if "TimedOut" in details or "kind: Timeout" in details:
        return f"{said}: no answer in time"
    causes = _CAUSE.findall(details)
    return f"{said}: {causes[-1]}"[:_LONGEST] if causes else said[:_LONGEST]
