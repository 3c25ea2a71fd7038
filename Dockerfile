# evalkit's image: exactly one lock's packages, evalkit, and a C compiler for Triton. `make image`
# builds it from the commit that is checked out; image/make.py says with which arguments.

# The base, by digest; it stands here and nowhere else. CUDA's user space comes with the wheels.
ARG BASE_IMAGE=nvidia/cuda:13.0.3-base-ubuntu24.04@sha256:7c7413a56200486f71f181cad9310f6fd31b6bb21816ade15fc9c1e1e927a5c1

FROM ${BASE_IMAGE} AS base
# A day of Ubuntu's package archive, so that a later build installs the same packages; empty for a
# base whose archive keeps no days.
ARG SNAPSHOT=20260601T000000Z
RUN rm -f /etc/apt/sources.list.d/*cuda* \
    && export DEBIAN_FRONTEND=noninteractive \
    && apt-get update -qq ${SNAPSHOT:+--snapshot "$SNAPSHOT"} \
    && apt-get install -qq -y --no-install-recommends ${SNAPSHOT:+--snapshot "$SNAPSHOT"} \
        ca-certificates gcc libc6-dev python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/cache/ldconfig/* \
        /var/lib/dpkg/*-old /var/log/* \
    && find / -xdev -name __pycache__ -prune -exec rm -rf {} + \
    && mkdir -m 1777 /var/cache/evalkit
# Python takes nothing of whoever starts it, and reads bytecode only from where the build put it.
ENV PATH=/opt/evalkit/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    EVALKIT_PREFIX=/opt/evalkit \
    PYTHONNOUSERSITE=1 PYTHONHASHSEED=0 PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1 \
    PYTHONPYCACHEPREFIX=/opt/evalkit/bytecode \
    HOME=/var/cache/evalkit TMPDIR=/var/cache/evalkit XDG_CACHE_HOME=/var/cache/evalkit \
    HF_HOME=/var/cache/evalkit/huggingface HF_HUB_DISABLE_TELEMETRY=1 \
    USER=evalkit LANG=C.UTF-8 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Not /: there Python 3.11 with a bytecode tree can't import torch 2.10's made-up modules.
WORKDIR /var/cache/evalkit

FROM base AS build
ARG LOCK=cuda13
ARG SOURCE_DATE_EPOCH=0
# Never in the image: pip, what it fetched, and the sources.
RUN python3 -m venv /tools
COPY requirements /source/requirements
COPY image/install.py /source/image/
RUN --mount=type=cache,target=/root/.cache/pip \
    /tools/bin/python /source/image/install.py packages "$LOCK"
COPY pyproject.toml README.md LICENSE /source/
COPY evalkit /source/evalkit
COPY schemas /source/schemas
COPY suites /source/suites
RUN /tools/bin/python /source/image/install.py evalkit "$LOCK"
COPY image /opt/evalkit/image
RUN /opt/evalkit/bin/python /opt/evalkit/image/bytecode.py \
    && /opt/evalkit/bin/python /opt/evalkit/image/sbom.py > /opt/evalkit/sbom.cdx.json \
    && /tools/bin/python /source/image/install.py settle

FROM base
COPY --from=build /opt/evalkit /opt/evalkit
USER 10001:10001
# The commit is known to whoever builds, not in here.
ARG COMMIT=
ENV EVALKIT_COMMIT=${COMMIT}
RUN --mount=type=tmpfs,target=/var/cache/evalkit \
    python3 /opt/evalkit/image/selftest.py && find /var/cache/evalkit -mindepth 1 -delete
ARG LOCK=cuda13
ARG VERSION= CREATED= LOCK_DIGEST= BASE_NAME= BASE_DIGEST=
LABEL org.opencontainers.image.title="evalkit" \
      org.opencontainers.image.description="Reproducible evaluation of language models" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.base.name="${BASE_NAME}" \
      org.opencontainers.image.base.digest="${BASE_DIGEST}" \
      evalkit.lock="${LOCK}" \
      evalkit.lock.digest="${LOCK_DIGEST}"
ENTRYPOINT ["evalkit"]
