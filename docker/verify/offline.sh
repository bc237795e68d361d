# shellcheck shell=bash disable=SC2154
# fetch fills the cache volume; then the service answers without a network. Bad caches say why.
# A stand-in for the Hub gives the files, with the Hub's own routes and headers.
model=micro=someone/vim
export HF_ENDPOINT=http://hub:8080
unset VIM_EMBED_RANDOM_WEIGHTS
docker compose --profile hub up --detach --wait --wait-timeout 60 hub 2> "$WORK/up"
docker compose run --rm -T vim-embed fetch "$model" 2> "$WORK/up" || { cat "$WORK/up"; false; }

alone() { # without any network; the name, then docker run's arguments
    docker run --detach --network none --read-only --tmpfs /tmp --name "$@" > /dev/null
    timeout 900 sh -c "while docker inspect $1 -f '{{.State.Health.Status}}' | grep -q starting
        do sleep 1; done" || true
    docker inspect "$1" -f '{{.State.Health.Status}}' | grep -qw healthy ||
        { docker logs "$1"; return 1; }
    docker exec -i "$1" python - fixture /checkpoints/vim_micro.npz < docker/verify/client.py
    docker rm -f "$1" > /dev/null
}
volume=${COMPOSE_PROJECT_NAME}_cache
offline=(-v "$PWD/tests/data:/checkpoints:ro" -e VIM_EMBED_PUBLISHED_HOST=127.0.0.1
    -e HF_HUB_OFFLINE=1 -e "VIM_EMBED_MODELS=$model")
alone vim-embed-alone -v "$volume:/cache" "${offline[@]}" vim-embed:cpu
echo "--network none, HF_HUB_OFFLINE=1: values equal the fixture's"
alone vim-embed-alone -v "$volume:/cache:ro" "${offline[@]}" vim-embed:cpu
echo "the same from a read-only cache"

docker build --quiet --network host --tag vim-embed-verify:baked \
    --build-arg "HF_ENDPOINT=http://127.0.0.1:${HUB_PORT:-18080}" - \
    < docker/verify/baked.Dockerfile > /dev/null
alone vim-embed-alone -v "$PWD/tests/data:/checkpoints:ro" \
    -e VIM_EMBED_PUBLISHED_HOST=127.0.0.1 vim-embed-verify:baked
docker image rm vim-embed-verify:baked > /dev/null
echo "the same from an image with the weights in it"

. docker/verify/expect.sh
hub=(--network "${COMPOSE_PROJECT_NAME}_default" -e "HF_ENDPOINT=$HF_ENDPOINT")
full=(--tmpfs "/cache:size=256k,uid=10001")
expect "could not be fetched.*No space left" "${hub[@]}" "${full[@]}" vim-embed:cpu fetch "$model"
expect "could not be fetched.*No space left" "${hub[@]}" "${full[@]}" -e "VIM_EMBED_MODELS=$model" vim-embed:cpu
expect "could not be fetched.*Read-only" "${hub[@]}" --tmpfs /cache:ro vim-embed:cpu fetch "$model"
expect "could not be fetched.*Read-only" "${hub[@]}" --tmpfs /cache:ro -e "VIM_EMBED_MODELS=$model" vim-embed:cpu
expect "could not be fetched.*Permission denied" "${hub[@]}" --tmpfs /cache:mode=0755,uid=0 vim-embed:cpu fetch "$model"
