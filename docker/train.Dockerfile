# Training image. CPU:  docker build -f docker/train.Dockerfile -t upnext-train .
#                GPU:  docker build -f docker/train.Dockerfile --build-arg EXTRA='[gpu]' -t upnext-train-gpu .
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

RUN useradd --create-home upnext
USER upnext
WORKDIR /home/upnext
ENTRYPOINT ["upnext"]
CMD ["--help"]
