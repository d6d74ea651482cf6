# The worker and the command line. A small CPU image, or one for CUDA (Docker 23 or newer, or DOCKER_BUILDKIT=1):
#   docker build --build-arg VARIANT=cpu  --tag genarm:0.1.0-cpu  .
#   docker build --build-arg VARIANT=cuda --tag genarm:0.1.0-cuda .
# Behind a mirror: --build-arg REGISTRY=registry.example.org/ (of the base image), PIP_INDEX_URL, PIP_TRUSTED_HOST,
# TORCH_INDEX_URL (of PyTorch's wheels for CPUs). A base image that has gcc needs no mirror of Debian.
ARG REGISTRY=
ARG PYTHON=3.12

FROM ${REGISTRY}python:${PYTHON}-slim AS build
ARG VARIANT=cpu
ARG PIP_INDEX_URL
ARG PIP_TRUSTED_HOST
ARG TORCH_INDEX_URL
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_COMPILE=1
RUN python -m venv /opt/genarm
ENV PATH=/opt/genarm/bin:$PATH
WORKDIR /source
COPY constraints.txt ./
# torch alone first: it is most of the image, and changes least. CUDA comes with the wheel of the ordinary index.
RUN --mount=type=cache,target=/root/.cache/pip \
    case "$VARIANT" in \
        cpu) set -- --index-url "${TORCH_INDEX_URL:-https://download.pytorch.org/whl/cpu}" ;; \
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

FROM ${REGISTRY}python:${PYTHON}-slim
# Kernels are compiled for the machine that they run on: those for the CPU, and on CUDA what Triton starts its kernels with.
# The compiler is that of the image's own Debian, whose packages are replaced with each fix: a pinned version would soon be
# gone.
# hadolint ignore=DL3008
RUN if ! command -v gcc > /dev/null; then \
    apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; fi
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
