# EarthGPT on TPUs: the image that scripts/launch/gke_xpk.sh takes. Build from the checkout:
#
#   docker build --file scripts/docker/tpu.Dockerfile --tag REGISTRY/earthgpt:1 .
#   docker push REGISTRY/earthgpt:1
#
# XPK replaces the entry point by a shell that runs `earthgpt train ...`.
FROM python:3.12-slim
COPY setup.py pyproject.toml README.md LICENSE MANIFEST.in /src/
COPY configs /src/configs
COPY data /src/data
COPY earthgpt_jax /src/earthgpt_jax
RUN pip install --no-cache-dir "/src[tpu,gcs]" && rm -rf /src
ENTRYPOINT ["earthgpt"]
