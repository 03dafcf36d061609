"""From settings to nats-py's connection options: servers, authentication, TLS."""

from __future__ import annotations

import importlib.util
import ssl
from typing import Any

from ..config import Settings
from ..ports import MisconfiguredError


def connect_options(settings: Settings, *, name: str) -> dict[str, Any]:
    """Return the keyword arguments of ``nats.connect``, without its callbacks. *name* is for the server's list.

    Raises:
        MisconfiguredError: the settings need a package that is not installed.
    """
    # Three pings detect a dead connection. That has to happen well before leases expire.
    ping = min(10.0, max(1.0, settings.ack_wait / 12))
    if any(url.startswith("ws") for url in settings.nats_servers) and importlib.util.find_spec("aiohttp") is None:
        raise MisconfiguredError(
            "nats_url names a WebSocket: that needs aiohttp, pip install 'jetstream-queue-worker[websocket]'"
        )
    options: dict[str, Any] = {
        "servers": list(settings.nats_servers),
        "name": name,
        "ping_interval": ping,
        "max_outstanding_pings": 2,
        "connect_timeout": 5,
        "reconnect_time_wait": 0.25,
        "max_reconnect_attempts": -1,
        "skip_subject_validation": True,  # subjects come from the server, or are made of checked names
    }
    if settings.nats_token:
        options["token"] = settings.nats_token
    if settings.nats_user:
        options["user"], options["password"] = settings.nats_user, settings.nats_password
    if settings.nats_nkey_seed:
        options["nkeys_seed_str"] = settings.nats_nkey_seed
    if settings.nats_creds_file:
        options["user_credentials"] = settings.nats_creds_file
    if settings.nats_tls_ca_file or settings.nats_tls_cert_file:
        context = ssl.create_default_context(cafile=settings.nats_tls_ca_file)
        if settings.nats_tls_cert_file:
            context.load_cert_chain(settings.nats_tls_cert_file, settings.nats_tls_key_file)
        options["tls"] = context
    return options
