# PostgreSQL and Redis from Debian, for `make containers`: they answer to the commands of compose.yaml as the official
# images do.
ARG BASE
FROM ${BASE}
ENV DEBIAN_FRONTEND=noninteractive
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends postgresql redis-server \
    && rm -rf /var/lib/apt/lists/*
COPY --chmod=755 servers.sh /entrypoint
ENTRYPOINT ["/entrypoint"]
