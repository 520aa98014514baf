# The server in a container, with the embedded model until another is named:
#   docker build -t idefics . && docker run --rm -p 8080:8080 --stop-timeout 75 idefics
#   docker run --rm -p 8080:8080 -v models:/models --stop-timeout 75 idefics HuggingFaceM4/idefics2-8b --dtype bfloat16
# For NVIDIA GPUs, to be run with --gpus all:
#   docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 --build-arg EXTRA="gcc libc6-dev" -t idefics:cuda .
FROM python:3.11-slim AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
# What the package needs comes first and without it, so that a change of the source installs the source alone.
# Of equal versions pip takes the one with a local part (+cpu, +cu130), which is the chosen index's.
RUN python -m venv /opt/idefics && mkdir -p src/idefics && touch src/idefics/__init__.py \
    && /opt/idefics/bin/pip install --no-cache-dir --extra-index-url "${TORCH_INDEX}" -c constraints.txt ".[server]" \
    && rm -r build src
COPY src src
RUN /opt/idefics/bin/pip install --no-cache-dir --no-deps --force-reinstall .

FROM python:3.11-slim
# Triton compiles its launchers with a C compiler: EXTRA="gcc libc6-dev".
ARG EXTRA=
RUN if [ -n "${EXTRA}" ]; then \
        apt-get update && apt-get install --yes --no-install-recommends ${EXTRA} && rm -rf /var/lib/apt/lists/*; \
    fi
RUN useradd --uid 10001 --no-create-home idefics && install --directory --owner=idefics /models
COPY --from=build /opt/idefics /opt/idefics
ENV PATH=/opt/idefics/bin:$PATH HF_HOME=/models TRITON_CACHE_DIR=/models/triton PYTHONUNBUFFERED=1
USER 10001
VOLUME /models
EXPOSE 8080
# Not through a proxy from the environment. Another --port or --tls-cert needs a --health-cmd of its own.
HEALTHCHECK --interval=30s --timeout=5s --start-period=20m --retries=3 \
    CMD ["python", "-c", "from http.client import HTTPConnection as C; c = C('127.0.0.1', 8080, timeout=4); c.request('GET', '/health'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["idefics", "serve", "--host", "0.0.0.0", "--port", "8080"]
