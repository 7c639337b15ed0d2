# The application on a CPU, without a framework: the wheel with its onnx extra. Untested: no Docker daemon was at hand.
#   docker build -t aidet .
#   docker run --rm -p 127.0.0.1:7860:7860 -v $PWD/models:/models:ro aidet --ckpt /models/A.onnx
FROM python:3.11-slim AS build
WORKDIR /source
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE CHANGELOG.md train.py infer.py evaluate.py export.py app.py ./
COPY aidet aidet
COPY convert convert
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir "$(ls /wheels/aidet-*.whl)[onnx]" && useradd --create-home aidet
USER aidet
WORKDIR /home/aidet
EXPOSE 7860
ENTRYPOINT ["aidet", "app", "--host", "0.0.0.0"]
