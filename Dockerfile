# Targets: gpu (default), cpu, and gpu-public-kernels. All run as a user without rights on a read-only
# root, from one Python image: torch's wheels bring CUDA, and nothing is compiled but the CPU kernels.
#   docker build .        docker build --target cpu .        docker build --build-arg TORCH=cu126 .
# Behind a mirror the secrets pip_conf, apt_sources and ca_bundle are used while building and leave
# nothing behind (docker/mirrored); --build-context wheels=DIR offers ready wheels.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# Ready wheels, none by default: replaced by --build-context wheels=DIR.
FROM scratch AS wheels

# ---------------------------------------------------------------- what every target is built with
FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
COPY --chmod=755 docker/mirrored docker/install-torch docker/install-service docker/trim-torch \
    /usr/local/bin/
# hadolint ignore=DL3008
RUN --mount=type=secret,id=apt_sources,mode=0444 \
    --mount=type=secret,id=ca_bundle,mode=0444 \
    mirrored apt-get update \
    && mirrored apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* \
    && python3 -m venv /opt/vim-embed
COPY constraints.txt /src/

# ---------------------------------------------------------------- cpu
FROM build AS cpu-build
ARG PIP_ARGS=""
ARG UV_VERSION=0.13.9
# torch goes first and by its exact pin: an open range would pull in another build.
RUN --mount=type=secret,id=pip_conf \
    --mount=type=secret,id=ca_bundle,mode=0444 \
    --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=wheels,target=/wheels \
    install-torch "$(sed -n 's/^torch==//p' /src/constraints.txt)" cpu ${PIP_ARGS}
ARG EXTRAS=service,otel
COPY pyproject.toml hatch_build.py README.md LICENSE /src/
COPY service /src/service
COPY client /src/client
RUN --mount=type=secret,id=pip_conf \
    --mount=type=secret,id=ca_bundle,mode=0444 \
    --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=wheels,target=/wheels \
    install-service "${EXTRAS}" && trim-torch

# ---------------------------------------------------------------- gpu
FROM build AS gpu-build
ARG PIP_ARGS=""
ARG UV_VERSION=0.13.9
# pypi: PyPI's build of torch, for CUDA 13; cu126, cu128, …: CUDA 12, for older drivers.
ARG TORCH=pypi
# What compiles our kernels at first use, of torch's own CUDA.
ARG CUDA_BINDINGS=cuda-bindings
RUN --mount=type=secret,id=pip_conf \
    --mount=type=secret,id=ca_bundle,mode=0444 \
    --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=wheels,target=/wheels \
    install-torch "$(sed -n 's/^torch==//p' /src/constraints.txt)" "${TORCH}" ${PIP_ARGS}
ARG EXTRAS=service,otel
COPY pyproject.toml hatch_build.py README.md LICENSE /src/
COPY service /src/service
COPY client /src/client
# torch has brought its CUDA packages; the constraint on cuda-bindings is for CUDA 13.
RUN --mount=type=secret,id=pip_conf \
    --mount=type=secret,id=ca_bundle,mode=0444 \
    --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=wheels,target=/wheels \
    case "${TORCH}" in cu12*) \
        sed -i '/^cuda-/d' /src/constraints.txt; CUDA_BINDINGS='cuda-bindings<13' ;; esac; \
    install-service "${EXTRAS}" "${CUDA_BINDINGS}"

# ---------------------------------------------------------------- gpu-public-kernels
# mamba-ssm and causal-conv1d, for GPUs below compute capability 8.0 and for comparison: an hour of
# compiling. nvcc is that of NVIDIA's packages, in the version of torch's CUDA.
FROM gpu-build AS public-kernels-build
ARG PIP_ARGS=""
ARG TORCH_CUDA_ARCH_LIST="7.5;8.0;9.0"
ARG MAMBA_SSM_VERSION=2.3.2.post1
ARG CAUSAL_CONV1D_VERSION=1.7.0
ARG MAX_JOBS=4
# hadolint ignore=DL3008
RUN --mount=type=secret,id=apt_sources,mode=0444 \
    --mount=type=secret,id=ca_bundle,mode=0444 \
    mirrored apt-get update \
    && mirrored apt-get install -y --no-install-recommends ccache git \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
# Their setup.py names nine architectures whatever TORCH_CUDA_ARCH_LIST says: nvcc-archs does not.
COPY --chmod=755 docker/nvcc-archs docker/public-kernels /usr/local/bin/
# A ready wheel in the context is taken as it is, else the source is compiled.
RUN --mount=type=secret,id=pip_conf \
    --mount=type=secret,id=ca_bundle,mode=0444 \
    --mount=type=cache,target=/root/.cache/pip \
    --mount=type=cache,target=/root/.cache/ccache \
    --mount=type=bind,from=wheels,target=/wheels \
    public-kernels "causal-conv1d==${CAUSAL_CONV1D_VERSION}" "mamba-ssm==${MAMBA_SSM_VERSION}" \
    && trim-torch

FROM gpu-build AS gpu-trimmed
RUN trim-torch

# ---------------------------------------------------------------- what every target runs on
FROM ${PYTHON_IMAGE} AS run
# hadolint ignore=DL3008
RUN --mount=type=secret,id=apt_sources,mode=0444 \
    --mount=type=secret,id=ca_bundle,mode=0444 \
    --mount=type=bind,source=docker/mirrored,target=/usr/local/bin/mirrored \
    mirrored apt-get update \
    && mirrored apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* \
    && useradd --uid 10001 --user-group --home-dir /cache --shell /usr/sbin/nologin vim \
    && install -d -o vim -g vim /cache
ENV PATH=/opt/vim-embed/bin:$PATH \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/cache/huggingface VIM_EMBED_CACHE_DIR=/cache/kernels \
    VIM_EMBED_HOST=0.0.0.0
USER 10001:10001
VOLUME /cache
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=12s --start-period=20m --start-interval=3s --retries=3 \
    CMD ["vim-embed", "health"]
ENTRYPOINT ["vim-embed-server"]
CMD ["serve"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="vim-embed" \
      org.opencontainers.image.description="Native Vision Mamba and ViT proxies behind a batched embedding service" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

FROM run AS cpu
ENV VIM_EMBED_DEVICE=cpu
COPY --from=cpu-build /opt/vim-embed /opt/vim-embed

# The NVIDIA container toolkit reads NVIDIA_*.
FROM run AS gpu-public-kernels
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility VIM_EMBED_DEVICE=all
COPY --from=public-kernels-build /opt/vim-embed /opt/vim-embed

FROM run AS gpu
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility VIM_EMBED_DEVICE=all
COPY --from=gpu-trimmed /opt/vim-embed /opt/vim-embed
