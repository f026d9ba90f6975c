"""The environment's proxy for a server, if there is one.

Law: decides for one URL; no I/O. httpx reads the whole environment, and fails for parts of it that have nothing
to do with the URL: `NO_PROXY=[::1]`, or the `ALL_PROXY=socks://…` that GNOME sets as well.
"""

from __future__ import annotations

import ipaddress
import re
from importlib.util import find_spec
from urllib.parse import urlsplit
from urllib.request import getproxies

import httpx

_EXEMPT = re.compile(r"(?:\w+://)?(?:\[(?P<v6>[^]]*)\]|(?P<name>[^:]*))(?::(?P<port>\d+))?\Z")
"""An entry of NO_PROXY. One that does not match is an IPv6 address without brackets."""


def proxy_for(url: str) -> str | None:
    """The proxy's URL; None if requests to `url` go there directly.

    Raises ValueError for a proxy that cannot be used. Its URL may contain a password: do not show it.
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or any(_exempts(entry, host, port) for entry in proxies.get("no", "").split(",")):
        return None
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    try:
        scheme = httpx.Proxy(proxy).url.scheme
    except (ValueError, httpx.InvalidURL):
        why = "expected http://, https:// or socks5://"
    else:
        if not scheme.startswith("socks") or find_spec("socksio") is not None:
            return proxy
        why = "a SOCKS proxy needs the package socksio: pip install 'httpx[socks]'"
    name = f"{parts.scheme.upper()}_PROXY" if proxies.get(parts.scheme) else "ALL_PROXY"
    raise ValueError(
        f"The environment's {name} ({proxy.partition('://')[0]}://…) cannot be used: {why}. "
        f"NO_PROXY={host} bypasses it."
    )


def _exempts(entry: str, host: str, port: int) -> bool:
    """Whether this entry of NO_PROXY covers the host. It is `*`, a name (which covers its subdomains), an
    address or a network, with or without a port."""
    entry = entry.strip().lower()
    if entry == "*":
        return True
    found = _EXEMPT.match(entry)
    if found is not None and found["port"] not in (None, str(port)):
        return False
    name = entry if found is None else found["v6"] or found["name"] or ""
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(name, strict=False)
    except ValueError:
        name = name.lstrip("*").lstrip(".")
        return bool(name) and (host == name or host.endswith(f".{name}"))
