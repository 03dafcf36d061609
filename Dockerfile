# The worker's image. OpenFaaS's charts start `jetstream-queue-worker` by name, so the program is in PATH.
FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY worker worker
# This stage builds the wheel and an environment without pip, with compiled bytecode, because the root filesystem
# may be read-only at run time.
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
 && python -m venv --without-pip /opt/queue-worker \
 && python -m pip --python /opt/queue-worker/bin/python install --no-cache-dir --compile --constraint constraints.txt "$(ls /wheels/*.whl)[websocket]"

# The programs start with blocked signals, until their handlers are set: the kernel drops a signal to process 1 that has
# no handler (worker/entry.py).
RUN sed -i '1s|^#!|#!/usr/bin/env -S --block-signal=TERM,INT,HUP |' \
    /opt/queue-worker/bin/queue-worker /opt/queue-worker/bin/jetstream-queue-worker

FROM python:3.13-slim
RUN python -m pip uninstall --yes --root-user-action=ignore pip
COPY --from=build /opt/queue-worker /opt/queue-worker
ENV PATH=/opt/queue-worker/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# The user id of OpenFaaS's charts. It is numeric, so that Kubernetes can check that it is not root.
USER 10001:10001
EXPOSE 8081
STOPSIGNAL SIGTERM
ENTRYPOINT ["jetstream-queue-worker"]
