# syntax=docker/dockerfile:1
# The worker and the command line. A small CPU image, or one for CUDA:
#   docker build --build-arg VARIANT=cpu  --tag genarm:0.1.0-cpu  .
#   docker build --build-arg VARIANT=cuda --tag genarm:0.1.0-cuda .
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
ARG VARIANT=cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_COMPILE=1
RUN python -m venv /opt/genarm
ENV PATH=/opt/genarm/bin:$PATH
WORKDIR /source
COPY constraints.txt ./
# torch alone first: it is most of the image, and changes least. CUDA comes with the wheel of the ordinary index.
RUN --mount=type=cache,target=/root/.cache/pip \
    case "$VARIANT" in \
        cpu) set -- --index-url https://download.pytorch.org/whl/cpu ;; \
        cuda) set -- ;; \
        *) echo "VARIANT: cpu or cuda" >&2; exit 1 ;; \
    esac \
    && pip install --constraint constraints.txt "$@" torch
COPY pyproject.toml README.md LICENSE ./
COPY models ./models
COPY db ./db
COPY worker ./worker
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint constraints.txt '.[postgres,parquet,gguf]'

FROM python:${PYTHON}-slim
# Kernels are compiled for the machine that they run on: those for the CPU, and on CUDA what Triton starts its kernels with.
# The compiler is that of the image's own Debian, whose packages are replaced with each fix: a pinned version would soon be
# gone.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --no-create-home --home-dir /var/lib/genarm genarm \
    && install --directory --owner=genarm --mode=700 /var/lib/genarm
COPY --from=build /opt/genarm /opt/genarm
ENV PATH=/opt/genarm/bin:$PATH PYTHONUNBUFFERED=1 GENARM_HOME=/var/lib/genarm
USER 10001
WORKDIR /var/lib/genarm
VOLUME /var/lib/genarm
EXPOSE 9464
STOPSIGNAL SIGTERM
CMD ["genarm", "worker"]
