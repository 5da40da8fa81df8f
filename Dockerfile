# orgstream in a container: `docker build -t orgstream .`, then `docker run --env-file .env orgstream orgstream check`.
#
# Plain Dockerfile syntax without BuildKit's cache mounts, because Heroku's builder has none.

ARG DEBIAN=bookworm

FROM rust:1.94-slim-${DEBIAN} AS build
# Heroku's build leaves SQLite out: CARGO_FLAGS="--no-default-features --features handlers".
ARG CARGO_FLAGS=""
WORKDIR /build
# Dependencies first, with an empty crate in place of ours: this layer is built anew only when they change. It needs
# the C compiler that the image has, for aws-lc and SQLite.
COPY Cargo.toml Cargo.lock build.rs ./
COPY proto proto
RUN mkdir src \
    && touch src/lib.rs \
    && echo 'fn main() {}' > src/main.rs \
    && cargo build --release --locked --bin orgstream ${CARGO_FLAGS} \
    && cargo clean --release --locked --package orgstream
# Only for what is ours: `docker build --build-arg COMMIT="$(git rev-parse HEAD)"`.
ARG COMMIT=""
ENV ORGSTREAM_COMMIT=${COMMIT}
COPY migrations migrations
COPY schemas schemas
COPY src src
RUN cargo build --release --locked --bin orgstream ${CARGO_FLAGS}

# A base with a shell: Heroku starts commands through one, and so do programs of the handler `exec`.
FROM debian:${DEBIAN}-slim
# CAs for handlers' receivers and databases. curl for the health check, and Heroku needs it to show the log of a release.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates curl \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /var/lib/orgstream --create-home orgstream
COPY --from=build /build/target/release/orgstream /usr/local/bin/orgstream
COPY schemas /usr/share/orgstream/schemas
# Where SQLite keeps its file and `orgstream.toml` is looked for: mount a volume here, or set DATABASE_URL.
WORKDIR /var/lib/orgstream
# The metrics address serves the health check too; on loopback, so that nothing outside the container sees it.
ENV ORGSTREAM_SCHEMAS_DIR=/usr/share/orgstream/schemas \
    ORGSTREAM_METRICS_ADDR=127.0.0.1:9090 \
    MALLOC_ARENA_MAX=2
USER 10001
# Says that the process lives, not that all is well: a restart mends no dead letter. What needs a person is on the
# status page. A container that runs `orgstream web` replaces it (docker-compose.yml).
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 \
    CMD ["curl", "--fail", "--silent", "--output", "/dev/null", "http://127.0.0.1:9090/healthz"]
# `run` finishes what is in flight, which takes up to 25 seconds: give it that long with `docker stop --time 30`.
STOPSIGNAL SIGTERM
# No ENTRYPOINT: Heroku puts a shell in front of commands, which would then be arguments of ours.
CMD ["orgstream", "run"]
