#!/bin/bash
# The gpu image on a machine without a GPU: what it is made of, its user and root, its values on the
# CPU against the original code's, its refusal where a GPU is asked for, and SIGTERM.
#   docker/verify/gpu.sh vim-embed:gpu
set -euo pipefail
cd "$(dirname "$0")/../.."
image=${1:?usage: docker/verify/gpu.sh IMAGE}
LIMIT=5500000000 # bytes
name=vim-embed-verify-gpu-$$
finish() { docker rm --force "$name" > /dev/null 2>&1 || true; }
trap finish EXIT

size=$(docker image inspect "$image" --format '{{.Size}}')
awk "BEGIN {printf \"the image: %.2f GB\\n\", $size / 1e9}"
[ "$size" -lt "$LIMIT" ]
closed=(--network none --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges:true)
closed+=(--env VIM_EMBED_PUBLISHED_HOST=127.0.0.1)
closed+=(--volume "$PWD/tests/data:/checkpoints:ro" --volume "$PWD/docker/verify:/verify:ro")
run() { docker run --rm "${closed[@]}" --tmpfs /cache:uid=10001 --entrypoint "$1" "$image" "${@:2}"; }

run id
if run sh -c 'command -v nvcc || command -v g++ || command -v cc'; then exit 1; fi
run python -c 'import torch; print("torch", torch.__version__, "for CUDA", torch.version.cuda)'
run python -c '
import torch

from vim_embed.kernels.fused.compile import compiled, compiler_version
from vim_embed.kernels.fused.launch import SOURCE, Program, Shape

program = Program(Shape(192, 384, 12, torch.float16), (9, 0))
size = len(compiled(SOURCE, program.macros, program.architecture))
print(f"NVRTC {compiler_version()} compiles our kernels for {program.architecture}: {size} bytes")
'

code=0
said=$(docker run --rm "${closed[@]}" "$image" serve 2>&1) || code=$?
echo "without a GPU: exit code $code; ${said##*Error: }"
[ "$code" = 2 ]
[[ $said == *"torch sees no CUDA device"* ]]

docker run --detach --name "$name" "${closed[@]}" --tmpfs /cache:uid=10001 "$image" \
    serve --device cpu --model micro=/checkpoints/vim_micro.pth > /dev/null
until docker exec "$name" vim-embed health > /dev/null 2>&1; do
    [ "$(docker inspect --format '{{.State.Running}}' "$name")" = true ] || { docker logs "$name"; exit 1; }
    sleep 1
done
docker exec "$name" python /verify/client.py fixture /checkpoints/vim_micro.npz
docker stop --time 30 "$name" > /dev/null
code=$(docker inspect --format '{{.State.ExitCode}}' "$name")
echo "after SIGTERM: exit code $code"
[ "$code" = 0 ]
echo "all is well"
