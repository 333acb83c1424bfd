# The CPU server.   docker build -t bst .   &&   docker run --rm -p 50051:50051 -p 9090:9090 bst
#
# Two stages: the first builds, the second holds only the programs, their libraries and the bundled
# model. It runs as an ordinary user and needs no writable file system.

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

FROM debian:bookworm-slim AS cpu
RUN apt-get update && apt-get install -y --no-install-recommends \
      libgrpc++1.51 libprotobuf32 libabsl20220623 libprometheus-cpp-pull1.0 libprometheus-cpp-core1.0 libsentencepiece0 libssl3 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --system --gid 10001 bst \
    && useradd --system --uid 10001 --gid bst --no-create-home --shell /usr/sbin/nologin bst
COPY --from=build /usr/local/bin/ /usr/local/bin/
# Opened at run time, from ../lib/bst of the programs.
COPY --from=build /usr/local/lib/bst/ /usr/local/lib/bst/
COPY models /models
USER 10001
EXPOSE 50051 9090
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["bst", "health", "--server=127.0.0.1:50051"]
ENTRYPOINT ["bst-server", "--listen=0.0.0.0:50051", "--metrics_listen=0.0.0.0:9090"]
CMD ["--model=/models/bst-books-4m"]
