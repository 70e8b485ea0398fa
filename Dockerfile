# Two images from one file: `materializer` (apply, produce, run) and `validator`, which alone has Great Expectations.
#   docker build --target materializer -t freshet-materializer .
FROM python:3.12-slim-bookworm AS base
RUN apt-get update && apt-get install -y --no-install-recommends tini && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home freshet && mkdir /project /state && chown freshet /project /state
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PATH=/opt/freshet/bin:$PATH FRESHET_PROJECT=/project FRESHET_LOG=json
WORKDIR /project
ENTRYPOINT ["tini", "--", "freshet"]

FROM base AS source
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY deploy/materializer.lock deploy/validator.lock ./deploy/
COPY schemas ./schemas
COPY flows ./flows
COPY scripts ./scripts
COPY feature_repo ./feature_repo

FROM source AS build-materializer
RUN python -m venv /opt/freshet \
    && /opt/freshet/bin/pip install --no-cache-dir --require-hashes -r deploy/materializer.lock \
    && /opt/freshet/bin/pip install --no-cache-dir --no-deps .

FROM source AS build-validator
RUN python -m venv /opt/freshet \
    && /opt/freshet/bin/pip install --no-cache-dir --require-hashes -r deploy/validator.lock \
    && /opt/freshet/bin/pip install --no-cache-dir --no-deps .

FROM base AS validator
COPY --from=build-validator /opt/freshet /opt/freshet
USER freshet
CMD ["check"]

FROM base AS materializer
COPY --from=build-materializer /opt/freshet /opt/freshet
USER freshet
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9308/healthz', timeout=4)"]
CMD ["run", "materializer"]
