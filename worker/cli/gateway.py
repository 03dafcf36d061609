"""``queue-worker gateway``."""

from __future__ import annotations

import click

from ..gateway.serve import run
from ..ports import MisconfiguredError
from . import fail, settings_or_exit


@click.command()
def command() -> None:
    """Put invocations on the queue, by HTTP.

    POST /async-function/NAME answers 202 once the queue has stored the invocation. Requests to /function/NAME are
    passed on to the functions at gateway_url. Listens on listen_host:listen_port.
    """
    settings = settings_or_exit(warn=True).settings
    try:
        run(settings)
    except (OSError, MisconfiguredError) as error:
        fail(error)
