# shellcheck shell=bash disable=SC2154
# Profile monitoring: Prometheus scrapes the service by its name and with its key; every expression
# of the dashboard gives data. Grafana itself is not started.
image=$(docker compose --profile monitoring config --images prometheus | grep prometheus)
if ! docker image inspect "$image" > /dev/null 2>&1 && ! docker pull -q "$image" > /dev/null 2>&1; then
    export PROMETHEUS_IMAGE=vim-embed-verify:prometheus
    docker build --quiet --network host --tag "$PROMETHEUS_IMAGE" \
        ${PYTHON_IMAGE:+--build-arg "PYTHON_IMAGE=$PYTHON_IMAGE"} - \
        < docker/verify/prometheus.Dockerfile > /dev/null
    echo "$image cannot be had here: Debian's Prometheus in its place"
fi
export VIM_EMBED_API_KEYS=a-key VIM_EMBED_API_KEY=a-key VIM_EMBED_FAULT_INJECTION=true
healthy
docker compose --profile monitoring up --detach prometheus 2> "$WORK/up" ||
    { cat "$WORK/up"; false; }
docker compose exec -T prometheus prometheus --version 2>&1 | head -1
docker compose exec -T prometheus promtool check config /etc/prometheus/prometheus.yml
docker compose exec -T prometheus promtool check rules /etc/prometheus/alerts.yaml
"$PYTHON" docker/verify/monitoring.py "http://127.0.0.1:$PROMETHEUS_PORT"
