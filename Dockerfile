# One image for every part of a fleet: the server, and the admin's commands.
#
#   docker build -t rwkv-statestore .
#   docker run --rm -p 127.0.0.1:8000:8000 rwkv-statestore            # the demo model
#   docker run --rm -v ./weights:/weights rwkv-statestore serve --host 0.0.0.0 /weights/model.pth
#   docker run --rm --entrypoint statestore rwkv-statestore --help
#
# TORCH_INDEX is where PyTorch comes from: by default its small CPU build. Empty: pip's own default.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# What is installed; add rwkv for models of versions 4 to 6.
ARG EXTRAS=runtime,server,postgres,s3,encryption
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY constraints.txt ./
RUN python -m venv /opt/statestore
# PyTorch first and alone: the largest layer, and the one that seldom changes. What it needs comes
# from pip's default with the rest.
RUN /opt/statestore/bin/pip install -q -c constraints.txt --no-deps ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
COPY pyproject.toml README.md LICENSE ./
COPY migrations ./migrations
COPY statestore ./statestore
COPY rwkv_runtime ./rwkv_runtime
RUN /opt/statestore/bin/pip install -q -c constraints.txt ".[${EXTRAS}]" \
 && /opt/statestore/bin/pip uninstall -q -y pip \
 # Tests and headers that nobody runs in here.
 && rm -rf /opt/statestore/lib/python3*/site-packages/torch/include \
           /opt/statestore/lib/python3*/site-packages/torch/test \
           /opt/statestore/lib/python3*/site-packages/torch/bin/test*

FROM ${PYTHON_IMAGE}
# Of Debian, for `--kernel native` and the codec's kernel: PACKAGES="gcc libc6-dev". They are compiled for the processor they run on.
ARG PACKAGES=
RUN if [ -n "$PACKAGES" ]; then apt-get update -qq \
     && apt-get install -y -qq --no-install-recommends $PACKAGES && rm -rf /var/lib/apt/lists/*; fi
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/statestore statestore \
 && install -d -o statestore -g statestore /states /weights
COPY --from=build /opt/statestore /opt/statestore
ENV PATH=/opt/statestore/bin:$PATH PYTHONUNBUFFERED=1 RWKV_STATESTORE_URL=file:///states
USER statestore
WORKDIR /var/lib/statestore
VOLUME ["/states", "/weights"]
EXPOSE 8000
# It is healthy as soon as it answers; large weights may take minutes until then.
HEALTHCHECK --interval=5s --timeout=3s --start-period=300s --retries=5 \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
ENTRYPOINT ["rwkv-runtime"]
CMD ["serve", "--host", "0.0.0.0"]
