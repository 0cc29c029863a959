# CodecViT for NVIDIA GPUs: jax with the CUDA libraries of its wheels, torch, and what NCCL needs to speak InfiniBand.
#
#   bash scripts/docker.sh build
#
# The driver comes from the host (nvidia-container-toolkit), everything else is pinned by constraints.txt. Dockerfile.cpu is the same
# without a GPU.
FROM python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d AS build
ARG EXTRAS=""
ENV PIP_NO_CACHE_DIR=1
WORKDIR /opt/codecvit
COPY pyproject.toml constraints.txt setup.sh README.md LICENSE ./
COPY src src
# No GPU is here while the image is built.
RUN bash setup.sh DEVICE=cuda CHECK=no VENV=/opt/venv EXTRAS="$EXTRAS"

FROM python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d
# A version of these would be gone from the mirrors with Debian's next point release; the base image names the release.
# hadolint ignore=DL3008
RUN apt-get update \
  && apt-get install --yes --no-install-recommends ibverbs-providers libibverbs1 librdmacm1 \
  && rm -rf /var/lib/apt/lists/* \
  && useradd --uid 1000 --home-dir /opt/home --create-home codecvit \
  && chmod 1777 /opt/home
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/codecvit /opt/codecvit
COPY scripts /opt/codecvit/scripts
# HOME is for whatever user the container runs as (scripts/docker.sh takes the caller's).
ENV PATH=/opt/venv/bin:$PATH HOME=/opt/home NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /opt/codecvit
USER 1000
CMD ["codecvit", "--help"]
