# Three images from one file: `materializer` (apply, produce, run), `server` (run), which has the same packages, and
# `validator` (run, check), which alone has Great Expectations.
#   docker build --target materializer -t freshet-materializer .
FROM python:3.12-slim-bookworm AS base
RUN apt-get update && apt-get install -y --no-install-recommends tini && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home freshet && mkdir /project /state && chown freshet /project /state
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PATH=/opt/freshet/bin:$PATH FRESHET_PROJECT=/project FRESHET_LOG=json
WORKDIR /project
ENTRYPOINT ["tini", "--", "freshet"]

FROM python:3.12-slim-bookworm AS wheel
WORKDIR /build
COPY deploy/build.lock ./
RUN pip install --no-cache-dir --require-hashes -r build.lock
COPY pyproject.toml README.md LICENSE ./
COPY schemas ./schemas
COPY flows ./flows
COPY scripts ./scripts
COPY feature_repo ./feature_repo
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheel .

FROM base AS build-materializer
COPY deploy/materializer.lock /build/
RUN python -m venv /opt/freshet && pip install --no-cache-dir --require-hashes -r /build/materializer.lock
COPY --from=wheel /wheel /wheel
RUN pip install --no-cache-dir --no-deps --no-index /wheel/*.whl

FROM base AS build-validator
COPY deploy/validator.lock /build/
RUN python -m venv /opt/freshet && pip install --no-cache-dir --require-hashes -r /build/validator.lock
COPY --from=wheel /wheel /wheel
RUN pip install --no-cache-dir --no-deps --no-index /wheel/*.whl

FROM base AS validator
COPY --from=build-validator /opt/freshet /opt/freshet
USER freshet
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9307/healthz', timeout=4)"]
CMD ["run", "validator"]

FROM base AS server
COPY --from=build-materializer /opt/freshet /opt/freshet
USER freshet
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9306/healthz', timeout=4)"]
CMD ["run", "server"]

FROM base AS materializer
COPY --from=build-materializer /opt/freshet /opt/freshet
USER freshet
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9308/healthz', timeout=4)"]
CMD ["run", "materializer"]
