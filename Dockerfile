# Targets: gpu (default) and cpu. Both run as a user without rights on a read-only root.
#   docker build .                      docker build --target cpu .
# Behind a mirror the secrets pip_conf, apt_sources and ca_bundle are used while building and leave
# nothing behind (docker/mirrored); --build-context wheels=DIR offers ready wheels.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
ARG CUDA_IMAGE=nvidia/cuda:13.0.1-devel-ubuntu24.04
ARG CUDA_RUN_IMAGE=nvidia/cuda:13.0.1-base-ubuntu24.04

# Ready wheels, none by default: replaced by --build-context wheels=DIR.
FROM scratch AS wheels

# ---------------------------------------------------------------- cpu
FROM ${PYTHON_IMAGE} AS cpu-build
ARG PIP_ARGS=""
ARG EXTRAS=service,otel
ARG UV_VERSION=0.13.9
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN --mount=type=secret,id=apt_sources,mode=0444 \
    --mount=type=secret,id=ca_bundle,mode=0444 \
    --mount=type=bind,source=docker/mirrored,target=/usr/local/bin/mirrored \
    mirrored apt-get update \
    && mirrored apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* \
    && python3 -m venv /opt/vim-embed
COPY constraints.txt /src/
# torch goes first and by its exact pin: an open range would pull in another build.
RUN --mount=type=secret,id=pip_conf \
    --mount=type=secret,id=ca_bundle,mode=0444 \
    --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,source=docker/mirrored,target=/usr/local/bin/mirrored \
    --mount=type=bind,source=docker/cpu-torch,target=/usr/local/bin/cpu-torch \
    --mount=type=bind,from=wheels,target=/wheels \
    cpu-torch "$(sed -n 's/^torch==//p' /src/constraints.txt)" ${PIP_ARGS}
COPY pyproject.toml README.md LICENSE /src/
COPY service /src/service
COPY client /src/client
RUN --mount=type=secret,id=pip_conf \
    --mount=type=secret,id=ca_bundle,mode=0444 \
    --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,source=docker/mirrored,target=/usr/local/bin/mirrored \
    --mount=type=bind,from=wheels,target=/wheels \
    mirrored /opt/vim-embed/bin/pip install ${PIP_ARGS} --find-links=/wheels \
        -c /src/constraints.txt "/src[${EXTRAS}]" \
    && /opt/vim-embed/bin/python -c "from vim_embed.kernels.cpu.ops import prebuild; prebuild()" \
    && /opt/vim-embed/bin/pip uninstall -y pip \
    && find /opt/vim-embed -name __pycache__ -prune -exec rm -rf {} + \
    && rm -rf /opt/vim-embed/lib/python*/site-packages/torch/include \
              /opt/vim-embed/lib/python*/site-packages/torch/bin/protoc*

FROM ${PYTHON_IMAGE} AS cpu
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="vim-embed" \
      org.opencontainers.image.description="Native Vision Mamba and ViT proxies behind a batched embedding service (CPU)" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# hadolint ignore=DL3008
RUN --mount=type=secret,id=apt_sources,mode=0444 \
    --mount=type=secret,id=ca_bundle,mode=0444 \
    --mount=type=bind,source=docker/mirrored,target=/usr/local/bin/mirrored \
    mirrored apt-get update \
    && mirrored apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* \
    && useradd --uid 10001 --user-group --home-dir /cache --shell /usr/sbin/nologin vim \
    && install -d -o vim -g vim /cache
COPY --from=cpu-build /opt/vim-embed /opt/vim-embed
ENV PATH=/opt/vim-embed/bin:$PATH \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/cache/huggingface VIM_EMBED_CACHE_DIR=/cache/kernels \
    VIM_EMBED_HOST=0.0.0.0 VIM_EMBED_DEVICE=cpu
USER 10001:10001
VOLUME /cache
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=12s --start-period=20m --start-interval=3s --retries=3 \
    CMD ["vim-embed", "health"]
ENTRYPOINT ["vim-embed-server"]
CMD ["serve"]

# ---------------------------------------------------------------- gpu
FROM ${CUDA_IMAGE} AS gpu-build
ARG PIP_ARGS=""
ARG EXTRAS=service,otel
# Compute capabilities the public kernels are compiled for (code for 8.0 runs on 8.6 and 8.9). Our
# own kernels compile at first use.
ARG TORCH_CUDA_ARCH_LIST="7.5;8.0;9.0"
ARG MAMBA_SSM_VERSION=2.3.2.post1
ARG CAUSAL_CONV1D_VERSION=1.7.0
ARG CUDA_BINDINGS_VERSION=13.5.0
# The public kernels are only needed below compute capability 9.0, or for comparison: 0 leaves
# them out, which saves most of the build.
ARG PUBLIC_KERNELS=1
ARG MAX_JOBS=4
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 DEBIAN_FRONTEND=noninteractive
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN --mount=type=secret,id=apt_sources,mode=0444 \
    --mount=type=secret,id=ca_bundle,mode=0444 \
    --mount=type=bind,source=docker/mirrored,target=/usr/local/bin/mirrored \
    mirrored apt-get update \
    && mirrored apt-get install -y --no-install-recommends python3-dev python3-venv g++ git ccache \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* \
    && python3 -m venv /opt/vim-embed
