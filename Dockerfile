# The worker's image. OpenFaaS's charts start `jetstream-queue-worker` in it by name, so that is on the path.
FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY worker worker
# The wheel is built here; what goes on is an environment without pip, its bytecode compiled, since the root filesystem
# may be read-only where it runs.
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
 && python -m venv --without-pip /opt/queue-worker \
 && python -m pip --python /opt/queue-worker/bin/python install --no-cache-dir --compile --constraint constraints.txt "$(ls /wheels/*.whl)[websocket]"

FROM python:3.13-slim
RUN python -m pip uninstall --yes --root-user-action=ignore pip
COPY --from=build /opt/queue-worker /opt/queue-worker
ENV PATH=/opt/queue-worker/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# The user id that OpenFaaS's charts use. Numeric, so that Kubernetes can see that it is not root.
USER 10001:10001
EXPOSE 8081
STOPSIGNAL SIGTERM
ENTRYPOINT ["jetstream-queue-worker"]
