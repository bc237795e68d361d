#!/bin/bash
# Builds the cpu image with one command and proves it: values, SIGTERM under load, faults, no network, monitoring.
#   docker/verify.sh                      WHEELS=DIR docker/verify.sh  (ready wheels, e.g. CPU torch)
#   docker/verify.sh serving offline      some of the parts (the image is always built)
# Needs docker with compose and a Python that has vim-embed with the extra service (PYTHON=.venv/bin/python).
# Exit code 77: there is no Docker engine here, nothing was tried.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
WORK=$(mktemp -d)
export COMPOSE_PROJECT_NAME=vim-embed-verify VIM_EMBED_PUBLISH_PORT=${PORT:-18000}
export PROMETHEUS_PORT=${PROMETHEUS_PORT:-19090}
export VIM_EMBED_MODELS=vim-tiny VIM_EMBED_RANDOM_WEIGHTS=true VIM_EMBED_BATCH_ROWS=8
export VIM_EMBED_URL=http://127.0.0.1:$VIM_EMBED_PUBLISH_PORT
export COMPOSE_FILE=compose.yaml:docker/compose.cpu.yaml:docker/verify/compose.yaml
LIMIT=1600000000 # bytes of the cpu image

if ! docker info > /dev/null 2>&1; then
    echo "skipped: no Docker engine answers, no image was built" >&2
    exit 77
fi
if [ -n "${WHEELS:-}" ]; then
    echo "services: {vim-embed: {build: {additional_contexts: {wheels: '$WHEELS'}}}}" \
        > "$WORK/wheels.yaml"
    COMPOSE_FILE=$COMPOSE_FILE:$WORK/wheels.yaml
fi
# A build secret, whose trace is looked for in the image.
mark=secret-$RANDOM$RANDOM$RANDOM
{ cat "${PIP_CONF:-/dev/null}"; echo "# $mark"; } > "$WORK/pip.conf"
export PIP_CONF=$WORK/pip.conf
stop() { docker compose --profile '*' down --volumes --timeout 5 > /dev/null 2>&1 || true; }
finish() {
    docker compose --profile '*' logs --no-color > "$WORK/logs" 2>&1 || true
    stop
    if [ "${passed:-no}" = yes ]; then rm -rf "$WORK"; else
        echo "FAILED; the containers' last words:"
        tail -20 "$WORK/logs"
    fi
}
trap finish EXIT
now() { date +%s; }
seconds() { echo "$(($(now) - $1)) s"; }
healthy() { # the service, with the environment in front of the call
    docker compose up "$@" --detach --wait --wait-timeout 600 vim-embed > "$WORK/up" 2>&1 ||
        { tail -40 "$WORK/up"; return 1; }
}
client() { "$PYTHON" docker/verify/client.py "$@"; }

# Everything is built in this run after: docker builder prune --all --force
begin=$(now)
healthy --build
size=$(docker image inspect vim-embed:cpu --format '{{.Size}}')
echo "one command, from building to healthy: $(seconds "$begin")"
stop
awk "BEGIN {printf \"the image: %.2f GB\\n\", $size / 1e9}"
[ "$size" -lt "$LIMIT" ]
container=$(docker create vim-embed:cpu)
traces=$({ docker history --no-trunc vim-embed:cpu; docker export "$container"; } |
    grep --text --count --fixed-strings "$mark" || true)
docker rm "$container" > /dev/null
echo "traces of a build secret in the image: $traces"
[ "$traces" = 0 ]

[ "$#" -gt 0 ] || set -- checks serving exposure failures offline monitoring sizes
for part; do
    echo "== $part"
    # shellcheck source=/dev/null
    (. "docker/verify/$part.sh")
    stop
done
passed=yes
echo "all is well"
