# shellcheck shell=bash disable=SC2154
# What cannot work says why on standard error and ends with a code that is not 0.
. docker/verify/expect.sh
echo "sha256:12" > "$WORK/bad-keys"
head -c 1000 tests/data/vim_micro.pth > "$WORK/cut.pth"
chmod 755 "$WORK"
expect "CUDA devices" -e VIM_EMBED_DEVICE=cuda -e VIM_EMBED_RANDOM_WEIGHTS=true vim-embed:cpu
expect "no-such-file" -e VIM_EMBED_MODELS=vim-tiny=/checkpoints/no-such-file.pth vim-embed:cpu
expect "not a readable checkpoint" -v "$WORK/cut.pth:/cut.pth:ro" \
    -e VIM_EMBED_MODELS=mine=/cut.pth vim-embed:cpu
expect "API key" -e VIM_EMBED_PUBLISHED_HOST=0.0.0.0 vim-embed:cpu
expect "64 hexadecimal" -e VIM_EMBED_API_KEYS=sha256:12 vim-embed:cpu
expect "cannot be read" -e VIM_EMBED_API_KEYS_FILE=/no/such/keys vim-embed:cpu
expect "holds none" -e VIM_EMBED_API_KEYS_FILE=/dev/null vim-embed:cpu
expect "64 hexadecimal" -e VIM_EMBED_API_KEYS_FILE=/keys -v "$WORK/bad-keys:/keys:ro" vim-embed:cpu
expect "Hub" -e HF_HUB_OFFLINE=1 vim-embed:cpu
expect "Hub" --network none vim-embed:cpu fetch vim-tiny

# The GPU file where the engine has no NVIDIA container toolkit.
if docker info --format '{{json .Runtimes}}' | grep -q nvidia; then
    echo "skipped: this engine has the NVIDIA container toolkit"
else
    code=0
    echo "services: {vim-embed: {image: 'vim-embed:cpu', build: !reset null}}" > "$WORK/gpu.yaml"
    COMPOSE_FILE=compose.yaml:$WORK/gpu.yaml docker compose up --detach --no-build vim-embed \
        > "$WORK/up" 2>&1 || code=$?
    grep -q 'could not select device driver "nvidia"' "$WORK/up" || { cat "$WORK/up"; false; }
    [ "$code" != 0 ]
    echo "compose, exit code $code: $(tail -1 "$WORK/up")"
fi

# Under compose: tried a bounded number of times, the reason in the log each time, then exited.
code=0
VIM_EMBED_MODELS=vim-tiny=/checkpoints/no-such-file.pth \
    docker compose up --detach --wait --wait-timeout 900 vim-embed > "$WORK/up" 2>&1 || code=$?
[ "$code" != 0 ]
container=$(docker compose ps --all --quiet vim-embed)
# Between an end and the restart it can be `exited` for a moment, so the count is waited for as well.
state() { docker inspect "$container" --format '{{.State.Status}} {{.RestartCount}}'; }
for _ in $(seq 900); do
    [ "$(state)" = "exited 5" ] && break
    sleep 1
done
reasons=$(docker compose logs --no-color vim-embed | grep -c "no-such-file.pth.*neither" || true)
restarts=$(docker inspect "$container" --format '{{.RestartCount}}')
echo "compose: up --wait failed ($(tail -1 "$WORK/up")), $restarts restarts, the reason $reasons times"
[ "$restarts" = 5 ] && [ "$reasons" = 6 ]
