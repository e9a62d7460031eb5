# syntax=docker/dockerfile:1
# docker build -t bids_sodium .    (or tools/image.sh build, which needs no Docker daemon)
ARG BASE_IMAGE=debian:trixie-slim

FROM ${BASE_IMAGE} AS python
ENV DEBIAN_FRONTEND=noninteractive
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 libgomp1 \
 && apt-get clean && rm -rf /var/lib/apt/lists/* /var/cache/apt/*

FROM python AS build
ARG UV_VERSION=0.13.8
ARG HATCHLING_VERSION=1.33.0
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3-venv ca-certificates \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m venv /opt/tools \
 && /opt/tools/bin/pip install --no-cache-dir "uv==${UV_VERSION}" "hatchling==${HATCHLING_VERSION}"
ENV UV_SYSTEM_CERTS=true UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON=/opt/bids_sodium/bin/python \
    UV_PYTHON_DOWNLOADS=never
RUN /opt/tools/bin/uv venv --python /usr/bin/python3 /opt/bids_sodium
WORKDIR /src
# Locked dependencies are a layer of their own, so that a change of the source does not install them again.
COPY pyproject.toml requirements/lock.txt ./
RUN --mount=type=cache,target=/root/.cache/uv \
    /opt/tools/bin/uv pip compile pyproject.toml -c lock.txt --extra dask --extra slurm -q -o needed.txt \
 && /opt/tools/bin/uv pip install -r needed.txt \
 && find /opt/bids_sodium -depth -type d -name tests -exec rm -rf {} +
COPY LICENSE README.md ./
COPY bids_sodium ./bids_sodium
RUN /opt/tools/bin/hatchling build -t wheel -d dist \
 && /opt/tools/bin/uv pip install --no-deps dist/*.whl \
 && /opt/bids_sodium/bin/python -I -c "import bids, dipy.align, finufft, ismrmrd, nilearn.image, numpy.testing, scipy.stats, SimpleITK, statsmodels.api, distributed, submitit, bids_sodium.app"

FROM python AS runtime
ARG IMAGE=bids_sodium
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="bids_sodium" \
      org.opencontainers.image.description="BIDS App for sodium (23Na) MRI" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/bids_sodium /opt/bids_sodium
ENV PATH=/opt/bids_sodium/bin:$PATH \
    MPLBACKEND=Agg \
    PYTHONNOUSERSITE=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 \
    BIDS_SODIUM_CONTAINER_TYPE=docker BIDS_SODIUM_CONTAINER_TAG="${IMAGE}:${VERSION}"
RUN useradd --uid 1000 --gid 0 --no-create-home --home-dir /nonexistent bids
WORKDIR /tmp
USER 1000:0
ENTRYPOINT ["/opt/bids_sodium/bin/python", "-I", "-B", "-u", "-m", "bids_sodium"]
