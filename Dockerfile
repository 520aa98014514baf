# The server in a container, with the embedded model until another is named:
#   docker build -t idefics . && docker run --rm -p 8080:8080 idefics
#   docker run --rm -p 8080:8080 -v models:/models idefics HuggingFaceM4/idefics2-8b --dtype bfloat16
# For NVIDIA GPUs: docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 -t idefics:cuda .
FROM python:3.11-slim AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
# Of equal versions pip takes the one with a local part (+cpu, +cu130), which is the chosen index's.
RUN python -m venv /opt/idefics \
    && /opt/idefics/bin/pip install --no-cache-dir --extra-index-url "${TORCH_INDEX}" -c constraints.txt ".[server]"

FROM python:3.11-slim
RUN useradd --uid 10001 --no-create-home idefics && install --directory --owner=idefics /models
COPY --from=build /opt/idefics /opt/idefics
ENV PATH=/opt/idefics/bin:$PATH HF_HOME=/models PYTHONUNBUFFERED=1
USER 10001
VOLUME /models
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=5s --start-period=20m --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8080/health', timeout=4)"]
ENTRYPOINT ["idefics", "serve", "--host", "0.0.0.0", "--port", "8080"]