COPY constraints.txt /src/
RUN --mount=type=secret,id=pip_conf \
    --mount=type=secret,id=ca_bundle,mode=0444 \
    --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,source=docker/mirrored,target=/usr/local/bin/mirrored \
    --mount=type=bind,from=wheels,target=/wheels \
    torch="$(grep '^torch==' /src/constraints.txt)" \
    && mirrored /opt/vim-embed/bin/pip install ${PIP_ARGS} --find-links=/wheels "$torch" \
        setuptools wheel packaging ninja
# Their setup.py names nine architectures whatever TORCH_CUDA_ARCH_LIST says: nvcc-archs does not.
COPY --chmod=755 docker/nvcc-archs /usr/local/bin/
# A ready wheel in the context is taken as it is, else the source is compiled.
RUN --mount=type=secret,id=pip_conf \
    --mount=type=secret,id=ca_bundle,mode=0444 \
    --mount=type=cache,target=/root/.cache/pip \
    --mount=type=cache,target=/root/.cache/ccache \
    --mount=type=bind,source=docker/mirrored,target=/usr/local/bin/mirrored \
    --mount=type=bind,from=wheels,target=/wheels \
    if [ "${PUBLIC_KERNELS}" = 0 ]; then exit 0; fi; \
    export PATH=/usr/lib/ccache:/opt/vim-embed/bin:$PATH \
              PYTORCH_NVCC=nvcc-archs NVCC_ARCHS="${TORCH_CUDA_ARCH_LIST}" \
              CAUSAL_CONV1D_FORCE_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE \
    && mirrored /opt/vim-embed/bin/pip install ${PIP_ARGS} --find-links=/wheels --no-deps \
        --no-build-isolation \
        "causal-conv1d==${CAUSAL_CONV1D_VERSION}" "mamba-ssm==${MAMBA_SSM_VERSION}"
COPY pyproject.toml README.md LICENSE /src/
COPY service /src/service
COPY client /src/client
RUN --mount=type=secret,id=pip_conf \
    --mount=type=secret,id=ca_bundle,mode=0444 \
    --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,source=docker/mirrored,target=/usr/local/bin/mirrored \
    --mount=type=bind,from=wheels,target=/wheels \
    mirrored /opt/vim-embed/bin/pip install ${PIP_ARGS} --find-links=/wheels \
        -c /src/constraints.txt "/src[${EXTRAS}]" "cuda-bindings==${CUDA_BINDINGS_VERSION}" \
    && /opt/vim-embed/bin/python -c "from vim_embed.kernels.cpu.ops import prebuild; prebuild()" \
    && /opt/vim-embed/bin/pip uninstall -y pip setuptools wheel \
    && find /opt/vim-embed -name __pycache__ -prune -exec rm -rf {} + \
    && rm -rf /opt/vim-embed/lib/python*/site-packages/torch/include

FROM ${CUDA_RUN_IMAGE} AS gpu
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="vim-embed" \
      org.opencontainers.image.description="Native Vision Mamba and ViT proxies behind a batched embedding service (CUDA)" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# hadolint ignore=DL3008
RUN --mount=type=secret,id=apt_sources,mode=0444 \
    --mount=type=secret,id=ca_bundle,mode=0444 \
    --mount=type=bind,source=docker/mirrored,target=/usr/local/bin/mirrored \
    mirrored apt-get update \
    && mirrored apt-get install -y --no-install-recommends python3 libgomp1 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* \
    && useradd --uid 10001 --user-group --home-dir /cache --shell /usr/sbin/nologin vim \
    && install -d -o vim -g vim /cache
COPY --from=gpu-build /opt/vim-embed /opt/vim-embed
ENV PATH=/opt/vim-embed/bin:$PATH \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/cache/huggingface VIM_EMBED_CACHE_DIR=/cache/kernels \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    VIM_EMBED_HOST=0.0.0.0 VIM_EMBED_DEVICE=cuda
USER 10001:10001
VOLUME /cache
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=12s --start-period=20m --start-interval=3s --retries=3 \
    CMD ["vim-embed", "health"]
ENTRYPOINT ["vim-embed-server"]
CMD ["serve"]
