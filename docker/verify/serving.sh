# shellcheck shell=bash disable=SC2154
# Healthy, the right values, without rights; SIGTERM under load.
begin=$(now)
healthy
echo "a start alone: healthy in $(seconds "$begin")"
docker compose logs --no-color --no-log-prefix vim-embed |
    sed -nE 's/.*"stage": "([^"]+)".*/\1/p; s/.*"event": "(model ready)".*/\1/p' > "$WORK/stages"
grep -q "comparing its kernels" "$WORK/stages" && tail -1 "$WORK/stages" | grep -q "model ready"
echo "the log says: $(paste -sd '>' "$WORK/stages" | sed 's/>/, then /g')"
container=$(docker compose ps --quiet vim-embed)

client values
echo "values equal those in process"

[ "$(docker compose exec -T vim-embed id -u)" = 10001 ]
! docker compose exec -T vim-embed touch /opt/vim-embed/x 2> /dev/null
! docker compose exec -T vim-embed sh -c 'command -v g++ || command -v gcc' > /dev/null
echo "runs as a plain user, on a read-only root, without a compiler"

client load "$WORK/load" &
load=$!
sleep 4
begin=$(now)
docker compose kill --signal SIGTERM vim-embed 2> /dev/null
code=$(docker wait "$container")
wait "$load"
echo "SIGTERM under load: exit code $code after $(seconds "$begin"); $(cat "$WORK/load")"
[ "$code" = 0 ]
[ "$(docker inspect "$container" --format '{{.State.Status}}')" = exited ]
