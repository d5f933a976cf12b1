"""Which addresses may be dialled for a URL that came from outside.

The rule is judged on the very address a socket is about to connect to, so that literals, DNS answers, answers that
change (rebinding) and redirects are all judged alike. ``ipaddress`` alone is not enough: multicast, translation
prefixes that hide an IPv4 address and a few special blocks pass its ``is_global``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from functools import lru_cache

from mmsearch_env.errors import ConfigError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
"""NAT64 (RFC 6052): the last 32 bits are an IPv4 address."""
_NEVER = tuple(
    ipaddress.ip_network(block)
    for block in (
        "192.0.0.0/24",  # IETF protocol assignments (RFC 6890)
        "192.88.99.0/24",  # 6to4 relays (RFC 7526)
        "64:ff9b:1::/48",  # local NAT64 (RFC 8215)
        "2001::/32",  # Teredo (RFC 4380): hides an IPv4 address
        "2002::/16",  # 6to4 (RFC 3056): hides an IPv4 address
        "fec0::/10",  # site-local (RFC 3879)
        "::/96",  # IPv4-compatible (RFC 4291)
    )
)


def refusal(address: str, *, allowed: Sequence[Network] = ()) -> str | None:
    """Why ``address`` may not be dialled; None if it may.

    Args:
        address: an IPv4 or IPv6 address as text, perhaps with a scope (``fe80::1%eth0``).
        allowed: networks that are allowed although they are not public.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return "not an address"
    bare = _unwrapped(parsed)
    if any(bare in network for network in allowed if network.version == bare.version):
        return None
    return None if _is_public(bare) else f"not a public address ({bare})"


@lru_cache(maxsize=64)
def networks(blocks: tuple[str, ...]) -> tuple[Network, ...]:
    """Networks from their notation, e.g. ``"10.1.0.0/16"``. Raises ConfigError."""
    try:
        return tuple(ipaddress.ip_network(block) for block in blocks)
    except ValueError as error:
        raise ConfigError(f"expected networks such as 10.1.0.0/16, got {list(blocks)}: {error}") from error


def _unwrapped(address: Address) -> Address:
    """The IPv4 address inside an IPv6 one that merely carries it."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _TRANSLATED:
            return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def _is_public(address: Address) -> bool:
    if any(address in network for network in _NEVER if network.version == address.version):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_link_local)
