# Training image. CPU:  docker build -f docker/train.Dockerfile -t upnext-train .
#                GPU:  docker build -f docker/train.Dockerfile --build-arg EXTRA='[gpu]' -t upnext-train-gpu .
# Run:                 docker run --rm -v upnext-runs:/home/upnext/runs upnext-train run demo --workdir runs/demo
# GPU:                 docker run --rm --gpus all -v upnext-runs:/home/upnext/runs upnext-train-gpu run demo
FROM python:3.12-slim

ARG EXTRA=""
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1

# LightGBM and ScaNN need the OpenMP runtime.
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/upnext
COPY setup.py pyproject.toml ./
COPY features features
COPY models models
COPY serving serving
COPY pipeline pipeline
COPY benchmarks benchmarks
RUN pip install "/opt/upnext${EXTRA}"

# A new volume mounted at runs takes this folder's owner.
RUN useradd --create-home upnext && install --directory --owner=upnext /home/upnext/runs
USER upnext
WORKDIR /home/upnext
ENTRYPOINT ["upnext"]
CMD ["--help"]
