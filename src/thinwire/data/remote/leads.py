"""Decide where a URL of data may lead: by a redirect of its server, or by a list of files that was
fetched.

A user has chosen to trust one host. What that host says is followed to the same host, and to others
that the user allows; never to a file here, never from https to http, and never from outside to an
address inside this network, which only this machine may be able to reach.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import urllib.request
from collections.abc import Collection
from typing import Any
from urllib.parse import urljoin, urlsplit

from thinwire.errors import DataError

HTTP = ("http", "https")


class Leads(urllib.request.HTTPRedirectHandler):
    """Follow redirects of one URL, as far as they are allowed.

    Args:
        origin: the address.
        hosts: names of hosts that it may lead to, beside its own.
    """

    def __init__(self, origin: str, hosts: Collection[str]) -> None:
        self._origin, self._hosts = origin, hosts

    def url_opener(self) -> urllib.request.OpenerDirector:
        """Return an opener for http and https only: urllib's own also opens files, FTP and data
        URLs."""
        made = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(),
            urllib.request.UnknownHandler(),
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
            self,
        ):
            made.add_handler(handler)
        return made

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        """Follow one redirect.

        Raises:
            DataError: it may not be followed.
        """
        to = headers.get("Location") or headers.get("URI")
        if to is not None:
            try:
                here = urljoin(req.full_url, to)
                must_be_allowed(req.full_url, here, self._hosts, origin=self._origin)
            except DataError:
                fp.close()
                raise
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def must_be_allowed(source: str, to: str, hosts: Collection[str], origin: str | None = None) -> str:
    """Return `to`, if what was read at `source` may lead there.

    Args:
        source: the address whose server, or whose list, says so.
        to: where that leads.
        hosts: names of hosts that are allowed.
        origin: the address that was asked for at first; `source` where it is not given.

    Raises:
        DataError: it may not.

    Example:
        >>> must_be_allowed("https://host/set/", "https://host/more/a.txt", ())
        'https://host/more/a.txt'
        >>> must_be_allowed("https://host/set/", "https://other/a.txt", ())
        Traceback (most recent call last):
        ...
        thinwire.errors.DataError: 'https://host/set/' leads to 'https://other/a.txt', ...
    """
    origin = source if origin is None else origin
    start = f"{source!r} leads to {to!r}"
    host, own = host_of(to), host_of(origin)
    # 1. Only http and https, and never from https to http.
    if host is None:
        raise DataError(
            f"{start}, which is no address that a server may lead to: only http:// and https:// "
            "are followed"
        )
    if urlsplit(source).scheme.lower() == "https" and urlsplit(to).scheme.lower() == "http":
        raise DataError(
            f"{start}, from https to http, where anybody on the way can read and change it: ask "
            "whoever serves it for https"
        )
    # 2. The same host as at first is trusted; others only by name.
    if host == own:
        return to
    if host not in hosts:
        allowed = ",".join(sorted({*hosts, host}))
        raise DataError(
            f"{start}, on another host: if that is right, allow it with --data-hosts {allowed} "
            "(hosts= in Python)"
        )
    # 3. A host outside must not lead inside: an address that only this machine can reach.
    inside = _inside(host)
    if inside and not inside & {host, *hosts} and not _inside(own or ""):
        raise DataError(
            f"{start}, whose address {min(inside)} is inside this machine's own network, where "
            f"{own} is not: "
            "if that is right, allow it with --data-hosts "
            f"{','.join(sorted({*hosts, min(inside)}))}"
        )
    return to


def host_of(url: str) -> str | None:
    """Return the host name of an http or https URL in lower case; None for other text.

    Example:
        >>> host_of("https://Data.Example:8443/a"), host_of("file:///etc/passwd"), host_of("http://")
        ('data.example', None, None)
    """
    try:
        parts = urlsplit(url)
        return (parts.hostname or None) if parts.scheme.lower() in HTTP else None
    except ValueError:  # such as [::
        return None


def host_names(text: str) -> tuple[str, ...]:
    """Return the host names of a comma-separated list.

    Raises:
        ValueError: one of them is no bare name or address of a host.

    Example:
        >>> host_names("cdn.example, 10.0.0.5")
        ('cdn.example', '10.0.0.5')
    """
    names = tuple(name.strip().lower() for name in text.split(",") if name.strip())
    for name in names:
        if not re.fullmatch(r"[\w.:-]+", name) or name not in (
            host_of(f"http://{name}/"),
            host_of(f"http://[{name}]/"),
        ):
            raise ValueError(
                f"{name!r} is not the name of a host; write names such as cdn.example, with "
                "commas between"
            )
    return names


def _inside(host: str) -> set[str]:
    """Return the addresses of a host that are not on the public internet; none if this machine
    cannot resolve it (a proxy may)."""
    try:
        addresses = {str(each[4][0]).partition("%")[0] for each in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return set()
    return {address for address in addresses if not _public(address)}


def _public(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_global
