"""Entry points of the programs: what must be done before the imports, which take a tenth of a second and more.

Process 1 of a container gets no signal for which it has no handler: the kernel drops it. Such a signal would be lost
during the imports, and Kubernetes would wait for the whole grace period. So the handlers are set first, and the image
starts Python with these signals blocked, so that one that arrives before this module waits for its handler.
"""

from __future__ import annotations

import os
import signal
import sys

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def program() -> None:
    """Start ``queue-worker``."""
    is_server = sys.argv[1:2] in (["run"], ["gateway"])
    _prepare_process(is_server=is_server)
    from .cli import main  # noqa: PLC0415 -- it takes long, see above

    main(prog_name="queue-worker")


def charts() -> None:
    """Start `queue-worker run` under the name ``jetstream-queue-worker``, with the charts' flags."""
    _prepare_process(is_server=True)
    from .cli import main  # noqa: PLC0415 -- it takes long, see above
    from .cli.flags import split_flags  # noqa: PLC0415

    main(["run", *split_flags(sys.argv[1:])], prog_name="jetstream-queue-worker")


def module() -> None:
    """Start `queue-worker run` as ``python -m worker``."""
    _prepare_process(is_server=True)
    from .cli import main  # noqa: PLC0415 -- it takes long, see above

    main(["run", *sys.argv[1:]], prog_name="python -m worker")


def _prepare_process(*, is_server: bool) -> None:
    """Set the signal handlers of a server, let blocked signals in, and open standard streams that are closed."""
    if is_server:
        _exit_on_stop_signals()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
    _open_closed_streams(is_server=is_server)


def _exit_on_stop_signals() -> None:
    """End the process at once, with exit code 0, on a stop signal before or after the server's own handlers are set.

    SIGHUP, which a closed terminal sends, acts as SIGTERM from now on, unless ``nohup`` has switched it off.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))


def _open_closed_streams(*, is_server: bool) -> None:
    """Open /dev/null as each standard stream that is closed.

    Otherwise a connection would get the number of the closed file, and with it the text that is meant for the stream.
    """
    has_no_log = is_server and sys.stdout is None
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            file = os.open(os.devnull, os.O_RDWR)  # it gets the lowest free number, which is the closed one
            os.set_inheritable(file, True)
            setattr(sys, name, open(file, "w" if number else "r", encoding="utf-8"))  # noqa: SIM115, PTH123 -- for the process's life
    if has_no_log:
        print("queue-worker: standard output is closed, so no log is written", file=sys.stderr)  # noqa: T201 -- no log
