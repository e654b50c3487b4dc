# Two images:
#
#   license-gateway          production (the default): the program of that name
#   license-gateway-sandbox  for other teams' tests: license-gateway-demo, which is the gateway, the sandbox and the demo
#
# `docker buildx build --platform linux/amd64,linux/arm64 .` where an image registry can be reached, `make image` where
# none can. docs/releasing.md says how a release is built; `make test-image` builds, inspects and runs both.

# A release names it by digest: --build-arg RUST_IMAGE=…:1.95.0-slim-bookworm@sha256:… (docs/releasing.md). It is the only base:
# the images themselves begin empty.
ARG RUST_IMAGE=rust:1.95.0-slim-bookworm

# ---- what builds, on the machine's own architecture ----

FROM --platform=$BUILDPLATFORM ${RUST_IMAGE} AS rust
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]

# The list of crates inside the binary. An image that has the tool keeps it.
ARG CARGO_AUDITABLE_VERSION=0.7.7
RUN command -v cargo-auditable >/dev/null \
 || cargo install --locked --version "$CARGO_AUDITABLE_VERSION" cargo-auditable

# The other architecture is built by a cross compiler, not by an emulator.
ARG BUILDARCH
ARG TARGETARCH
# hadolint ignore=DL3008
RUN case "$TARGETARCH" in \
      amd64) triple=x86_64-unknown-linux-gnu package=gcc-x86-64-linux-gnu linker=X86_64_UNKNOWN_LINUX_GNU_LINKER=x86_64-linux-gnu-gcc ;; \
      arm64) triple=aarch64-unknown-linux-gnu package=gcc-aarch64-linux-gnu linker=AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc ;; \
      *) echo "not for $TARGETARCH" >&2; exit 1 ;; \
    esac; \
    echo "export CARGO_BUILD_TARGET=$triple" >/target.env; \
    if [ "$TARGETARCH" != "$BUILDARCH" ]; then \
      apt-get update; \
      apt-get install -y --no-install-recommends "$package" "libc6-dev-$TARGETARCH-cross"; \
      rm -rf /var/lib/apt/lists/*; \
      rustup target add "$triple"; \
      echo "export CARGO_TARGET_$linker" >>/target.env; \
    fi

# What the images hold besides the binary: the authorities that are trusted by default, and a home for ./state, which is
# no VOLUME: on a volume that nobody chose, the token would be lost with the container, in silence.
RUN install -D -m 0644 /etc/ssl/certs/ca-certificates.crt /rootfs/etc/ssl/certs/ca-certificates.crt; \
    install -d /rootfs/var/lib; \
    install -d -o 65532 -g 65532 /home-of-state

# ---- the crates: a layer of their own, which changes with Cargo.lock alone ----

FROM rust AS crates
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY sandbox/Cargo.toml sandbox/
COPY demo/Cargo.toml demo/
# Stand-ins for files that COPY brings: one that it does not bring would stay, and be built as a target of its own.
RUN mkdir src sandbox/src demo/src; touch src/lib.rs sandbox/src/lib.rs demo/src/main.rs; cargo fetch --locked

# ---- the binaries: compiled crates stay in a cache that both share ----

FROM crates AS build
COPY . .
# Times of files say nothing here: cargo would take an older source for one that it has compiled.
RUN --mount=type=cache,id=license-gateway-target,target=/target,sharing=locked \
    . /target.env; touch build.rs src/lib.rs src/main.rs; \
    built=$(AUDITABLE=1 CARGO_TARGET_DIR=/target scripts/build-release license-gateway); \
    install -D -m 0755 "$built" /rootfs/license-gateway

FROM crates AS build-sandbox
# CI takes `quick`.
ARG PROFILE=release
COPY . .
RUN --mount=type=cache,id=license-gateway-target,target=/target,sharing=locked \
    . /target.env; touch build.rs src/lib.rs sandbox/src/lib.rs demo/src/main.rs; \
    built=$(AUDITABLE=1 CARGO_TARGET_DIR=/target scripts/build-release license-gateway-demo); \
    install -D -m 0755 "$built" /rootfs/license-gateway-demo; \
    install -d -m 1777 /rootfs/tmp

# ---- the images ----

FROM scratch AS license-gateway-sandbox
COPY --from=build-sandbox /rootfs/ /
COPY --from=build-sandbox --chown=65532:65532 /home-of-state /var/lib/license-gateway
WORKDIR /var/lib/license-gateway
USER 65532:65532
# gRPC, admin, and the port that `sandbox` has unless it is told another.
EXPOSE 50051 9464 8085
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="license-gateway-sandbox" \
      org.opencontainers.image.description="license-gateway with a stand-in for Central: for tests, never for production" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s CMD ["/license-gateway-demo", "health"]
ENTRYPOINT ["/license-gateway-demo"]
CMD ["serve"]

FROM scratch AS license-gateway
COPY --from=build /rootfs/ /
COPY --from=build --chown=65532:65532 /home-of-state /var/lib/license-gateway
WORKDIR /var/lib/license-gateway
USER 65532:65532
# gRPC; metrics and probes over HTTP.
EXPOSE 50051 9464
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="license-gateway" \
      org.opencontainers.image.description="Takes licences away from the customers of an HPE Aruba Networking Central MSP account, over gRPC" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s CMD ["/license-gateway", "health"]
ENTRYPOINT ["/license-gateway"]
CMD ["serve"]
