"""Settings of OpenFaaS's community queue-worker, for NATS Streaming: its chart gives them to an image in its place.

This worker reads other names. Without a warning it would connect to 127.0.0.1, and only that would be seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

REPLACEMENTS: Mapping[str, str] = {
    "faas_nats_address": "set nats_host",
    "faas_nats_port": "set nats_port",
    "faas_nats_cluster_name": "JetStream has no such name",
    "faas_nats_channel": "set nats_stream, and queue_name if it differs",
    "faas_nats_queue_group": "set nats_durable",
    "faas_nats_durable_queue_subscription": "the consumer is always durable",
    "faas_gateway_address": "set gateway_url",
    "faas_gateway_port": "set gateway_url",
    "gateway_port": "set gateway_url",
    "faas_function_suffix": "functions are always invoked through gateway_url",
    "faas_print_body": "bodies are never logged",
    "faas_max_reconnect": "the worker reconnects without a limit",
    "faas_reconnect_delay": "the worker chooses the delay",
    "write_debug": "set debug",
    "secret_mount_path": "name the files of secrets, as in nats_token_file",
}
"""Remedy for each setting. Those that the licensed charts set too are left out: they need none."""


def community_warning(environment: Iterable[str]) -> str | None:
    """Return one warning that names each setting of the community edition and its replacement; None without any."""
    found = [f"{name} ({REPLACEMENTS[name]})" for name in REPLACEMENTS if name in set(environment)]
    if not found:
        return None
    return f"settings of OpenFaaS's community queue-worker are ignored: {', '.join(found)}"
