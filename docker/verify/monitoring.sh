# shellcheck shell=bash disable=SC2154
# Profile monitoring: Prometheus scrapes the service by its name and with its key; every expression
# of the dashboard gives data. Grafana itself is not started.
image=$(docker compose --profile monitoring config --images prometheus | grep prometheus)
if ! docker image inspect "$image" > /dev/null 2>&1 && ! docker pull -q "$image" > /dev/null 2>&1; then
    echo "skipped: $image cannot be had here"
else
    export VIM_EMBED_API_KEYS=a-key VIM_EMBED_API_KEY=a-key FAULTS=true
    healthy
    docker compose --profile monitoring up --detach prometheus 2> "$WORK/up" ||
        { cat "$WORK/up"; false; }
    "$PYTHON" docker/verify/monitoring.py "http://127.0.0.1:$PROMETHEUS_PORT"
fi
