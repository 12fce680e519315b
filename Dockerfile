# Two stages: build with the locked dependencies, run as nobody in particular.
FROM rust:1.95-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /skein
COPY . .
RUN cargo build --release --locked --bin skein

FROM debian:trixie-slim
RUN useradd --uid 10001 --create-home --home-dir /data skein
COPY --from=build /skein/target/release/skein /usr/local/bin/skein
USER 10001
VOLUME /data
ENV SKEIN_HOME=/data
EXPOSE 4747/udp 4747/tcp
STOPSIGNAL SIGTERM
# Healthy: the peer's loop turns and it answers. Waiting for other peers is no illness, and no restart would end it.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["skein", "status", "--quiet", "--wait", "alive", "--timeout", "4s"]
ENTRYPOINT ["skein"]
# The invite comes from the environment: docker run -e SKEIN_INVITE=skein1… skein
CMD ["join"]
