#!/bin/bash
# Builds the cpu image and proves it: healthy, right values, SIGTERM under load, clear failures.
#   docker/verify.sh                      WHEELS=DIR docker/verify.sh  (ready wheels, e.g. CPU torch)
# Needs docker with compose and a Python that has vim-embed[service] (PYTHON=.venv/bin/python).
# Exit code 77: there is no Docker engine here, nothing was tried.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
WORK=$(mktemp -d)
export COMPOSE_PROJECT_NAME=vim-embed-verify VIM_EMBED_PUBLISH_PORT=${PORT:-18000}
export VIM_EMBED_MODELS=vim-tiny VIM_EMBED_RANDOM_WEIGHTS=true VIM_EMBED_BATCH_ROWS=8
export VIM_EMBED_URL=http://127.0.0.1:$VIM_EMBED_PUBLISH_PORT
export COMPOSE_FILE=compose.yaml:docker/compose.cpu.yaml:$WORK/build.yaml

if ! docker info > /dev/null 2>&1; then
    echo "skipped: no Docker engine answers" >&2
    exit 77
fi
# Host networking while building reaches the package index where containers have no NAT.
echo "services: {vim-embed: {build: {network: host}}}" > "$WORK/build.yaml"
if [ -n "${WHEELS:-}" ]; then
    echo "services: {vim-embed: {build: {network: host, additional_contexts: {wheels: '$WHEELS'}}}}" \
        > "$WORK/build.yaml"
fi
finish() {
    docker compose logs --no-color > "$WORK/logs" 2>&1 || true
    docker compose down --volumes --timeout 5 > /dev/null 2>&1 || true
    if [ "${passed:-no}" = yes ]; then rm -rf "$WORK"; else
        echo "FAILED; the container's last words:"; tail -20 "$WORK/logs"
    fi
}
trap finish EXIT
seconds() { echo "$(($(date +%s) - $1)) s"; }

begin=$(date +%s)
docker compose build --quiet vim-embed
echo "built in $(seconds "$begin"), $(docker image inspect vim-embed:cpu --format '{{.Size}}' |
    awk '{printf "%.2f GB", $1 / 1e9}')"

begin=$(date +%s)
docker compose up --detach --wait --wait-timeout 180 vim-embed 2> "$WORK/up"
echo "healthy in $(seconds "$begin")"
container=$(docker compose ps --quiet vim-embed)

"$PYTHON" docker/verify.py values
echo "values equal those in process"

[ "$(docker compose exec -T vim-embed id -u)" = 10001 ]
! docker compose exec -T vim-embed touch /opt/vim-embed/x 2> /dev/null
! docker compose exec -T vim-embed sh -c 'command -v g++ || command -v gcc' > /dev/null
echo "runs as a plain user, on a read-only root, without a compiler"

"$PYTHON" docker/verify.py load "$WORK/load" &
load=$!
sleep 4
begin=$(date +%s)
docker compose kill --signal SIGTERM vim-embed 2> /dev/null
code=$(docker wait "$container")
wait "$load"
echo "SIGTERM under load: exit code $code after $(seconds "$begin"); $(cat "$WORK/load")"
[ "$code" = 0 ]
docker compose down --volumes 2> /dev/null

# Failures say why: an error on standard error, and an exit code that is not 0.
expect() { # words, then docker run's arguments
    words=$1
    shift
    if docker run --rm --read-only --tmpfs /tmp -e VIM_EMBED_PUBLISHED_HOST=127.0.0.1 "$@" > "$WORK/out" 2>&1; then
        echo "expected a failure: $words"
        return 1
    fi
    grep -qi -- "$words" "$WORK/out" || { cat "$WORK/out"; return 1; }
    ! grep -q Traceback "$WORK/out" || { cat "$WORK/out"; return 1; }
    echo "fails with: $(grep -im1 -- "$words" "$WORK/out" | cut -c1-150)"
}
expect "CUDA devices" -e VIM_EMBED_DEVICE=cuda -e VIM_EMBED_RANDOM_WEIGHTS=true vim-embed:cpu
expect "no-such-file" -e VIM_EMBED_MODELS=vim-tiny=/checkpoints/no-such-file.pth vim-embed:cpu
expect "API key" -e VIM_EMBED_PUBLISHED_HOST=0.0.0.0 vim-embed:cpu
expect "64 hexadecimal" -e VIM_EMBED_API_KEYS=sha256:12 vim-embed:cpu
expect "Hub" -e HF_HUB_OFFLINE=1 vim-embed:cpu
expect "Hub" --network none vim-embed:cpu fetch vim-tiny
passed=yes
echo "all is well"
