# The server on CPUs:   docker build -t bst .   &&   docker run --rm --stop-timeout 40 -p 50051:50051 -p 9090:9090 bst
# on an NVIDIA GPU:     docker build --target cuda -t bst:cuda .   &&   docker run --rm --stop-timeout 40 --gpus 1 -p 50051:50051 bst:cuda
#
# A stage that builds, and one that holds only the programs, their libraries and the bundled model. It runs
# as an ordinary user and needs no writable file system.

FROM debian:bookworm-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends \
      g++ cmake ninja-build pkg-config libgrpc++-dev protobuf-compiler-grpc libprotobuf-dev protobuf-compiler \
      libabsl-dev libre2-dev libc-ares-dev zlib1g-dev libssl-dev prometheus-cpp-dev libcurl4-openssl-dev \
      libsentencepiece-dev libcli11-dev nlohmann-json3-dev \
    && rm -rf /var/lib/apt/lists/*
COPY . /src
RUN cmake -G Ninja -S /src -B /build -DCMAKE_BUILD_TYPE=Release -DBUILD_TESTING=OFF -DCMAKE_INSTALL_PREFIX=/usr/local \
    && cmake --build /build --target bst-server bst bst-init \
    && cmake --install /build --strip

FROM debian:bookworm-slim AS server
RUN apt-get update && apt-get install -y --no-install-recommends \
      libgrpc++1.51 libprotobuf32 libabsl20220623 libprometheus-cpp-pull1.0 libprometheus-cpp-core1.0 libsentencepiece0 libssl3 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --system --gid 10001 bst \
    && useradd --system --uid 10001 --gid bst --no-create-home --shell /usr/sbin/nologin bst
COPY models /models
USER 10001
EXPOSE 50051 9090
HEALTHCHECK --interval=10s --timeout=5s --start-period=600s CMD ["bst", "health", "--server=127.0.0.1:50051"]
ENTRYPOINT ["bst-server", "--listen=0.0.0.0:50051", "--metrics_listen=0.0.0.0:9090"]
CMD ["--model=/models/bst-books-4m"]

# CUDA 13.0's compiler from PyPI: 105 MB of a toolkit of several gigabytes. What a distribution's package
# would add are the names under which CMake looks for the libraries.
FROM build AS build-cuda
RUN apt-get update && apt-get install -y --no-install-recommends python3-pip \
    && rm -rf /var/lib/apt/lists/* \
    && pip install --no-cache-dir --no-deps --target /opt/cuda \
         nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96 \
         nvidia-cuda-cccl==13.0.85 \
    && ln -s /opt/cuda/nvidia/cu13 /usr/local/cuda \
    && ln -s lib /usr/local/cuda/lib64 && ln -s libcudart.so.13 /usr/local/cuda/lib/libcudart.so
RUN cmake -S /src -B /build -DBST_CUDA=ON -DCMAKE_CUDA_COMPILER=/usr/local/cuda/bin/nvcc \
    && cmake --build /build --target bst-server bst bst-init bst_cuda \
    && cmake --install /build --strip

# The CUDA runtime is linked into the plugin; the driver's library comes from the host (NVIDIA Container
# Toolkit), version 580 or newer. cuBLAS and cuFFT, most of a gigabyte, are left out: the plugin is built
# without their headers here, and its own kernels do what they would.
FROM server AS cuda
COPY --from=build-cuda /usr/local/bin/ /usr/local/bin/
COPY --from=build-cuda /usr/local/lib/bst/ /usr/local/lib/bst/
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

# The last one: what is built where no target is named.
FROM server AS cpu
COPY --from=build /usr/local/bin/ /usr/local/bin/
# Opened at run time, from ../lib/bst of the programs.
COPY --from=build /usr/local/lib/bst/ /usr/local/lib/bst/
