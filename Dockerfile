# syntax=docker/dockerfile:1

# docker build --tag lightning-bbox .
# docker run --rm --gpus all -v "$PWD:/runs" --user "$(id -u):$(id -g)" lightning-bbox fit --help

# torch 2.11, CUDA 13.0, Python 3.12: the CUDA pairing that is supported and tested.
FROM pytorch/pytorch:2.11.0-cuda13.0-cudnn9-runtime

# The cut and torch.compile call g++ for CPU code, and Triton builds its launchers against Python.h; the base's
# Python has no ensurepip, which venv needs.
# Versions are not pinned (DL3008): the release's archive keeps only the newest of each, so a pin
# would break the build at the next security update; the base's tag fixes the release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# A venv on top of the base's packages: its torch is seen and stays, and pip never has to remove
# what the distribution installed.
RUN python3 -m venv --system-site-packages /opt/venv
ENV PATH=/opt/venv/bin:$PATH

# Dependencies before source, so that an edit of the source reuses this layer. The base's own torch,
# with its +cu130, takes the place of the one in constraints.txt, and so does the triton it wants.
WORKDIR /opt/lightning_bbox
COPY pyproject.toml constraints.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python -c "from importlib.metadata import version; print('torch==' + version('torch'))" \
        > /tmp/constraints.txt \
    && sed '/^torch==/d; /^triton==/d' constraints.txt >> /tmp/constraints.txt \
    && python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*project['dependencies'], sep='\n')" \
        > /tmp/requirements.txt \
    && pip install --requirement /tmp/requirements.txt --constraint /tmp/constraints.txt

COPY README.md LICENSE ./
COPY lightning_bbox ./lightning_bbox
COPY configs ./configs
RUN --mount=type=cache,target=/root/.cache/pip pip install --no-deps .

# Open to every user: with --user, what a run writes into a mounted /runs belongs to who started it.
# LOGNAME stands in for the passwd entry that such a user lacks.
ENV HOME=/home/lightning-bbox \
    LOGNAME=lightning-bbox \
    TORCHINDUCTOR_CACHE_DIR=/home/lightning-bbox/.cache/torchinductor
RUN install --directory --mode=1777 \
    "$HOME" "$HOME/.cache" "$TORCHINDUCTOR_CACHE_DIR" /runs

WORKDIR /runs
USER 1000:1000
ENTRYPOINT ["lightning-bbox"]
CMD ["--help"]
