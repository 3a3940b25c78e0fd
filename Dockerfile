# likelier in an image, for a CPU unless asked otherwise:
#
#   docker build -t likelier .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" likelier check examples/pairs.jsonl
#
# For an NVIDIA GPU take PyPI's torch, which brings CUDA, and run with --gpus all:
#
#   docker build -t likelier --build-arg TORCH_INDEX=https://pypi.org/simple .
#
# Another base has Python 3.11 or newer as `python`, pip for it, and apt.
ARG BASE=python:3.11-slim
FROM ${BASE}
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=quantise,tensorboard

# On a GPU, kernels are compiled when they are first used.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY examples/walkthrough.ipynb examples/
COPY src src
RUN python -m pip install --no-cache-dir --extra-index-url ${TORCH_INDEX} -c constraints.txt ".[${EXTRAS}]"

# Nobody's own user, and a home that any user of `docker run --user` may write: what is mounted.
RUN useradd --no-create-home --uid 1000 likelier
ENV HOME=/work
WORKDIR /work
USER likelier
ENTRYPOINT ["likelier"]
CMD ["--help"]
