# EarthGPT on NVIDIA GPUs. Build from the checkout:
#
#   docker build --file scripts/docker/gpu.Dockerfile --tag REGISTRY/earthgpt:gpu .
#   docker run --gpus all --volume /data:/data REGISTRY/earthgpt:gpu train --config tiny:align --workdir /data/run ...
#
# CUDA and cuDNN are Python packages that jax[cuda] installs; the host needs NVIDIA's driver and container toolkit.
FROM python:3.12-slim
COPY setup.py pyproject.toml README.md LICENSE MANIFEST.in /src/
COPY configs /src/configs
COPY data /src/data
COPY earthgpt_jax /src/earthgpt_jax
RUN pip install --no-cache-dir "/src[cuda,gcs,s3]" && rm -rf /src
ENTRYPOINT ["earthgpt"]
